"""What the chapters lean on says what it did, and gives what it says."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pytest
import torch

from ddpp import DistilledDataset, NetworkConfig, distill, load_data, recipe
from ddpp.book import figures, notebook
from ddpp.book.notebook import begin
from ddpp.data.whitening import fit_channels
from ddpp.foundation.errors import Error
from ddpp.unrolling import draw_updates, unroll


def test_begin_says_what_it_runs_on_and_where_results_go(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(begin()) == "runs"
    assert "no GPU found: smallest scale, on the CPU\n" in capsys.readouterr().out
    assert str(begin(drive=True)) == "runs"
    assert "on Colab only" in capsys.readouterr().out

    mounted, colab = [], ModuleType("google.colab")
    colab.drive = ModuleType("drive")
    colab.drive.mount = mounted.append
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert str(begin(drive=True)) == "/content/drive/MyDrive/ddpp"
    assert mounted == ["/content/drive"]
    assert "Change runtime type" in capsys.readouterr().out
    # a restarted session begins in another folder
    monkeypatch.setattr(notebook, "COLAB", tmp_path / "notebooks")
    before = Path.cwd()
    assert (str(begin()), Path.cwd()) == ("runs", before)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(before)  # and back, after the test
    assert (str(begin()), Path.cwd()) == ("runs", tmp_path / "notebooks")


def test_stored_results_are_beside_the_notebook_or_their_absence_is_said(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert (notebook.results() / "smoke").is_dir()  # of the clone that ddpp is imported from
    monkeypatch.setattr(notebook, "__file__", str(tmp_path / "site" / "ddpp" / "book" / "a.py"))
    with pytest.raises(Error, match="results of the project; open this notebook in the folder"):
        notebook.results()
    (tmp_path / "results").mkdir()
    assert str(notebook.results()) == "../results"


def test_heavy_things_are_made_once_and_the_reader_is_told(npz, tmp_path, capsys):
    base = recipe("smoke", str(npz()))
    teachers = replace(base.teachers, count=1, batch=8, network=NetworkConfig(width=4))
    small = replace(
        base, teachers=teachers, distill=replace(base.distill, steps=2, student_steps=2)
    )
    data = load_data(small.data, device="cpu")
    for word in ("trained", "loaded"):
        trained = notebook.teachers(data, small, tmp_path)
        assert capsys.readouterr().out.startswith(f"{word} 1 teacher of 3 epochs")
    make = lambda checkpoint: distill(data, trained, small.distill, checkpoint=checkpoint)
    first = notebook.distilled(tmp_path / "a.safetensors", make)
    assert "distilled in" in capsys.readouterr().out
    second = notebook.distilled(
        tmp_path / "a.safetensors", lambda checkpoint: pytest.fail("made again")
    )
    assert "loaded from" in capsys.readouterr().out
    assert torch.equal(first.images, second.images)
    assert not (tmp_path / "a.checkpoint").exists()


def test_a_student_is_followed_to_where_the_engines_end():
    network = NetworkConfig(width=4, depth=1).build(1, 2, 8)
    start = network.initial(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 8, 8, generator=generator)
    labels, alpha = torch.tensor([0, 1]), torch.tensor(0.1)
    distilled = DistilledDataset(
        images=images,
        labels=labels,
        alpha=alpha,
        whitening=fit_channels(images),
        classes=("a", "b"),
        network=NetworkConfig(width=4, depth=1),
    )
    updates = draw_updates(2, None, 5, generator)
    path = notebook.student_path(network, start, distilled, updates)
    loss = lambda student: student.square().sum()
    end = unroll(network, start, images, labels, alpha, updates, loss, "autograd").student
    assert path.shape == (6, network.size)
    torch.testing.assert_close(path[-1], end)


def test_distances_to_start_and_goal_are_true_in_the_plane():
    path = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    goal = path.mean(0)
    x, y = figures.toward(path, goal)
    length = (goal - path[0]).norm()
    torch.testing.assert_close(torch.hypot(x, y), (path - path[0]).norm(dim=1))
    torch.testing.assert_close(torch.hypot(x - length, y), (path - goal).norm(dim=1))
    figure = figures.approach(path, {"first": {"photographs": path}})
    assert figure.axes[0].get_title() == "first"
    plt.close(figure)


def test_a_name_has_one_colour_in_all_panels():
    line = ([2, 4], [50.0, 40.0], [1.0, 2.0])
    panels = [("one image", "classes", "accuracy (%)"), ("ten", "classes", "accuracy (%)")]
    figure = figures.curves(panels, {"DM": line, "MTT": line}, {"MTT": line})
    above, below = figure.axes
    assert below.lines[0].get_color() == above.containers[1].lines[0].get_color()
    assert above.lines[0].get_color() != below.lines[0].get_color()
    assert below.get_xticks().tolist() == [2, 4]
    plt.close(figure)


def test_a_player_needs_no_network_and_names_what_it_shows():
    figure, axis = plt.subplots(figsize=(1, 1))
    html = figures.play(
        figure, lambda frame: axis.set_title(str(frame)), 3, "a number that counts up"
    ).data
    assert html.count('alt="a number that counts up"') == 1
    assert 'aria-label="frame"' in html and "Repetition" not in html
    assert html.count("data:image/png;base64,") == 3
    assert "http" not in html
    assert "fa-" not in html
