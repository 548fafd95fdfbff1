"""Files are checked byte by byte, read into memory of their own, and keep their names and keys;
nothing is left of a check that was killed.
"""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from small import CONFIG, NETWORK, TEACHERS, listed, load, refused, save, untouched

from ddpp import Error, NetworkConfig, TeacherConfig, distilling, load_data, train_teachers
from ddpp.baselines import bptt, cafe, common, dm, dsa, iadd, kip, selection, tgdd
from ddpp.baselines.ntk import KERNELS
from ddpp.data.augmentation import OPERATIONS
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import write_set
from ddpp.distilling import DistillConfig
from ddpp.evaluating import Evaluation, Protocol, evaluate
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import PROFILES, Recipe
from ddpp.foundation import files
from ddpp.foundation.identity import TABLES
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.networks import ARCHITECTURES
from ddpp.pruning import RULES
from ddpp.unrolling import ENGINES, draw_updates, unroll

ALIGNED = 64  # bytes; how PyTorch allocates on a CPU
RESULTS = Path(__file__).parents[1] / "results"


def address(tensor):
    return tensor.data_ptr() % ALIGNED


def at_alignments(path, tensors):
    """The file of these tensors, written so that they begin at different places; their addresses in
    the file.
    """
    found = set()
    for length in range(0, 64, 4):
        files.write(path, "test", tensors, {"padding": "x" * length})
        with safe_open(path, "pt") as file:
            found.add(tuple(address(file.get_tensor(name)) for name in tensors))
        yield
    assert len(found) > 1  # or the test would show nothing


def test_what_is_read_is_aligned_as_a_new_tensor_is_wherever_it_lies_in_its_file(tmp_path):
    tensors = {"a": torch.randn(5), "b": torch.randn(37, 11), "c": torch.arange(9)}
    for _ in at_alignments(tmp_path / "file", tensors):
        lazy, (whole, _) = (
            files.Lazy(tmp_path / "file", "test"),
            files.read(tmp_path / "file", "test"),
        )
        for name, tensor in tensors.items():
            for found in (lazy[name], whole[name]):
                assert torch.equal(found, tensor)
                assert address(found) == 0


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path):
    files.write(tmp_path / "file", "test", {"a": torch.ones(3)}, {})
    lazy = files.Lazy(tmp_path / "file", "test")
    lazy["a"].zero_()
    assert torch.equal(lazy["a"], torch.ones(3))


def test_teachers_and_sets_come_from_their_files_as_new_tensors(npz, tmp_path):
    data = load_data(npz(), device="cpu")
    config = TeacherConfig(count=1, epochs=2, batch=20, network=NetworkConfig(width=5, depth=2))
    train_teachers(data, config, tmp_path / "teachers", progress=False)
    teachers = train_teachers(data, config, tmp_path / "teachers", progress=False)
    assert [address(teachers.snapshot(0, epoch)) for epoch in range(3)] == [0, 0, 0]
    images, labels = data.draw(1, 0)
    made = DistilledDataset(
        images, labels, 0.01, data.whitening, data.classes, NetworkConfig(width=5)
    )
    made.save(tmp_path / "set.safetensors")
    read = DistilledDataset.load(tmp_path / "set.safetensors")
    assert [address(t) for t in (read.images, read.labels, read.alpha, read.whitening.matrix)] == [
        0
    ] * 4
    for split in (data.train, data.validation, data.test):
        assert address(split.images) == 0


def test_the_students_path_comes_back_as_new_tensors(monkeypatch):
    network, seen = NetworkConfig(width=3, depth=1).build(1, 2, 4), []
    call = type(network).__call__
    monkeypatch.setattr(
        type(network),
        "__call__",
        lambda self, theta, x: seen.append(address(theta)) or call(self, theta, x),
    )
    images, start = torch.randn(2, 1, 4, 4, generator=generator(0)), network.initial(0)
    updates = draw_updates(2, None, 5, generator(1))
    unroll(
        network, start, images, torch.arange(2), torch.tensor(0.1), updates, torch.sum, "adjoint"
    )
    assert set(seen) == {0}


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="elsewhere a temporary file has a name for a moment",
)
def test_a_check_that_is_killed_leaves_nothing(tmp_path):
    code = (
        "import sys\nfrom ddpp.foundation import files\nprint(1, flush=True)\nwhile True: "
        "files.check_writable(sys.argv[1])"
    )
    for i in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE
        ) as process:
            process.stdout.read(1)
            time.sleep(0.02 + 0.01 * i)
            process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_left_is_swept_once_it_is_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = tmp_path / f"out.{os.getpid()}.probe.part"
    others = [tmp_path / name for name in ("out.probe", "out.x.probe", f"other.{gone.pid}.probe")]
    for path in (
        *others,
        mine,
        tmp_path / f"out.{gone.pid}.probe",
        tmp_path / f"out.{gone.pid}.probe.part",
        tmp_path / f"out.{gone.pid}.part",
    ):
        path.touch()
    files.check_writable(tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*others, mine])


