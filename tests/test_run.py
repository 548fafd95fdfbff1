"""The whole product from the command line, on data of one's own and on the bundled sample."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpp import (
    DistillConfig,
    DistilledDataset,
    TeacherConfig,
    evaluate,
    load_data,
    recipe,
    train_teachers,
)
from ddpp.cli import main
from ddpp.data.sources import SAMPLE, unpack_sample
from ddpp.experiments.recipes import PAPER
from tools.bench import bench

USING = Path(__file__).parents[1] / "book" / "using.md"


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.slow
def test_one_channel_28x28_of_8_classes_goes_all_the_way(npz, tmp_path, capsys):
    names = np.array([f"kind {i}" for i in range(8)])
    data = npz(classes=8, size=28, per_class=12)
    with np.load(data) as arrays:
        np.savez(data, **arrays, classes=names)
    small = """--teachers.count 2 --teachers.epochs 3 --teachers.batch 8
        --teachers.network.width 8""".split()
    out = tmp_path / "runs" / "mine.safetensors"
    common = ["--data", str(data), "--device", "cpu", *small]
    assert main(["teachers", *common, "--out", str(out.parent)]) == 0
    assert "2 teachers of 3 epochs are in" in capsys.readouterr().out
    steps = (
        "--steps 10 --student-steps 3 --image-lr 10 --protocol.epochs 20 --repeats 2 --best-on-test"
    ).split()
    assert main(["distill", *common, *steps, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "distillation gains" in printed
    assert "best on the test set" in printed
    assert len(list(out.parent.glob("teachers-*"))) == 1  # those trained before were taken
    again = ["evaluate", str(out), "--device", "cpu", "--repeats", "2", "--protocol.epochs", "20"]
    assert main(again) == 1
    assert "say where it is with --data" in capsys.readouterr().err
    assert main([*again, "--data", str(data)]) == 0
    assert "final iterate:" in capsys.readouterr().out
    picture, progress, folder = (tmp_path / name for name in ("all.png", "progress.png", "images"))
    show = [
        "show",
        str(out),
        "--out",
        str(picture),
        "--progress",
        str(progress),
        "--folder",
        str(folder),
    ]
    assert main(show) == 0
    assert size_of(picture)[0] > 8 * 28
    assert size_of(progress)[0] > 300
    assert sorted(p.name for p in folder.iterdir()) == [f"{i}_kind_{i}" for i in range(8)]
    assert size_of(folder / "7_kind_7" / "000.png") == (28, 28)

    distilled = DistilledDataset.load(out)
    assert (distilled.ipc, len(distilled), distilled.classes) == (1, 8, tuple(names))
    image, label = next(iter(torch.utils.data.DataLoader(distilled, batch_size=4)))
    assert (image.shape, label.tolist()) == ((4, 1, 28, 28), [0, 1, 2, 3])
    provenance = distilled.provenance
    assert [made["versions"]["torch"] for made in provenance["made_on"]] == [torch.__version__]
    assert provenance["config"]["epsilon"] == 0.1
    assert provenance["teachers"]["data"]["sha256"] == load_data(data, device="cpu").sha256
    assert provenance["made_on"][0]["device"].startswith("cpu")
    assert provenance["made_on"][0]["engine"] == "autograd"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke profile on the bundled sample with one teacher and half the steps; returns the file
    and the report.
    """
    out = tmp_path_factory.mktemp("smoke") / "set.safetensors"
    short = (
        "--steps 40 --iterates 2 --repeats 3 --teachers.count 1 --device cpu --protocol.epochs 100"
    ).split()
    assert main(["distill", "--profile", "smoke", *short, "--out", str(out)]) == 0
    return out, json.loads(out.with_suffix(".json").read_text())


def test_distilled_images_beat_the_real_ones_they_started_from(smoke):
    _, report = smoke
    assert np.mean(report["distilled"]["final"]) > np.mean(report["random"]["final"]) + 6
    assert report["distilled"]["selected_step"] in (20, 40)
    assert report["recipe"]["distill"]["rule"] == "signed"


