"""A set goes to other code and comes back the same; a card says what it is."""

import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import load as load_images
from small import refused, save, untouched
from torch import Tensor

import ddpp
from ddpp import cli
from ddpp.data.whitening import Whitening
from ddpp.distilled.bare import check_source, write_set
from ddpp.distilled.formation import fold
from ddpp.foundation import files
from ddpp.judging import card
from ddpp.judging.cards import YOURS
from ddpp.judging.opening import PUBLISHED, recognize

ROOT = Path(__file__).parents[1]
REPORT = {
    "distilled": {"final": [40.0, 42.0]},
    "random": {"final": [20.0, 20.0]},
    "device": "cpu",
    "versions": {"torch": "2.11"},
    "commit": "abc",
    "finished": "today",
}


@pytest.fixture(scope="module")
def whitened():
    """Ten sets of photographs, one per class each, in another order than that of the classes."""
    data = ddpp.load_data("cifar10-sample", zca=True, device="cpu")
    real = data.draw(10, 0)
    order = torch.arange(100).view(10, 10).T.flatten()
    return ddpp.DistilledDataset.from_tensors(real.images[order], real.labels[order], 0.02, data)


def test_pixels_for_mtts_names_come_back(whitened, tmp_path):
    written, notes = ddpp.export(whitened, "pt", tmp_path)
    names = ["images_best.pt", "labels_best.pt", "lr_best.pt", "space_best.txt"]
    assert [path.name for path in written] == names
    opened = ddpp.open_set(tmp_path / "images_best.pt", "cifar10-sample", "raw", device="cpu")
    back = opened.distilled
    assert torch.allclose(back.natural(), whitened.natural(), atol=1e-4)
    assert torch.equal(back.labels, whitened.labels)
    assert float(back.alpha) == pytest.approx(0.02)
    assert any("whitened images" in note for note in notes)


def load(path) -> Tensor:
    """As a judge does."""
    return torch.load(path, weights_only=True)


