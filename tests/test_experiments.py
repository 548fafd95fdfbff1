"""The ablation: paired runs, one file each, that a stopped call goes on with; and the tables made of them."""

import json
import statistics
from dataclasses import replace

import pytest

from ddpp import Error, NetworkConfig, Protocol, load_data, recipe
from ddpp.cli import main
from ddpp.experiments import SETTINGS, TABLE_1, ablate, cells, read, summarize, table_1

TWO = [("none", 0.0), ("signed", 0.5)]


@pytest.fixture
def small(npz):
    base = recipe("smoke", str(npz()))
    return replace(
        base,
        teachers=replace(base.teachers, count=2, batch=8, network=NetworkConfig(width=8)),
        distill=replace(base.distill, steps=3, student_steps=3, image_lr=10.0),
        protocol=Protocol(epochs=5),
        repeats=2,
    )


def test_an_ablation_is_one_file_per_run_and_goes_on_with_what_is_missing(small, tmp_path):
    data, folder, said = load_data(small.data, device="cpu"), tmp_path / "ablation", []
    options = {"settings": TWO, "teachers_root": tmp_path, "progress": False, "say": said.append}
    rows = ablate(data, small, folder, seeds=2, **options)
    assert [(row["rule"], row["seed"]) for row in rows] == [
        (rule, seed) for seed in (0, 1) for rule in ("none", "signed")
    ]
    assert len(said) == 4
    assert rows[0]["kept"] == 1 > rows[1]["kept"]
    assert rows[0]["accuracy"] == statistics.fmean(rows[0]["evaluation"]["final"])
    assert {row["recipe"]["teachers"]["seed"] for row in rows if row["seed"] == 1} == {1}

    (folder / "signed-0.5-seed1.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = ablate(data, small, folder, seeds=2, **options)
    assert len(said) == 5
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows]
    assert sorted(row["accuracy"] for row in read(folder)) == sorted(row["accuracy"] for row in rows)

    with pytest.raises(Error, match="result of other settings: choose another folder"):
        ablate(data, replace(small, repeats=1), folder, seeds=2, **options)
    (folder / "none-0-seed0.json").write_text("{}")
    with pytest.raises(Error, match="is not the result of a run: move it away"):
        read(folder)


def test_pruning_too_much_is_a_result_not_a_crash(small, tmp_path):
    data = load_data(small.data, device="cpu")
    wild = replace(small, distill=replace(small.distill, steps=40, alpha0=1e30))
    options = {"settings": TWO, "seeds": 1, "teachers_root": tmp_path, "progress": False, "say": lambda line: None}
    rows = ablate(data, wild, tmp_path / "a", **options)
    assert all("in a row" in row["error"] for row in rows)
    assert [(line["stopped"], line["mean"]) for line in summarize(rows)] == [(1, None), (1, None)]


def test_differences_to_mtt_are_paired_by_seed():
    row = lambda rule, epsilon, seed, accuracy: {
        **{"rule": rule, "epsilon": epsilon, "seed": seed, "accuracy": accuracy},
        **{"error": None, "kept": 0.5, "unmasked": 1.0},
    }
    rows = [row("none", 0.0, s, a) for s, a in enumerate((10, 20, 30))]
    rows += [row("signed", 0.1, s, a) for s, a in enumerate((11, 22, 33))]
    none, signed = summarize(rows)
    assert none["gain"] is None
    assert (signed["mean"], signed["gain"], signed["runs"], signed["stopped"]) == (22, 2, 3, 0)
    assert cells(signed) == ["signed", "0.1", "3", "50.0%", "22.0 ± 11.0", "+2.0 ± 0.6"]
    assert cells(summarize(rows[::3])[1]) == ["signed", "0.1", "1", "50.0%", "11.0", "+1.0"]  # one seed: no error bar
    assert signed["error"] == pytest.approx(1 / 3**0.5)  # the differences 1, 2, 3, not the spread of the accuracies


def test_table_1_shows_what_was_run_and_a_dash_elsewhere(tmp_path):
    assert table_1(tmp_path).count("| – |") + table_1(tmp_path).count(" – ") >= 2 * len(TABLE_1)
    report = {"distilled": {"final": [60.0, 62.0]}}
    (tmp_path / "cifar10-ipc10-signed.json").write_text(json.dumps(report))
    assert "| CIFAR-10, 10 | 65.3 ± 0.7 | – | 65.5 ± 0.3 | 61.0 ± 1.4 |" in table_1(tmp_path)


def test_the_command_line_ablates_every_setting(small, tmp_path, capsys):
    tiny = "--teachers.count 1 --teachers.batch 8 --teachers.network.width 4 --steps 1 --student-steps 1 --iterates 1"
    where = ["--data", small.data, "--device", "cpu", "--out", str(tmp_path / "out"), "--teachers-root", str(tmp_path)]
    assert main(["ablate", *where, *tiny.split(), "--protocol.epochs", "1", "--repeats", "1", "--seeds", "1"]) == 0
    assert {(row["rule"], row["epsilon"]) for row in read(tmp_path / "out")} == set(SETTINGS)
    assert "smallest-0.7-seed0: " in capsys.readouterr().out