def test_two_processes_may_write_to_one_place(tmp_path):
    code = (
        "import sys; from ddpp.foundation import files\n"
        "for i in range(100): files.write_bytes(sys.argv[1], sys.argv[2].encode() * 100_000)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    both = [subprocess.Popen([*words, letter]) for letter in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() in (b"a" * 100_000, b"b" * 100_000)


def test_a_file_that_is_swept_while_it_is_written_is_written_again(tmp_path, monkeypatch):
    replace, lost = os.replace, []

    def swept(part, path):
        if len(lost) < 2:
            lost.append(part)
            os.unlink(part)  # by a process on another machine, where this one is not known
        replace(part, path)

    monkeypatch.setattr(os, "replace", swept)
    files.write_bytes(tmp_path / "out", b"mine")
    assert (tmp_path / "out").read_bytes() == b"mine" and len(lost) == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "out", tmp_path / ("x" * 252)):
        with pytest.raises(Error, match=r"cannot write .*choose another place"):
            files.check_writable(path)
    for nameless in ("", ".", "/"):
        for write in (files.check_writable, lambda path: files.write_bytes(path, b"")):
            with pytest.raises(Error, match=r"cannot write .*: Is a directory"):
                write(nameless)
    assert files.check_writable(tmp_path / ("x" * 240)) is None


def test_a_name_that_safetensors_cannot_read_is_refused_at_once(file, tmp_path):
    name = os.fsdecode(b"s\xe9t.safetensors")
    for path in (tmp_path / name, tmp_path / f"{name}.checkpoint", tmp_path / name / file.name):
        with refused(r"s\udce9t", "is not in UTF-8", "rename"):
            files.check_writable(path)
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    files.check_writable(tmp_path / os.fsdecode(b"s\xe9t.npz"))  # which is read by others
    try:
        renamed = file.rename(tmp_path / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    with untouched(renamed), refused(r"s\udce9t.safetensors is not in UTF-8", "rename"):
        files.read(renamed, "thing")


def test_equal_content_is_equal_bytes(file):
    again = file.with_name("again.safetensors")
    files.write(
        again, "thing", {"b": torch.tensor(7), "a": torch.arange(3.0)}, {"number": 0.1, "name": "x"}
    )
    assert again.read_bytes() == file.read_bytes()


def test_every_truncation_is_noticed(file):
    content = file.read_bytes()
    for kept in range(len(content)):
        file.write_bytes(content[:kept])
        with refused("thing.safetensors", "damaged", "cut short or altered"):
            files.read(file, "thing")


def test_every_flipped_byte_is_noticed(file):
    content = file.read_bytes()
    data_begins = 8 + int.from_bytes(content[:8], "little")
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Error, match=r"damaged|not written by ddpp") as caught:
            files.read(file, "thing")
        assert at < data_begins or "altered" in str(caught.value)


def test_a_file_of_another_kind_is_named_as_what_it_is(file, run):
    with untouched(file), refused("holds a thing, not a distilled dataset", "choose another file"):
        DistilledDataset.load(file)
    with untouched(file), refused("holds a thing, not a checkpoint", "choose another file"):
        run(checkpoint=file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ddpp": "5"}, {"ddpp": "{}"}])
def test_a_safetensors_file_from_elsewhere_is_refused(file, metadata):
    file.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))
    with untouched(file), refused("was not written by ddpp", "choose another file"):
        files.read(file, "thing")