def test_beard_reads_images_and_labels_as_it_standardizes_its_own(whitened, tmp_path):
    ddpp.export(whitened, "beard", tmp_path)
    images, labels = load(tmp_path / "images_best.pt"), load(tmp_path / "labels_best.pt")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in PUBLISHED["cifar10"])
    assert torch.allclose(images * std + mean, whitened.natural(), atol=1e-4)
    assert torch.equal(labels, whitened.labels)
    names = {"images_best.pt", "labels_best.pt", "space_best.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    opened = ddpp.open_set(tmp_path / "images_best.pt", "cifar10-sample", device="cpu")
    assert opened.space == "standardized" and any(
        "as is written beside the images" in note for note in opened.notes
    )


def test_strongly_learned_pixels_come_back_as_they_were(tmp_path):
    """RaT-BPTT's leave 0 to 1 the most, down to -5 and up to 9."""
    stored = ROOT / "results" / "smoke" / "table1" / "cifar10-sample-ipc1-bptt-seed0.safetensors"
    made = ddpp.open_set(stored, device="cpu").distilled
    pixels = made.whitening.invert(made.images)
    assert pixels.max() > 8 and pixels.min() < -5
    images = ddpp.export(made, "pt", tmp_path)[0][0]
    for said in (None, "raw"):
        opened = ddpp.open_set(images, "cifar10-sample", said, device="cpu")
        back = opened.data.whitening.invert(opened.distilled.images)
        assert opened.space == "raw" and torch.allclose(back, pixels, atol=1e-4)
        assert not any("divided by 255" in note for note in opened.notes)
    (tmp_path / "space_best.txt").write_text("row")
    with refused("unknown space 'row'", "did you mean 'raw'"):
        ddpp.open_set(images, "cifar10-sample", device="cpu")


def test_natural_colours_of_learned_sets_are_never_taken_for_standardized(whitened):
    """Also not where they deviate as much, as after thousands of steps of MTT."""
    deviations = []
    for path in sorted((ROOT / "results").rglob("*.safetensors")):
        images = files.Lazy(path, "result", "distilled dataset")["images"]
        if images.shape[1:] != whitened.images.shape[1:]:
            continue
        pixels = whitened.whitening.invert(images)
        deviations.append(float(pixels.std()))
        try:
            assert recognize(pixels)[0] == "raw"
        except ddpp.Error as e:
            assert "it is not certain what the pixels are" in str(e)
    assert sum(one > 0.8 for one in deviations) > 20


def learned(distilled, kind):
    """The set with learned labels: distributions, some of whose entries are 0, or targets."""
    soft = torch.eye(10)[distilled.labels] * 0.7
    soft[:, :3] += 0.1
    return replace(distilled, labels=soft if kind == "cross-entropy" else soft - 0.1, loss=kind)


def test_soft_labels_go_as_logits_and_come_back(whitened, tmp_path):
    soft = learned(whitened, "cross-entropy")
    _, notes = ddpp.export(soft, "pt", tmp_path)
    logits = load(tmp_path / "labels_best.pt")
    assert logits.isfinite().all() and (soft.labels == 0).any()
    assert torch.allclose(logits.softmax(1), soft.labels, atol=1e-6)  # as DATM's code does
    assert any("holds logits" in note for note in notes)
    opened = ddpp.open_set(tmp_path / "images_best.pt", "cifar10-sample", "raw", device="cpu")
    assert torch.allclose(opened.distilled.labels, soft.labels, atol=1e-6)


def test_the_benchmarks_get_hard_labels(whitened, tmp_path):
    _, notes = ddpp.export(learned(whitened, "cross-entropy"), "beard", tmp_path)
    assert torch.equal(load(tmp_path / "labels_best.pt"), whitened.labels)
    assert any("the soft ones are left out" in note for note in notes)
    _, notes = ddpp.export(learned(whitened, "squared error"), "eccv", tmp_path)
    assert any("the learned ones are left out" in note for note in notes)


def test_targets_of_a_regression_are_never_taken_for_soft_labels(whitened, tmp_path):
    targets = learned(whitened, "squared error")
    for kind in ("pt", "beard"):
        with refused("targets of a regression", "export it as compact, webp or hf"):
            ddpp.export(targets, kind, tmp_path / kind)
        assert not (tmp_path / kind).exists()
    parquet = pytest.importorskip("pyarrow.parquet")
    _, notes = ddpp.export(targets, "hf", tmp_path)
    assert any("'target' holds the learned labels, for the squared error" in n for n in notes)
    table = parquet.read_table(tmp_path / "train.parquet")
    assert "soft_label" not in table.column_names
    assert torch.allclose(torch.tensor(table.column("target").to_pylist()), targets.labels)
    text = (tmp_path / "README.md").read_text()
    assert "targets of a regression, for the squared error" in text and "soft" not in text
    kept = ddpp.DistilledDataset.load(tmp_path / "distilled.safetensors")
    assert kept.loss == "squared error" and torch.equal(kept.labels, targets.labels)


def test_a_card_says_what_the_labels_are(whitened):
    assert "hard labels" in card(whitened)
    assert "soft labels" in card(learned(whitened, "cross-entropy"))
    assert "for the squared error" in card(learned(whitened, "squared error"))


def test_the_challenge_reads_one_tensor_sorted_by_class(whitened, tmp_path):
    (path,), notes = ddpp.export(whitened, "eccv", tmp_path)
    images = load(path)
    assert path.name == "cifar10.pt" and images.shape == (100, 3, 32, 32)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in PUBLISHED["cifar10"])
    order = whitened.labels.argsort(stable=True)
    assert torch.allclose(images * std + mean, whitened.natural()[order], atol=1e-4)
    assert not any("10 images per class" in note for note in notes)
    one = ddpp.DistilledDataset.from_tensors(
        whitened.images[:7], whitened.labels[:7], 0.01, ddpp.load_data(device="cpu", zca=True)
    )
    with refused("the same number of images of each class"):
        ddpp.export(one, "eccv", tmp_path)