def test_the_six_lines_reach_the_accuracy_of_evaluate(smoke):
    """With safetensors and torch only: no name of ddpp is in them."""
    out, report = smoke
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", USING.read_text(), re.S)
        if "load_file" in block
    )
    assert "ddpp" not in code.replace("smoke.safetensors", "")
    assert (
        len(
            [
                line
                for line in code.splitlines()
                if line and not line.startswith(("import", "from", "#"))
            ]
        )
        <= 6
    )
    arrays = unpack_sample()
    x = torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2) / 255
    y = torch.from_numpy(arrays["y_test"]).long()
    scores = []
    for seed in range(3):
        torch.manual_seed(seed)
        from ddpp import ConvNet

        scope = {"net": ConvNet(width=32), "x": x, "y": y}
        exec(code.replace("runs/smoke.safetensors", str(out)), scope)
        scores.append(100 * float(scope["accuracy"]))
    final = report["distilled"]["final"]
    spread = np.hypot(np.std(scores, ddof=1), np.std(final, ddof=1))
    # without augmentation and the drop of the rate it is two points lower: 28.4 % of eight
    # networks, here with 30.3 %
    assert abs(np.mean(scores) - np.mean(final)) < 2 + max(2 * spread, 2.5)
    assert np.mean(scores) > np.mean(report["random"]["final"]) + 8


@pytest.mark.slow
def test_the_command_line_says_what_it_lacks():
    code = "import sys; sys.modules['tyro'] = None; import ddpp; import ddpp.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr
        == "the command line needs the package tyro: install it with 'pip install tyro'\n"
    )


def test_evaluation_is_a_function_of_its_seed(npz):
    data = load_data(npz(), device="cpu")
    from ddpp.baselines.selection import random
    from ddpp.evaluating import Protocol

    real = random(data, 2, {"name": "convnet", "width": 4, "depth": 2})
    run = lambda seed: evaluate(
        real, data, repeats=2, protocol=Protocol(epochs=3), seed=seed, progress=False
    )
    assert run(0) == run(0)
    assert run(0).selected is None  # real images have no iterates to choose from


def test_the_papers_recipes_are_the_papers():
    for (name, ipc), (j, k, start, *_) in PAPER.items():
        settings = recipe("paper", name, ipc)
        assert (settings.distill.epsilon, settings.distill.rule, settings.distill.steps) == (
            0.1,
            "signed",
            5000,
        )
        assert (settings.teachers.count, settings.teachers.epochs) == (200, 50)
        assert settings.stored_teachers().epochs == start - 1 + k
        assert settings.distill.student_steps == j
    # sizes between take the smaller one's
    assert recipe("paper", "cifar10", 7).distill.student_steps == 50
    assert recipe("colab", "cifar100", 10).distill.image_lr == 1000
    assert recipe("smoke").stored_teachers().epochs == 3


@pytest.mark.slow
def test_the_bench_compares_the_engines(capsys):
    result = bench((1, 2), width=8, images=4, rounds=1, device="cpu")
    printed = capsys.readouterr().out
    assert "over autograd's" in printed
    engines = ("autograd", "stored", "adjoint")
    rows = [(row["J"], row["engine"]) for row in result["rows"]]
    assert rows == [(j, engine) for j in (1, 2) for engine in engines]
    assert all(("time_ratio" in row) == (row["engine"] != "autograd") for row in result["rows"])
    assert all(row["seconds"] > 0 and row["total"] > 0 for row in result["rows"])


def test_figures_draw_what_a_run_recorded(smoke):
    from ddpp.book import figures

    distilled = DistilledDataset.load(smoke[0])
    figures.use_style()
    steps = figures.history(distilled)
    assert len(steps.axes[0].lines[0].get_xdata()) == 40
    names = list(
        load_data(device="cpu", zca=False).network(recipe("smoke").teachers.network).shapes
    )
    assert len(figures.layers(distilled, names).axes[0].get_yticklabels()) == len(names)
    assert distilled._repr_png_().startswith(b"\x89PNG")


def test_only_what_a_run_can_use_is_trained(npz, tmp_path):
    settings = recipe("smoke")
    assert (settings.teachers.epochs, settings.stored_teachers().epochs) == (6, 3)
    assert DistillConfig().max_start_epoch == 2
    data = load_data(npz(), device="cpu")
    from ddpp import NetworkConfig

    config = TeacherConfig(count=1, epochs=1, batch=30, network=NetworkConfig(width=4, depth=1))
    in_memory = train_teachers(data, config, progress=False)
    assert in_memory.snapshot(0, 0).shape == (in_memory.network.size,)
    assert not torch.equal(in_memory.snapshot(0, 0), in_memory.snapshot(0, 1))
    assert SAMPLE.exists()