def test_another_programs_file_is_not_to_be_deleted(file):
    file.write_bytes(b"a year of measurements")
    with untouched(file), refused("not a file of ddpp", "move it away"):
        files.read(file, "thing")


def test_a_missing_file_is_not_called_damaged(file, tmp_path):
    for path in (file.with_name("nowhere"), tmp_path):
        with refused("there is no file", "check the path"):
            files.read(path, "thing")


# Names that are the format of stored files

HISTORY = {"epoch", "teacher", "loss", "unmasked", "kept", "layers", "alpha", "skipped"}
TRACE = {f"history.{name}" for name in HISTORY}
TRACE |= {f"iterate.{step}.{name}" for step in (0, 2, 4) for name in ("images", "alpha")}
DATA = {"sha256", "whitening", "validation"}
TEACHER = {"lr", "batch", "augment", "seed", "network", "data"}
MATCHING = """ipc steps student_steps expert_epochs max_start_epoch epsilon rule image_lr alpha0
    alpha_lr momentum batch engine iterates trajectories seed augment ema clip normalize
    min_start_epoch first_max_start_epoch expand_steps leave_out label_lr init"""
STATE = """step images alpha images_velocity alpha_velocity skipped moving logits
    logits_velocity"""
FIELDS = {  # of settings and states: a file has them, and a run with others is another
    NetworkConfig: "name width depth",
    TeacherConfig: "count epochs lr batch augment seed network rho",
    Protocol: "epochs batch momentum weight_decay augment",
    Recipe: ("profile data teachers distill protocol method zca validation repeats all_epochs"),
    DistillConfig: MATCHING,
    iadd.IADDConfig: f"{MATCHING} weights_lr",
    dm.DMConfig: "ipc steps image_lr momentum batch_real augment init iterates seed alpha",
    dsa.DSAConfig: (
        "ipc steps image_lr momentum batch_real augment init iterates seed alpha outer inner "
        "network_lr batch"
    ),
    cafe.CAFEConfig: (
        "ipc steps image_lr momentum batch_real augment init iterates seed alpha discrimination "
        "weights network_lr batch inner queries window saturated changed most"
    ),
    tgdd.TGDDConfig: (
        "ipc steps image_lr momentum batch_real augment init iterates seed alpha epochs "
        "constraint formation"
    ),
    kip.KIPConfig: (
        "ipc steps kernel depth reg image_lr learn_labels label_lr target init iterates seed"
    ),
    bptt.BPTTConfig: (
        "ipc steps window max_updates alpha image_lr batch target augment init engine iterates seed"
    ),
    selection.SelectionConfig: "ipc epochs seed",
    distilling.State: STATE,
    iadd.State: f"{STATE} weights",
    common.State: "step images alpha velocity",
    kip.State: "step images labels alpha moments label_moments",
    bptt.State: "step images alpha moments norm",
    Evaluation: "final selected selected_step validation best_on_test best_on_test_step",
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_the_settings_and_states_in_files_have_the_same_names(kind):
    assert {field.name for field in dataclasses.fields(kind)} == {*FIELDS[kind].split()}


def test_the_choices_in_files_have_the_same_names():
    assert list(METHODS) == (
        "ddpp mtt iadd dc dsa dm cafe tgdd kip bptt random herding forgetting".split()
    )
    # a notebook that another test runs here may have added one
    assert list(RULES)[:6] == "signed magnitude none random largest smallest".split()
    assert list(ARCHITECTURES) == "convnet alexnet vgg11 resnet18".split()
    # in this order: an operation is drawn by its number
    assert list(OPERATIONS) == "color crop cutout flip scale rotate".split()
    assert list(ENGINES) == "autograd adjoint compiled stored".split()
    assert list(KERNELS) == ["fc", "conv"]
    assert PROFILES == ("smoke", "cpu", "colab", "paper")
    assert TABLES.keys() == {"method", "rule", "network", "augmentation", "kernel"}


def test_a_file_has_one_entry_with_kind_metadata_and_digests(file):
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata.keys() == {"ddpp"}
    envelope = json.loads(metadata["ddpp"])
    assert envelope.keys() == {"body", "sha256"}
    assert envelope["body"].keys() == {"kind", "meta", "sha256"}


def test_teachers_are_files_of_these_names(data, tmp_path):
    train_teachers(data, TEACHERS, tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "teacher_000.safetensors",
        "teacher_001.safetensors",
    }
    tensors, meta = files.read(tmp_path / "teacher_001.safetensors", "teacher")
    assert tensors.keys() == {"epoch_000"} | {
        f"{name}_{epoch:03d}" for name in ("epoch", "loss") for epoch in (1, 2, 3)
    }
    assert meta.keys() == {"identity", "teacher"}
    assert meta["identity"].keys() == TEACHER
    assert meta["identity"]["data"].keys() == DATA


def test_a_checkpoint_has_these_names(run, tmp_path):
    run(checkpoint=tmp_path / "checkpoint")
    tensors, meta = files.read(tmp_path / "checkpoint", "checkpoint")
    state = {"images", "alpha", "images_velocity", "alpha_velocity"}
    assert tensors.keys() == TRACE | state | {"labels", "mean", "std"}
    assert meta.keys() == {"identity", "step", "skipped", "made_on", "set"}
    assert meta["set"].keys() == {"classes", "network", "data"}
    identity = meta["identity"]
    assert identity.keys() == {"method", "config", "teachers", "teacher_count"}
    assert identity["method"] == "ddpp"
    assert identity["teachers"].keys() == TEACHER
    assert [made.keys() for made in meta["made_on"]] == [{"device", "versions", "engine"}]


def test_a_finished_set_is_written_as_the_very_checkpoint_of_its_run(run, tmp_path):
    made = run(checkpoint=tmp_path / "checkpoint")
    _, meta = files.read(tmp_path / "checkpoint", "checkpoint")
    made.save_checkpoint(tmp_path / "again", meta["identity"])
    assert (tmp_path / "again").read_bytes() == (tmp_path / "checkpoint").read_bytes()


def test_a_checkpoint_without_teachers_has_these_names(data, tmp_path):
    saving = Saving(tmp_path / "checkpoint", progress=False)
    dm.distill(data, NETWORK, dm.DMConfig(steps=2, iterates=1), saving)
    tensors, meta = files.read(tmp_path / "checkpoint", "checkpoint")
    assert tensors.keys() >= {"images", "alpha", "velocity"}
    assert meta["identity"].keys() == {"method", "config", "network", "images"}


def test_a_checkpoint_of_forgetting_has_these_names(data, teachers, tmp_path):
    saving = Saving(tmp_path / "checkpoint", progress=False)
    selection.forgetting(data, teachers, selection.SelectionConfig(epochs=2), saving)
    tensors, meta = files.read(tmp_path / "checkpoint", "checkpoint")
    assert tensors.keys() == {"looks"}
    assert meta.keys() == {"identity"}
    assert meta["identity"]["method"] == "forgetting"


@pytest.mark.parametrize("zca, whitening", [(True, "matrix"), (False, "std")])
def test_a_distilled_file_has_these_names(tmp_path, zca, whitening):
    data = load(save(tmp_path / "mine.npz"), zca=zca)
    teachers = train_teachers(data, TEACHERS, progress=False)
    made = distilling.distill(data, teachers, CONFIG, progress=False)
    made.save(tmp_path / "set.safetensors")
    tensors, meta = files.read(tmp_path / "set.safetensors", "distilled dataset")
    state = {"state.images_velocity", "state.alpha_velocity"}
    assert tensors.keys() == {"images", "labels", "alpha", "mean", whitening} | state | TRACE
    assert meta.keys() == {"classes", "network", "provenance", "state"}
    assert meta["state"].keys() == {"step", "skipped"}
    made_from = {"method", "config", "teachers", "teacher_count", "data", "made_on"}
    assert meta["provenance"].keys() == made_from
    assert meta["provenance"]["data"].keys() == DATA | {"name"}
    assert data.identity["whitening"] == ("zca" if zca else "channels")


def test_a_set_with_learned_labels_names_its_loss(distilled, tmp_path):
    targets = torch.randn(2, 2, generator=generator(0))
    made = dataclasses.replace(distilled, labels=targets, loss="squared error")
    made.save(tmp_path / "set.safetensors")
    _, meta = files.read(tmp_path / "set.safetensors", "distilled dataset")
    assert meta["loss"] == "squared error"
    assert distilled.loss == "cross-entropy"


def test_a_set_of_several_pictures_per_image_names_its_formation(distilled, tmp_path):
    made = dataclasses.replace(distilled, formation=2)
    made.save(tmp_path / "set.safetensors")
    _, meta = files.read(tmp_path / "set.safetensors", "distilled dataset")
    assert meta["formation"] == 2
    write_set(tmp_path / "result.safetensors", made)
    _, meta = files.read(tmp_path / "result.safetensors", "result")
    assert meta["formation"] == 2


def test_a_result_has_these_names(distilled, tmp_path):
    entry = write_set(tmp_path / "set.safetensors", distilled)
    assert entry.keys() == {"file", "sha256"}
    tensors, meta = files.read(tmp_path / "set.safetensors", "result")
    history = {f"history.{name}" for name in HISTORY}
    state = {"state.images_velocity", "state.alpha_velocity"}
    assert tensors.keys() == {"images", "labels", "alpha"} | history | state
    assert meta.keys() == {"provenance", "state"}


def test_an_accuracy_is_kept_under_these_names(data, distilled, tmp_path, monkeypatch):
    asked, identity = [], files.identity

    def record(config):
        asked.append(config)
        return identity(config)

    monkeypatch.setattr(files, "identity", record)
    scores = tmp_path / "scores"
    evaluate(distilled, data, repeats=1, protocol=Protocol(epochs=1), scores=scores, progress=False)
    (key,) = asked
    assert key.keys() == {"how", "set", "role", "number"}
    assert key["how"].keys() == {"data", "network", "protocol", "seed"}
    assert (key["role"], key["number"], len(key["set"])) == ("test", 0, 3)
    assert json.loads(scores.read_text()).keys() == {identity(key)}


def test_stored_results_are_runs_of_the_lists():
    stored = [path for path in RESULTS.glob("*/*/*.json") if path.parents[1].name in PROFILES]
    assert len(stored) > 50
    names = {(each.recipe.profile, each.name) for each in listed(RESULTS)}
    for path in stored:
        assert (path.parents[1].name, f"{path.parent.name}/{path.stem}") in names


# Locks


def test_where_a_file_system_has_no_locks_it_says_so_once(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    words = "has no locks: do not let two runs write to one place"
    with pytest.warns(UserWarning, match=words), files.lock(tmp_path / "a", wait=False):
        files.write_bytes(tmp_path / "a", b"1")
    with files.lock(tmp_path / "a", wait=True):  # without a warning, which would be an error
        pass
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(OSError, match="no"), files.lock(tmp_path / "a", wait=False):
        pass


def test_two_runs_do_not_write_one_checkpoint(data, teachers, tmp_path):
    path = tmp_path / "set.checkpoint"
    with files.lock(path, wait=False), refused("another process is writing", "choose another"):
        distilling.distill(data, teachers, CONFIG, checkpoint=path, progress=False)
    distilling.distill(data, teachers, CONFIG, checkpoint=path, progress=False)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_lock_that_cannot_be_made_gets_a_sentence(tmp_path):
    (tmp_path / ".a.lock").mkdir()  # as unusable as one of another user
    with refused(f"cannot write {tmp_path / '.a.lock'}"), files.lock(tmp_path / "a", wait=False):
        pass


@pytest.mark.parametrize("times, raised", [(1, KeyboardInterrupt), (2, ValueError)])
def test_ctrl_c_while_a_tensor_is_read_is_one(times, raised, tmp_path, monkeypatch):
    """PyTorch makes this error of it. A file that cannot be read fails again."""
    left = [ValueError("could not determine the shape of object type 'UntypedStorage'")] * times

    class Interrupted:
        def __init__(self, *where):
            self.file = safe_open(*where)
            self.keys, self.metadata = self.file.keys, self.file.metadata

        def get_tensor(self, name):
            if left:
                raise left.pop()
            return self.file.get_tensor(name)

    files.write(tmp_path / "file", "test", {"x": torch.ones(3)}, {})
    monkeypatch.setattr(files, "safe_open", Interrupted)
    lazy = files.Lazy(tmp_path / "file", "test")
    with pytest.raises(raised):
        lazy["x"]
    assert torch.equal(lazy["x"], torch.ones(3))