def test_parquet_holds_pictures_and_names_of_classes(whitened, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    ddpp.export(whitened, "hf", tmp_path)
    table = parquet.read_table(tmp_path / "train.parquet")
    assert table.column("label").to_pylist() == whitened.labels.tolist()
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == list(whitened.classes)
    (first, *_) = table.column("image").to_pylist()
    assert Image.open(io.BytesIO(first["bytes"])).size == (32, 32)
    assert "# 100 images distilled from cifar10-sample" in (tmp_path / "README.md").read_text()
    assert torch.equal(
        ddpp.DistilledDataset.load(tmp_path / "distilled.safetensors").images, whitened.images
    )


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_other_channels_are_no_pictures(channels, npz, tmp_path):
    data = ddpp.load_data(npz(channels=channels), device="cpu")
    made = ddpp.DistilledDataset.from_tensors(*data.draw(1, 0), 0.02, data)
    for kind in ("hf", "webp"):
        with refused(f"images of {channels} channels are no pictures", "as compact"):
            ddpp.export(made, kind, tmp_path / kind)
        assert not (tmp_path / kind).exists()


def test_a_compact_file_is_a_quarter_and_as_good(whitened, tmp_path):
    whitened.save(tmp_path / "whole.safetensors")
    whitened.save(tmp_path / "compact.safetensors", compact=True)
    whole, compact = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("whole", "compact"))
    assert compact < 0.3 * whole
    back = ddpp.DistilledDataset.load(tmp_path / "compact.safetensors")
    assert torch.equal(back.images, whitened.images) and torch.equal(back.alpha, whitened.alpha)
    assert back.whitening.equals(whitened.whitening)
    assert (back.natural() - whitened.natural()).abs().max() < 0.5 / 255
    matrix = back.whitening.tensors()["matrix"]
    assert torch.equal(matrix, matrix.T)
    channels = Whitening("channels", torch.zeros(1, 2, 2), std=torch.ones(1, 1, 1))
    assert channels.compact_tensors().keys() == channels.tensors().keys()


def test_data_whose_constants_are_not_known_say_so(distilled, tmp_path):
    with refused("are not known", "--for pt"):
        ddpp.export(distilled, "beard", tmp_path)
    with refused("unknown kind of export 'zip'", "beard, eccv, pt, hf, compact"):
        ddpp.export(distilled, "zip", tmp_path)


def run_lines(text: str, folder, path="") -> str:
    """Run the lines on a card, with the data at `path`, and then print what they left."""
    code = text.partition("```python\n")[2].partition("```")[0].replace(YOURS, str(path))
    code = code.replace("repeats=1", "repeats=1, width=2, protocol=ddpp.Protocol(epochs=1)")
    code += "\nprint(len(images), len(labels))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_on_a_card_run(whitened, tmp_path):
    write_set(tmp_path / "result.safetensors", whitened)
    out = run_lines(card(whitened, file="result.safetensors"), tmp_path)
    assert "% of the test images are right" in out and "100 100" in out


def test_the_instructions_for_data_of_ones_own_work(npz, tmp_path, capsys):
    path = npz(channels=3)
    data = ddpp.load_data(path, device="cpu")
    real = data.draw(4, 0)
    made = ddpp.DistilledDataset.from_tensors(fold(real.images, 2), real.labels[::4], 0.02, data)
    made = replace(made, formation=2)
    made.save(tmp_path / "distilled.safetensors")
    text = card(made)
    assert YOURS in text and "1 per class, each of 4 pictures" in text
    assert "12 12" in run_lines(text, tmp_path, path)
    words = re.search(r"`ddpp (evaluate .*?)`", text)[1].replace(YOURS, str(path)).split()
    words[1] = str(tmp_path / words[1])
    assert cli.main([*words, "--repeats", "1", "--width", "2", "--protocol.epochs", "1"]) == 0


