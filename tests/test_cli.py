"""The command line: bad input gets a sentence that says what is wrong and what to do, an exit code
that is not 0, and nothing is lost.
"""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib import pyplot
from small import arrays, command, contents, limited, mounted, save, untouched, words

from ddpp import cli
from ddpp.cli import commands
from ddpp.distilling import distill, match
from ddpp.experiments import run as whole_runs


@pytest.fixture
def said(capsys):
    """Runs a command that must fail; returns the last line of its standard error, which must be a
    sentence of ours.
    """

    def call(argv):
        capsys.readouterr()
        assert cli.main(argv) == 1
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert err.endswith("\n")
        last = err.splitlines()[-1]
        assert last.startswith("ddpp: ")
        return last

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The data and the result of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    npz, out = save(folder / "mine.npz"), folder / "out.safetensors"
    assert cli.main(command(npz, out)) == 0
    return npz, out


@pytest.mark.parametrize(
    "more, telling",
    [
        (["--profile", "smok"], "did you mean 'smoke'"),
        (["--data", "cifar-10"], "did you mean 'cifar10'"),
        (["--data", "nowhere.npz"], "there is no file"),
        (["--rule", "signd"], "did you mean 'signed'"),
        (["--teachers.network.name", "convnets"], "did you mean 'convnet'"),
        (["--teachers.network.depth", "4"], "a depth of at most 3"),
        (["--epsilon", "1"], "below 1"),
        (["--ipc", "7"], "fewer than the 7 images per class"),
        (["--student-steps", "0"], "at least 1"),
        (["--expert-epochs", "3"], "the teachers stop at 3"),
        (["--teachers.lr", "0"], "must be positive"),
        (["--device", "tpu"], "use 'cpu' or 'cuda'"),
        (["--validation", "1"], "below 1"),
    ],
)
def test_the_command_line_answers_in_one_line_and_writes_nothing(tmp_path, capsys, more, telling):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "out.safetensors"
    assert cli.main([*command(npz, out), *more]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ddpp: ") and err.endswith("\n") and err.count("\n") == 1
    assert telling in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [npz]


@pytest.mark.parametrize(
    "more, telling",
    [(["--formation", "5"], "formation is 5"), (["--formation", "4"], "fewer than the 16 images")],
)
def test_pictures_that_do_not_fit_are_refused_before_teachers_are_trained(
    tmp_path, said, more, telling
):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "out.safetensors"
    short = words("distill", ("--data", npz), ("--out", out), ("--device", "cpu"))
    assert telling in said([*short, "--method", "tgdd", "--epochs", "1", *more])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [npz]


def test_words_that_are_no_command_exit_with_2(capsys):
    for argv in ([], ["distil"], ["distill"], ["distill", "--ipc", "two"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.npz", "out.safetensors.bak"])
def test_the_output_must_end_in_safetensors(tmp_path, said, name):
    assert "must end in .safetensors" in said(command(save(tmp_path / "mine.npz"), tmp_path / name))


def test_a_folder_called_teachers_is_in_nobodys_way(npz, tmp_path):
    (tmp_path / "teachers").mkdir()
    assert cli.main(command(npz(), tmp_path, verb="teachers")) == 0


@pytest.mark.parametrize("verb", ["distill", "teachers"])
def test_an_output_that_cannot_be_written_is_noticed_before_training(
    tmp_path, said, monkeypatch, verb
):
    npz = save(tmp_path / "mine.npz")
    for module in (commands, whole_runs):
        monkeypatch.setattr(
            module, "train_teachers", lambda *_: pytest.fail("teachers were trained in vain")
        )
    with untouched(npz):
        line = said(command(npz, npz / "out.safetensors", verb=verb))
        assert "cannot write" in line and "choose another place" in line


@pytest.mark.parametrize("changes", [("--seed", 1), ("--teachers.lr", 0.5), ("--epsilon", 0.2)])
def test_the_output_of_another_run_is_refused_and_left_as_it_is(finished, said, changes):
    before = contents(finished[1].parent)
    line = said(command(*finished, changes))
    assert "holds the result of another run" in line and "choose another output" in line
    assert contents(finished[1].parent) == before


def test_a_set_with_other_names_of_classes_is_not_taken_for_the_result(finished, tmp_path, said):
    npz, out = finished
    renamed = save(tmp_path / npz.name, classes=np.array(["cat", "dog"]))
    with untouched(out):
        line = said(command(renamed, out))
    assert "has other names of classes than" in line and "move that file away" in line


def test_a_file_at_the_output_that_is_not_ours_is_left_as_it_is(tmp_path, said):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "out.safetensors"
    for content in (b"a year of measurements", safetensors.torch.save({"a": torch.ones(2)})):
        out.write_bytes(content)
        with untouched(npz, out):
            assert "ddpp" in said(command(npz, out))


def test_a_distilled_file_is_evaluated_on_its_own_data_only(finished, tmp_path, said):
    other = save(tmp_path / "3.npz", **arrays(classes=3))
    larger = save(tmp_path / "larger.npz", **arrays(side=12))
    evaluated_on = lambda npz, file=finished[1]: said(
        words("evaluate", file, ("--data", npz), ("--device", "cpu"))
    )
    assert "the data set that it was distilled from" in evaluated_on(other)
    assert "use the data set that it belongs to" in evaluated_on(larger)
    with untouched(other):
        assert "not a file of ddpp" in evaluated_on(other, other)


def test_pictures_go_where_they_can(finished, said):
    npz, file = finished
    with untouched(npz, file):
        assert "cannot write" in said(words("show", file, ("--out", npz / "pictures.png")))
        assert "choose another folder" in said(words("show", file, ("--folder", npz)))


@pytest.mark.parametrize("disk", [limited, mounted])
def test_a_full_disk_costs_nothing(tmp_path, monkeypatch, capsys, said, disk):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "disk" / "out.safetensors"

    def until_ctrl_c(state, *rest):
        if state.step == 2:
            raise KeyboardInterrupt
        return match(state, *rest)

    with disk(out.parent) as full:
        with monkeypatch.context() as patch:
            patch.setitem(distill.__globals__, "match", until_ctrl_c)
            assert cli.main(command(npz, out)) == 130
        clock = out.with_name(f"{out.name}.seconds")  # of no value by itself
        clock.unlink(missing_ok=True)
        before = contents(out.parent)
        assert {path.suffix for path in before} == {".checkpoint", ".safetensors"}
        with full():
            for argv in (
                command(npz, out),
                command(npz, out.parent, ("--teachers.seed", 1), verb="teachers"),
            ):
                line = said(argv)
                assert (
                    "cannot write" in line
                    and "what was there before is unchanged. Make room" in line
                )
                left = {
                    path: content
                    for path, content in contents(out.parent).items()
                    if path.name not in ("filler", clock.name)
                }
                assert left == before  # the checkpoint and the teachers to the byte, and no .part
        assert cli.main(command(npz, out)) == 0
        assert "resuming from step 2" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["show", "distill", "teachers", "evaluate"])
@pytest.mark.parametrize("word", ["", "--out="])
def test_empty_words_are_not_taken_for_this_folder(said, verb, word):
    assert "a word of this command is empty text" in said([verb, word])


def test_what_show_did_not_write_is_not_replaced(finished, tmp_path, said, capsys):
    file = shutil.copy(finished[1], tmp_path / "mine.safetensors")
    picture, page = tmp_path / "mine.png", tmp_path / "README.md"
    for mine in (picture, page):
        mine.write_text("mine")
        with untouched(mine):
            line = said(words("show", file, ("--card", page)))
            assert f"{mine} is a file of something else" in line
        mine.unlink()
    for _ in range(2):  # and once more: its own are replaced
        assert cli.main(words("show", file, ("--card", page))) == 0
    assert page.read_text().startswith("---") and picture.read_bytes()[1:4] == b"PNG"
    assert "a place of its own" in said(words("show", file, ("--progress", picture)))


def test_figures_are_closed_when_they_are_saved(finished, tmp_path):
    before = pyplot.get_fignums()
    figure = ("--progress", tmp_path / "progress.png")
    assert cli.main(words("show", finished[1], ("--out", tmp_path / "all.png"), figure)) == 0
    assert pyplot.get_fignums() == before


def test_a_full_disk_keeps_the_pictures_that_are_there(finished, tmp_path, said):
    with limited(tmp_path / "disk") as full:
        paths = [tmp_path / "disk" / name for name in ("all.png", "progress.png")]
        line = words("show", finished[1], ("--out", paths[0]), ("--progress", paths[1]))
        assert cli.main(line) == 0
        for argv in (line, words("show", finished[1], ("--progress", paths[1]))):
            with untouched(*paths), full():
                assert "what was there before is unchanged" in said(argv)
    assert "choose another place or .png" in said(words("show", finished[1], ("--out", "a.xyz")))