@pytest.mark.parametrize("size, category", [(999, "n<1K"), (1200, "1K<n<10K")])
def test_a_card_says_how_many_images_there_are(size, category, data):
    images = torch.randn(size, *data.shape)
    labels = torch.arange(size) % 2
    made = ddpp.DistilledDataset.from_tensors(images, labels, 0.02, data)
    assert f"size_categories:\n- {category}\n---" in card(made)


def test_a_card_says_what_was_measured(whitened, tmp_path, capsys):
    write_set(tmp_path / "set.safetensors", whitened)
    (tmp_path / "set.json").write_text(json.dumps(REPORT))
    words = ["show", str(tmp_path / "set.safetensors"), "--card", str(tmp_path / "card.md")]
    assert cli.main(words) == 0
    text = (tmp_path / "card.md").read_text()
    assert "Test accuracy 41.0 ± 1.4 % (mean and deviation of 2 networks)" in text
    assert "random real images gives 20.0 ± 0.0 %" in text
    assert "](set.png)" in text and "ddpp evaluate set.safetensors" in text
    # a report that names the bytes it is of is not quoted for others
    asked = {"sha256": hashlib.sha256((tmp_path / "set.safetensors").read_bytes()).hexdigest()}
    (tmp_path / "set.json").write_text(json.dumps(REPORT | {"asked": asked}))
    assert cli.main(words) == 0 and "41.0" in (tmp_path / "card.md").read_text()
    (tmp_path / "set.json").write_text(json.dumps(REPORT | {"asked": {"sha256": "other"}}))
    assert cli.main(words) == 0
    assert "Nobody wrote down an accuracy" in (tmp_path / "card.md").read_text()
    assert "set.json is of another file" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "set.safetensors"), "--for", "compact"]) == 0
    assert "set-compact/distilled.safetensors" in capsys.readouterr().out


def test_no_other_file_is_replaced(distilled, whitened, tmp_path, capsys):
    file = tmp_path / "distilled.safetensors"
    whitened.save(file)
    there = ["--out", str(tmp_path)]
    with untouched(file):
        for kind in ("compact", "hf"):
            assert cli.main(["export", str(file), "--for", kind, *there]) == 1
            assert f"{file} holds something else" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        assert cli.main(["export", str(file), "--for", "pt", *there]) == 0
        assert cli.main(["export", str(file), "--for", "compact"]) == 0
        assert cli.main(["export", str(file), "--for", "compact"]) == 0  # the same again
    assert (tmp_path / "distilled-compact" / file.name).exists()
    kept = tmp_path / "images_best.pt"
    with untouched(kept), refused("images_best.pt holds something else", "move it away"):
        ddpp.export(distilled, "pt", tmp_path)


def test_a_place_where_nothing_can_be_written_gets_a_sentence(distilled, tmp_path):
    (tmp_path / "file").touch()
    for kind in ("webp", "compact", "pt"):
        for folder in ("file", "file/more"):
            with refused(f"cannot write {tmp_path / folder}"):
                ddpp.export(distilled, kind, tmp_path / folder)


def test_pictures_of_another_set_do_not_get_among_these(data, tmp_path):
    more, fewer = (
        ddpp.DistilledDataset.from_tensors(*data.draw(ipc=ipc, seed=0), 0.1, data) for ipc in (3, 1)
    )
    assert more.export_png(tmp_path / "a") == more.export_png(tmp_path / "a") == 6
    with refused("has pictures of something else", "choose another folder"):
        fewer.export_png(tmp_path / "a")
    others = ddpp.DistilledDataset.from_tensors(*data.draw(ipc=3, seed=1), 0.1, data)
    with untouched(*(tmp_path / "a").rglob("*.png")), refused("has pictures of something else"):
        others.export_png(tmp_path / "a")
    first = next((tmp_path / "a").rglob("*.png"))
    first.write_bytes(first.read_bytes()[:40])  # cut short by a kill
    assert more.export_png(tmp_path / "a") == 6
    folded = replace(fewer, formation=2)
    assert folded.export_png(tmp_path / "b") == 8


def test_a_set_is_not_replaced_by_its_picture_or_page(data, tmp_path, capsys):
    path = tmp_path / "set.safetensors"
    ddpp.DistilledDataset.from_tensors(*data.draw(ipc=1, seed=0), 0.1, data).save(path)
    for option in ("--card", "--progress", "--out"):
        with untouched(path):
            assert cli.main(["show", str(path), option, str(path)]) == 1
        assert "is the set itself" in capsys.readouterr().err
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    with untouched(readme), refused("README.md holds something else"):
        ddpp.export(ddpp.DistilledDataset.load(path), "hf", tmp_path)


def test_a_sheet_is_not_joined_with_another_preprocessing(tmp_path):
    path = save(tmp_path / "mine.npz")
    other = load_images(save(tmp_path / "other.npz", x_train=np.load(path)["x_train"] // 2))
    given = load_images(path, whitening=other.whitening)
    made = ddpp.DistilledDataset.from_tensors(*given.draw(ipc=1, seed=0), 0.1, given)
    with refused("or from other preprocessing"):
        check_source(path, made.provenance, load_images(path))


def test_only_the_beginning_of_a_picture_is_replaced(data, tmp_path):
    made = ddpp.DistilledDataset.from_tensors(*data.draw(ipc=1, seed=0), 0.1, data)
    made.export_png(tmp_path)
    first, *_ = sorted(tmp_path.rglob("*.png"))
    whole = first.read_bytes()
    for kept in (0, 3, 8, 20, len(whole) // 2, len(whole) - 1):
        first.write_bytes(whole[:kept])
        assert made.export_png(tmp_path) == len(made)
        assert first.read_bytes() == whole
    for other in (b"my notes", b"GIF89a", whole[:50] + b"?" + whole[51:]):
        first.write_bytes(other)
        with untouched(first), refused("pictures of something else", str(first), "move them away"):
            made.export_png(tmp_path)
    first.unlink()
    first.mkdir()
    with refused("pictures of something else"):
        made.export_png(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        [1],
        None,
        "text",
        {"set": "CIFAR"},
        {"asked": [1]},
        {"distilled": 1},
        {"distilled": None, "random": None},
        REPORT | {"random": [20.0]},
        REPORT | {"distilled": {}},
        REPORT | {"distilled": {"final": "high"}},
        REPORT | {"versions": "2.11"},
        {key: value for key, value in REPORT.items() if key != "commit"},
    ],
)
def test_a_file_of_somebody_elses_beside_a_set_is_no_report(other, data, tmp_path, capsys):
    path, beside = tmp_path / "set.safetensors", tmp_path / "set.json"
    ddpp.DistilledDataset.from_tensors(*data.draw(ipc=1, seed=0), 0.1, data).save(path)
    beside.write_text(json.dumps(other))
    for words in (["show", "--card", str(tmp_path / "card.md")], ["export", "--for", "compact"]):
        with untouched(beside):
            assert cli.main([words[0], str(path), *words[1:]]) == 1
        assert f"{beside} is no report, but another file: move it away" in capsys.readouterr().err


def test_a_report_without_a_comparison_has_no_accuracy_for_a_card(data, tmp_path):
    path, page = tmp_path / "set.safetensors", tmp_path / "card.md"
    ddpp.DistilledDataset.from_tensors(*data.draw(ipc=1, seed=0), 0.1, data).save(path)
    alone = {key: value for key, value in REPORT.items() if key != "random"}
    for known in ({"mean": 1}, alone):
        (tmp_path / "set.json").write_text(json.dumps(known))
        assert cli.main(["show", str(path), "--card", str(page)]) == 0
        assert "Nobody wrote down an accuracy" in page.read_text()
