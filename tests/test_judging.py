"""Anybody's distilled set is read, understood and tested; what would run code is not opened."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import CONFIG, NETWORK, TEACHERS, arrays, load, refused, save, untouched
from torch import Tensor

import ddpp
from ddpp import cli
from ddpp.baselines import bptt, dm, selection, tgdd
from ddpp.data.sources import unpack_sample
from ddpp.distilled.bare import write_set
from ddpp.distilled.pictures import as_folder
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.judging import read_tensors, verdicts
from ddpp.judging.opening import PUBLISHED, recognize
from ddpp.judging.verdicts import HEAD, RATES, report

QUICK = ddpp.Protocol(epochs=2)
PLACES = {"device": "cpu", "progress": False, "say": lambda line: None}


@pytest.fixture(scope="module")
def sample():
    """Pixels in [0, 1] of one photograph per class, and their labels."""
    data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    real = data.draw(1, 0)
    return data.whitening.invert(real.images).clamp(0, 1), real.labels


@pytest.fixture(scope="module")
def whitened(sample):
    whitening = ddpp.load_data("cifar10-sample", zca=True, device="cpu", validation=0).whitening
    return whitening.apply(sample[0])


def open_sample(path, space=None) -> ddpp.judging.Opened:
    return ddpp.open_set(path, "cifar10-sample", space, device="cpu")


def as_saved(value, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


# what other codes save


def test_images_and_labels_of_mtt(whitened, sample, tmp_path):
    path = as_saved(whitened, tmp_path / "images_best.pt")
    as_saved(sample[1], tmp_path / "labels_best.pt")
    opened = open_sample(path)
    assert (opened.space, opened.rated) == ("whitened", False)
    assert torch.equal(opened.distilled.images, whitened)
    assert torch.equal(opened.distilled.labels, sample[1])
    assert torch.allclose(opened.distilled.natural(), sample[0], atol=1e-3)
    assert any("labels_best.pt" in note for note in opened.notes)


def test_logits_and_the_learning_rate_of_datm(whitened, tmp_path):
    logits = torch.randn(10, 10, generator=generator(0)) * 3
    path = as_saved(whitened, tmp_path / "images_best.pt")
    as_saved(logits, tmp_path / "labels_best.pt")
    as_saved(torch.tensor(0.03, requires_grad=True), tmp_path / "lr_best.pt")
    opened = open_sample(path)
    assert opened.rated and float(opened.distilled.alpha) == pytest.approx(0.03)
    assert torch.allclose(opened.distilled.labels, logits.softmax(1))
    assert any("softmax" in note for note in opened.notes)


def test_the_experiments_of_dc_with_its_numbers_of_numpy(sample, tmp_path):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in PUBLISHED["cifar10"])
    images = (sample[0] - mean) / std
    content = {"data": [[images, sample[1]]] * 2, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    opened = open_sample(as_saved(content, tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt"))
    assert opened.space == "standardized"
    assert torch.allclose(opened.distilled.natural(), sample[0], atol=1e-5)
    assert any("the first of 2 experiments" in note for note in opened.notes)
    # the test images lie in the same space
    raw = opened.data.whitening.invert(opened.data.test.images)
    assert raw.min() > -1e-4 and raw.max() < 1 + 1e-4


@pytest.mark.parametrize("kind", ["bare", "npz", "uint8", "folder", "dict", "tuple", "last"])
def test_pixels_in_many_forms(kind, sample, tmp_path):
    images, labels = sample
    bytes_ = (images * 255).round().byte()
    made = {
        "bare": lambda: as_saved(images, tmp_path / "mine.pt"),
        "uint8": lambda: as_saved({"images": bytes_, "labels": labels}, tmp_path / "mine.pt"),
        "dict": lambda: as_saved({"x": images, "y": labels, "lr": 0.02}, tmp_path / "mine.pth"),
        "tuple": lambda: as_saved((images, labels.float()), tmp_path / "mine.pt"),
        "last": lambda: as_saved((bytes_.permute(0, 2, 3, 1), labels), tmp_path / "mine.pt"),
        "npz": lambda: save_npz(tmp_path / "mine.npz", images=images, labels=labels),
        "folder": lambda: save_folder(tmp_path / "mine", images, labels),
    }[kind]
    opened = open_sample(made())
    assert opened.space == "raw" and opened.rated == (kind == "dict")
    assert torch.allclose(opened.distilled.natural(), images, atol=1 / 255)
    assert torch.equal(opened.distilled.labels, labels)


def save_npz(path, **tensors: Tensor):
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    return path


def save_folder(path, images, labels):
    data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    ddpp.DistilledDataset.from_tensors(images, labels, 0.01, data, raw=True).export_png(path)
    return path


def test_files_of_ddpp_are_opened_with_the_data_that_they_name(tmp_path):
    data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    teachers = ddpp.train_teachers(
        data, ddpp.TeacherConfig(count=1, epochs=3, network=NETWORK), progress=False
    )
    checkpoint = tmp_path / "set.safetensors.checkpoint"
    made = ddpp.distill(data, teachers, CONFIG, progress=False, checkpoint=checkpoint)
    made.save(tmp_path / "set.safetensors")
    write_set(tmp_path / "result.safetensors", made)
    for name in ("set.safetensors", "result.safetensors", checkpoint.name):
        opened = ddpp.open_set(tmp_path / name, device="cpu")
        assert torch.equal(opened.distilled.images, made.images)
        assert opened.distilled.network == made.network
        assert opened.distilled.whitening.equals(data.whitening)
        assert opened.rated and opened.data.name == "cifar10-sample"


@pytest.mark.parametrize("method", ["tgdd", "dm", "bptt"])
def test_a_result_says_again_what_it_began_with(method, npz, tmp_path):
    path, quiet = npz(channels=3), Saving(progress=False)
    data = ddpp.load_data(path, zca=False, device="cpu")
    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    few = {"steps": 2, "iterates": 1, "alpha": 0.05}
    folded = tgdd.TGDDConfig(formation=2, batch_real=8, epochs=3, init="real", **few)
    made = {
        "tgdd": lambda: tgdd.distill(data, teachers, folded, quiet),
        "dm": lambda: dm.distill(data, NETWORK, dm.DMConfig(batch_real=8, **few), quiet),
        "bptt": lambda: bptt.distill(
            data, NETWORK, bptt.BPTTConfig(window=2, max_updates=4, target=9, **few), quiet
        ),
    }[method]()
    write_set(tmp_path / "result.safetensors", made)
    again = ddpp.open_set(tmp_path / "result.safetensors", path, device="cpu").distilled
    assert list(again.iterates) == list(made.iterates) == [0, 2]
    for step, (images, alpha) in made.iterates.items():
        assert torch.equal(again.iterates[step][0], images)
        assert torch.equal(again.iterates[step][1], alpha)


def test_a_result_of_a_stopped_run_ends_where_it_was_stopped(npz, tmp_path):
    path = npz(channels=3)
    data = ddpp.load_data(path, zca=False, device="cpu")
    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    made = ddpp.distill(data, teachers, CONFIG, progress=False, on_step=lambda run: True)
    write_set(tmp_path / "result.safetensors", made)
    again = ddpp.open_set(tmp_path / "result.safetensors", path, device="cpu").distilled
    assert list(again.iterates) == list(made.iterates) == [0, 1]


def test_a_set_of_data_of_ones_own_asks_where_they_are(tmp_path):
    data = load(save(tmp_path / "mine.npz"))
    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    made = ddpp.distill(data, teachers, CONFIG, progress=False)
    made.save(tmp_path / "set.safetensors")
    with refused("was distilled from 'mine", "say where it is with --data"):
        ddpp.open_set(tmp_path / "set.safetensors")
    opened = ddpp.open_set(tmp_path / "set.safetensors", tmp_path / "mine.npz", device="cpu")
    assert torch.equal(opened.distilled.images, made.images)


# what is not certain, or not a set


def test_the_space_is_asked_for_where_it_is_not_certain(tmp_path):
    noise = torch.randn(10, 3, 32, 32, generator=generator(0))
    path = as_saved(noise, tmp_path / "noise.pt")
    with refused("not certain what the pixels are", "--space raw, standardized or whitened"):
        open_sample(path)
    assert open_sample(path, "whitened").space == "whitened"
    with refused("unknown space 'white'", "did you mean 'whitened'?"):
        open_sample(path, "white")


def test_the_space_of_real_images_is_recognized(sample, whitened):
    images = sample[0]
    assert recognize((images * 255).byte())[0] == recognize(images)[0] == "raw"
    assert recognize(whitened)[0] == "whitened"
    standard = (images - images.mean()) / images.std()
    assert recognize(standard)[0] == recognize(3 * standard)[0] == "standardized"
    # no space has such values: learned ones of 0 to 255 that leave it, and 16 bits
    for strange in (60 * standard, 257 * (255 * images).round()):
        with refused("not certain what the pixels are", "--space raw"):
            recognize(strange)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def test_a_file_that_would_run_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("images_best.pt", Hostile()), ("mine.pt", {"images": Hostile()})):
        with refused("was not opened", "would call", "system"):
            read_tensors(as_saved(content, tmp_path / name))
    as_saved(torch.zeros(2, 1, 8, 8), tmp_path / "images_best.pt")
    with refused("labels_best.pt was not opened"):
        as_saved(Hostile(), tmp_path / "labels_best.pt")
        read_tensors(tmp_path / "images_best.pt")
    np.savez(tmp_path / "mine.npz", images=np.array([Hostile()], dtype=object))
    with refused("an .npz of numbers alone"):
        read_tensors(tmp_path / "mine.npz")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("part", [0, 10, 1000, -100])
def test_a_file_cut_short_is_refused(part, tmp_path):
    path = as_saved({"images": torch.rand(10, 3, 32, 32)}, tmp_path / "mine.pt")
    path.write_bytes(path.read_bytes()[:part])
    with refused("mine.pt"):
        read_tensors(path)
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04" + bytes(part % 100))
    with refused("mine.npz cannot be read"):
        read_tensors(tmp_path / "mine.npz")


X, Y = torch.rand(10, 3, 32, 32, generator=generator(1)), torch.arange(10)


@pytest.mark.parametrize(
    "content, words",
    [
        (X.where(X < 0.9, torch.nan), ["not finite"]),
        (X[0, 0], ["holds a tensor (32, 32)", "(N, C, S, S)"]),
        (X[:0], ["at least one"]),
        (X[..., :16], ["(10, 3, 32, 16)"]),
        (X[..., :16, :16], ["are 3x16x16", "are 3x32x32"]),
        (X[:7], ["7 images are not the same number for each of 10 classes", "give the labels"]),
        ((X, Y[:9]), ["10 images and labels (9,)"]),
        ((X, Y + 1), ["the labels go from 1 to 10", "10 classes, from 0"]),
        ((X, Y + 0.5), ["no whole numbers"]),
        ((X, torch.rand(10, 7)), ["(10, 7)", "(10, 10)"]),
        ((X, torch.full((10, 10), torch.inf)), ["not finite"]),
        ({"weights": X}, ["no images among its entries (weights)", "name them 'images'"]),
        ({"data": []}, ["holds an empty list"]),
        ({"images": X, "lr": torch.ones(3)}, ["the learning rate in", "save a single number"]),
        ([X, Y, X, Y], ["a list of 4 things"]),
        ("hello", ["holds a str"]),
        ({"images": X, "labels": Y, "lr": -1.0}, ["alpha is", "one positive number"]),
        ({"images": X, "labels": Y, "lr": 0}, ["alpha is 0", "one positive number"]),
    ],
)
def test_what_is_no_set_gets_a_sentence(content, words, tmp_path):
    path = as_saved(content, tmp_path / "mine.pt")
    with refused(*words):
        open_sample(path)


@pytest.mark.parametrize(
    "kind, word",
    [
        (Tensor.to_sparse, "torch.float32, torch.sparse_coo"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "torch.quint8"),
        (lambda x: x.to("meta"), "on the device meta"),
        (lambda x: x + 1j, "torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch has several about these
def test_tensors_that_are_no_arrays_of_numbers_get_a_sentence(kind, word, tmp_path):
    labels = torch.eye(10)
    for content, what in (((kind(X), labels), "images"), ((X, kind(labels)), "labels")):
        with refused(f"the {what} in", word, "save real numbers as a dense tensor"):
            read_tensors(as_saved(content, tmp_path / "mine.pt"))


def test_a_path_or_folder_that_is_none_gets_a_sentence(tmp_path, sample):
    for name in ("nowhere.pt", "nowhere.safetensors"):
        with refused("there is no file", "check the path"):
            open_sample(tmp_path / name)
    (tmp_path / "mine.txt").write_text("hello")
    with refused("not a file of ddpp"):
        open_sample(tmp_path / "mine.txt")
    with refused("of no kind that is known", "a .pt of tensors"):
        read_tensors(tmp_path / "mine.txt")
    with refused("give the file of the images"):
        open_sample(as_saved(sample[1], tmp_path / "labels_best.pt"))
    with refused("does not say what data it stands for", "--data"):
        ddpp.open_set(as_saved(sample[0], tmp_path / "mine.pt"))
    save_folder(tmp_path / "mine", *sample)
    (tmp_path / "mine" / "0_airplane").rename(tmp_path / "mine" / "0_zeppelin")
    with refused("'zeppelin' is no class of the data", "airplane, automobile"):
        open_sample(tmp_path / "mine")


# verdicts


def test_sets_are_judged_beside_as_many_real_images(tmp_path, whitened, sample):
    mine = as_saved({"images": sample[0], "labels": sample[1], "lr": 0.02}, tmp_path / "mine.pt")
    best = as_saved(whitened, tmp_path / "images_best.pt")
    options = PLACES | {"data": "cifar10-sample", "width": 4, "repeats": 2, "protocol": QUICK}
    judged = ddpp.judge(
        mine, best, architectures=("convnet", "alexnet"), folder=tmp_path / "out", **options
    )
    assert [one.chosen for one in judged] == [False, True]
    assert judged[0].alpha == pytest.approx(0.02)
    assert {round(rate, 6) for rate in (judged[1].alpha, judged[1].random_alpha)} <= {*RATES}
    assert judged[0].random_alpha == pytest.approx(selection.LEARNING_RATE)
    for one in judged:
        assert list(one.accuracies) == list(one.random) == ["convnet", "alexnet"]
        assert all(len(values) == 2 for values in one.accuracies.values())
    # the same networks are not trained again
    before = json.loads((tmp_path / "out" / "scores.json").read_text())
    again = ddpp.judge(mine, folder=tmp_path / "out", architectures="convnet", **options)
    assert again[0].accuracies["convnet"] == judged[0].accuracies["convnet"]
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == before


def test_photographs_gain_nothing_over_photographs_when_a_rate_is_chosen(npz, tmp_path):
    path = npz(channels=3, per_class=40)
    data = ddpp.load_data(path, zca=False, device="cpu", validation=0.1)
    real = selection.random(data, 2, {}, seed=0)  # the draw that `judge` compares with
    content = {"images": data.whitening.invert(real.images).clamp(0, 1), "labels": real.labels}
    where = {"data": path, "space": "raw", "width": 4, "repeats": 2, "folder": tmp_path / "out"}
    protocol = ddpp.Protocol(epochs=12)
    file = as_saved(content, tmp_path / "real.pt")
    (one,) = ddpp.judge(file, protocol=protocol, **where, **PLACES)
    assert one.chosen and one.alpha == one.random_alpha != selection.LEARNING_RATE
    assert one.accuracies["convnet"] == pytest.approx(one.random["convnet"])
    (line,), rate = one.lines(), f"{one.alpha:.4g} (chosen)"
    row = dict(zip(HEAD, line, strict=True))
    assert row["learning rate"] == row["their learning rate"] == rate and row["gain"] == "+0.0"
    report([one], tmp_path / "out", torch.device("cpu"))
    (stored,) = json.loads((tmp_path / "out" / "judged.json").read_text())["sets"]
    assert stored["random_alpha"] == one.random_alpha
    assert (tmp_path / "out" / "judged.csv").read_text().count(rate) == 2


def test_of_each_class_as_many_real_images_are_drawn_as_the_set_has(npz, tmp_path, monkeypatch):
    path = npz(channels=3)
    drawn, draw = [], ddpp.ImageData.draw

    def noted(*asked):
        drawn.append(draw(*asked))
        return drawn[-1]

    monkeypatch.setattr(ddpp.ImageData, "draw", noted)
    options = {"data": path, "space": "raw", "width": 4, "repeats": 1, "protocol": QUICK}
    images, labels = torch.rand(5, 3, 12, 12), torch.tensor([2, 0, 0, 0, 2])
    soft = torch.eye(3)[torch.tensor([0, 0, 0, 1, 0])]  # of five images the labels say too little
    for given, counts in ((labels, [3, 0, 2]), (soft, [2, 2, 1])):
        content = {"images": images, "labels": given, "lr": 0.02}
        file = as_saved(content, tmp_path / "uneven.pt")
        ddpp.judge(file, folder=tmp_path / "out", **options, **PLACES)
        assert drawn[-1].labels.bincount(minlength=3).tolist() == counts


def test_without_held_out_images_no_learning_rate_is_chosen(npz, tmp_path):
    path = npz(channels=3, per_class=5)
    said, content = [], {"images": torch.rand(3, 3, 12, 12), "labels": torch.arange(3)}
    options = {"data": path, "space": "raw", "width": 4, "repeats": 1, "protocol": QUICK}
    where = {"folder": tmp_path / "out", **options, **PLACES, "say": said.append}
    (one,) = ddpp.judge(as_saved(content, tmp_path / "few.pt"), **where)
    assert not one.chosen and one.lines()[0][4] == one.lines()[0][8] == "0.01"
    assert one.notes[-1] == "no learning rate, and no held-out images to choose it on: 0.01"
    assert any(one.notes[-1] in line for line in said)


def test_the_verdict_is_that_of_evaluate(tmp_path, sample):
    content = {"images": sample[0], "labels": sample[1], "lr": 0.02}
    path = as_saved(content, tmp_path / "mine.pt")
    options = {"width": 4, "repeats": 2, "protocol": QUICK}
    (one,) = ddpp.judge(path, data="cifar10-sample", folder=tmp_path / "out", **PLACES, **options)
    opened = open_sample(path)
    right = ddpp.evaluate(opened.distilled, opened.data, progress=False, **options)
    assert one.accuracies["convnet"] == right.final


def test_the_command_writes_a_table_and_a_picture(tmp_path, sample, capsys):
    path = as_saved({"images": sample[0], "lr": 0.02}, tmp_path / "mine.pt")
    out = tmp_path / "judged"
    words = f"judge {path} --data cifar10-sample --width 2 --repeats 1 --protocol.epochs 1"
    assert cli.main([*words.split(), "--device", "cpu", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no labels: taken as sorted by class" in said and "random real images" in said
    row = (out / "judged.csv").read_text().splitlines()[1]
    assert row.startswith(f"{tmp_path.name}/mine.pt,cifar10-sample,10,raw")
    (row,) = json.loads((out / "judged.json").read_text())["sets"]
    assert row["space"] == "raw" and len(row["accuracies"]["convnet"]) == 1
    assert (out / "judged.png").read_bytes().startswith(b"\x89PNG")
    other = as_saved({"images": sample[0].flip(0), "lr": 0.02}, tmp_path / "other.pt")
    with untouched(*out.iterdir()):
        command = ["judge", str(other), *words.split()[2:], "--device", "cpu", "--out", str(out)]
        assert cli.main(command) == 1
    assert "mine.pt, which would be lost: ask for them, too" in capsys.readouterr().err
    assert cli.main(["judge", str(tmp_path / "nowhere.pt"), "--data", "cifar10-sample"]) == 1
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("space", ["raw", None])
def test_pixels_of_8_bits_are_brought_to_1_whatever_their_type(npz, tmp_path, kind, space):
    path = npz(channels=3)
    raw = np.load(path)["x_train"][::20].transpose(0, 3, 1, 2).copy()
    torch.save(torch.from_numpy(raw), tmp_path / "bytes.pt")
    torch.save(torch.from_numpy(raw).to(kind), tmp_path / "numbers.pt")
    opened = ddpp.open_set(tmp_path / "numbers.pt", path, space, device="cpu")
    expected = ddpp.open_set(tmp_path / "bytes.pt", path, "raw", device="cpu")
    assert opened.space == "raw"
    assert torch.equal(opened.distilled.images, expected.distilled.images)
    assert "values from 0 to 255: divided by 255" in opened.notes


def test_bytes_are_neither_standardized_nor_whitened(npz, tmp_path):
    path = npz(channels=3)
    raw = np.load(path)["x_train"][::20].transpose(0, 3, 1, 2).copy()
    torch.save(torch.from_numpy(raw), tmp_path / "bytes.pt")
    with refused("are bytes, which are raw, not whitened", "--space raw"):
        ddpp.open_set(tmp_path / "bytes.pt", path, "whitened", device="cpu")


def test_learned_pixels_that_leave_0_to_1_stay_as_they_are(npz, tmp_path):
    path, images = npz(channels=3), 3 * torch.rand(3, 3, 12, 12) - 1
    torch.save(images, tmp_path / "wide.pt")
    opened = ddpp.open_set(tmp_path / "wide.pt", path, "raw", device="cpu")
    back = opened.data.whitening.invert(opened.distilled.images)
    assert torch.allclose(back, images, atol=1e-5)


def test_folders_of_grey_pictures_and_of_names_with_blanks_are_read(npz, tmp_path):
    arrays, path = np.load(npz()), tmp_path / "named.npz"
    np.savez(path, **arrays, classes=np.array(["red fox", "cat", "3 dogs"]))
    data = ddpp.load_data(path, zca=False, device="cpu")
    real = selection.random(data, 2, {}, 0)
    real.export_png(tmp_path / "pictures")
    opened = ddpp.open_set(tmp_path / "pictures", path, "raw", device="cpu")
    assert torch.equal(opened.distilled.labels, real.labels)
    back, given = (data.whitening.invert(x) for x in (opened.distilled.images, real.images))
    assert torch.allclose(back, given, atol=0.01)


def test_pixels_from_minus_one_to_one_are_refused_and_dark_ones_are_not_whitened(tmp_path):
    data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    raw = data.whitening.invert(data.draw(ipc=5, seed=0).images).clamp(0, 1)
    signed = raw * 2 - 1
    with refused("the pixels go from -1 to 1", "(images + 1) / 2"):
        recognize(signed)
    with refused("it is not certain"):
        recognize(raw * 0.4 - 0.005)
    strokes = (torch.rand(20, 1, 28, 28, generator=generator(0, "strokes")) < 0.1).float()
    for learned in (0.05, 0.2):
        noise = learned * torch.randn(strokes.shape, generator=generator(0, "noise"))
        with refused("it is not certain"):
            recognize(strokes + noise)
    torch.save(
        {"images": signed, "labels": torch.arange(10).repeat_interleave(5)}, tmp_path / "a.pt"
    )
    with refused("the pixels go from -1 to 1"):
        ddpp.open_set(tmp_path / "a.pt", "cifar10-sample", "raw")


def test_targets_of_a_regression_and_images_of_16_bits_are_refused(tmp_path):
    labels = F.one_hot(torch.arange(10), 10).float() - 0.1
    torch.save({"images": torch.rand(10, 3, 32, 32), "labels": labels}, tmp_path / "a.pt")
    with refused("add up to 0 for each image", "targets of a regression"):
        ddpp.open_set(tmp_path / "a.pt", "cifar10-sample")
    np.savez(tmp_path / "b.npz", images=np.zeros((10, 3, 32, 32), np.uint16))
    with refused("are of torch.uint16", "divided by 65535"):
        ddpp.open_set(tmp_path / "b.npz", "cifar10-sample", "raw")


def test_a_file_of_images_may_be_named_for_its_learning_rate(tmp_path):
    torch.save(torch.rand(10, 3, 32, 32), tmp_path / "images_lr0.01.pt")
    assert len(ddpp.open_set(tmp_path / "images_lr0.01.pt", "cifar10-sample").distilled) == 10


def test_published_constants_do_not_depend_on_how_the_data_are_named(tmp_path):
    images = torch.randn(10, 3, 32, 32)
    torch.save({"images": images, "labels": torch.arange(10)}, tmp_path / "a.pt")
    opened = ddpp.open_set(tmp_path / "a.pt", "cifar10-sample", "standardized").distilled
    np.savez(tmp_path / "cifar10-sample.npz", **unpack_sample())
    named = tmp_path / "cifar10-sample.npz"
    again = ddpp.open_set(tmp_path / "a.pt", named, "standardized").distilled
    assert torch.equal(opened.whitening.std, again.whitening.std)


@pytest.mark.parametrize("names", [["+", "*"], ["1_x", "x"]])
def test_folders_of_export_png_are_read_by_their_numbers_and_others_by_their_names(tmp_path, names):
    data = load(save(tmp_path / "mine.npz", classes=np.array(names)))
    distilled = ddpp.DistilledDataset.from_tensors(*data.draw(ipc=2, seed=0), 0.1, data)
    distilled.export_png(tmp_path / "pictures")
    opened = ddpp.open_set(tmp_path / "pictures", tmp_path / "mine.npz").distilled
    assert opened.labels.tolist() == distilled.labels.tolist()
    assert torch.allclose(opened.natural(), distilled.natural(), atol=1 / 254)
    first = next((tmp_path / "pictures").glob("0_*"))
    first.rename(first.with_name(f"3_{as_folder(names[0])}"))  # now they are not by export_png
    with refused("may be of several classes"):
        ddpp.open_set(tmp_path / "pictures", tmp_path / "mine.npz")


def test_sets_of_one_data_set_share_it(npz, tmp_path, monkeypatch):
    data, place = [], verdicts.evaluate

    def noted(distilled, images, *rest, **options):
        data.append(images)
        return place(distilled, images, *rest, **options)

    monkeypatch.setattr(verdicts, "evaluate", noted)
    paths = []
    for name in ("a.pt", "b.pt", "c.pt"):
        content = {"images": torch.rand(3, 3, 12, 12), "labels": torch.arange(3), "lr": 0.02}
        paths.append(as_saved(content, tmp_path / name))
    options = {"width": 4, "repeats": 1, "protocol": QUICK, "folder": tmp_path / "out"}
    ddpp.judge(*paths, data=npz(channels=3), space="raw", **options, **PLACES)
    assert len(data) >= 3 and len(set(map(id, data))) == 1


def test_images_and_labels_in_a_list_are_no_experiments(sample, tmp_path):
    images, labels = sample[0][[0, 0, 1, 1, 2, 2, 3, 3]], torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    made = {"data": (images, labels)}, {"images": [images, labels], "lr": 0.02}
    made += ({"images": [images], "labels": labels}, {"data": [[images]], "labels": labels})
    for content in made:
        found = read_tensors(as_saved(content, tmp_path / "mine.pt"))
        assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
        assert (found.alpha == 0.02) == ("lr" in content)
        experiments = [note for note in found.notes if "experiment" in note]
        assert bool(experiments) == isinstance(content.get("data"), list)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_tensor_for_each_class_is_not_taken_for_the_first_alone(count, sample, tmp_path):
    tensors = [sample[0][[label] * 3] for label in range(count)]
    for content in ({"images": tensors}, tensors):
        with refused(f"a list of {count} tensors of images", "torch.cat", "give the labels"):
            read_tensors(as_saved(content, tmp_path / "mine.pt"))


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_a_byte_that_was_changed_in_a_foreign_file_is_noticed(tmp_path):
    images = torch.rand(10, 3, 32, 32)
    middle = lambda path: path.stat().st_size // 2
    path = as_saved({"images": images}, tmp_path / "mine.pt")
    assert torch.equal(read_tensors(path).images, images)
    flipped(path, middle(path))
    with refused("mine.pt is damaged", "get it anew"):
        read_tensors(path)
    best = as_saved(images, tmp_path / "images_best.pt")
    labels = as_saved(torch.arange(10), tmp_path / "labels_best.pt")
    assert read_tensors(best).labels.tolist() == list(range(10))
    at = labels.read_bytes().index(torch.arange(10).numpy().tobytes())
    flipped(labels, at)
    with refused("labels_best.pt is damaged"):
        read_tensors(best)
    for at in range(0, 10_000, 400):
        np.savez_compressed(tmp_path / "mine.npz", images=np.zeros((10, 3, 64, 64), np.uint8) + 7)
        size = (tmp_path / "mine.npz").stat().st_size
        flipped(tmp_path / "mine.npz", at % size)
        try:
            found = read_tensors(tmp_path / "mine.npz")
        except ddpp.Error as error:
            assert "mine.npz" in str(error)
        else:
            assert (found.images == 7).all()


def test_a_file_that_was_saved_without_checksums_is_read(tmp_path):
    images = torch.rand(10, 3, 32, 32)
    torch.serialization.set_crc32_options(False)
    try:
        path = as_saved(images, tmp_path / "mine.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(images, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for each in (path, tmp_path / "old.pt"):
        assert torch.equal(read_tensors(each).images, images)


class Tiny(torch.nn.Sequential):
    def __init__(self, channels, classes, image_size):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(channels * image_size**2, classes))


def test_a_network_is_judged_by_its_class(npz, tmp_path):
    content = {"images": torch.rand(3, 3, 12, 12), "labels": torch.arange(3), "lr": 0.02}
    path = as_saved(content, tmp_path / "mine.pt")
    where = {"data": npz(channels=3), "space": "raw", "folder": tmp_path / "out"}
    how = {"repeats": 1, "protocol": QUICK, "architectures": Tiny}
    (one,) = ddpp.judge(path, **where, **how, **PLACES)
    assert list(one.accuracies) == list(one.random) == [ddpp.NetworkConfig(Tiny).name]


def test_a_width_that_a_network_does_not_take_is_refused(sample, tmp_path):
    path = as_saved({"images": sample[0], "labels": sample[1]}, tmp_path / "mine.pt")
    name = ddpp.NetworkConfig(Tiny).name
    with refused(f"the network {name} has no width to choose", "leave width out"):
        ddpp.judge(
            path,
            data="cifar10-sample",
            architectures=("convnet", name),
            width=4,
            repeats=1,
            protocol=QUICK,
            folder=tmp_path / "out",
            **PLACES,
        )
    assert not (tmp_path / "out").exists()


def test_no_architecture_and_no_accuracy_of_a_table_is_lost(npz, tmp_path, capsys):
    content = {"images": torch.rand(3, 3, 12, 12), "labels": torch.arange(3), "lr": 0.02}
    path, out = as_saved(content, tmp_path / "mine.pt"), tmp_path / "out"
    words = f"judge {path} --data {npz(channels=3)} --space raw --width 4 --device cpu --out {out}"
    words = [*words.split(), "--protocol.epochs", "1"]
    both = ["--architectures", "convnet", "alexnet"]
    assert cli.main([*words, *both, "--repeats", "2"]) == 0
    capsys.readouterr()
    with untouched(*out.iterdir()):
        assert cli.main([*words, "--repeats", "2"]) == 1
        assert (
            "other architectures, such as alexnet, which would be lost" in capsys.readouterr().err
        )
        assert cli.main([*words, *both, "--repeats", "1"]) == 1
        said = capsys.readouterr().err
        assert "more accuracies (2 of convnet) than --repeats 1 gives" in said
        others = {"protocol": ["--protocol.epochs", "2"], "width": ["--width", "8"]}
        others |= {"seed": ["--seed", "1"], "protocol and seed": ["--seed=1", "--protocol.batch=9"]}
        for name, options in others.items():
            assert cli.main([*words, *both, "--repeats", "2", *options]) == 1
            said = f"accuracies with another {name}, which would be lost: choose another folder"
            assert said in capsys.readouterr().err
    assert cli.main([*words, *both, "--repeats", "3"]) == 0
    (row,) = json.loads((out / "judged.json").read_text())["sets"]
    assert row["asked"]["protocol"]["epochs"] == 1 and row["asked"]["width"] == 4


@pytest.fixture
def nameless(npz, tmp_path):
    """Data in a file whose name is not UTF-8."""
    path = tmp_path / os.fsdecode(b"caf\xe9.npz")
    try:
        return npz(channels=3).rename(path)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")


def test_data_and_sets_whose_names_are_not_utf8_are_judged(nameless, tmp_path):
    content = {"images": torch.rand(3, 3, 12, 12), "labels": torch.arange(3), "lr": 0.02}
    path, out = as_saved(content, nameless.with_suffix(".pt")), tmp_path / "out"
    words = ["judge", path, "--data", nameless, "--space", "raw", "--width", 4, "--device", "cpu"]
    words += ["--out", out, "--protocol.epochs", 1, "--repeats", 1]
    code = f"import sys, ddpp.cli; sys.exit(ddpp.cli.main({[*map(str, words)]!r}))"
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=strict)
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9" in done.stdout and b"written:" in done.stdout
    assert r"caf\udce9" in (out / "judged.csv").read_text()
    assert (out / "judged.png").exists()


def test_data_whose_name_is_not_utf8_are_named_on_a_card(nameless, tmp_path):
    data = ddpp.load_data(nameless, zca=False, device="cpu")
    real, path = selection.random(data, 1, {"width": 2}), tmp_path / "set.safetensors"
    real.save(path)
    assert cli.main(["show", str(path), "--card", str(tmp_path / "card.md")]) == 0
    assert r"distilled from caf\udce9" in (tmp_path / "card.md").read_text()
    pytest.importorskip("pyarrow")
    assert cli.main(["export", str(path), "--for", "hf"]) == 0
    page = (tmp_path / "set-hf" / "README.md").read_text()
    assert r"distilled from caf\udce9" in page


def of_classes(tmp_path, *names):
    """Data of classes of these names."""
    path = save(tmp_path / "named.npz", classes=np.array(names), **arrays(len(names)))
    return load(path), path


def pictures(folder, *names):
    """A folder of pictures, one in each of these folders, darker from one to the next."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (200 - 50 * i,) * 3).save(folder / name / "a.png")
    return folder


@pytest.mark.parametrize(
    "classes, folders, labels",
    [
        (("2_door", "4_door"), ("2_door", "4_door"), [0, 1]),
        (("x", "1_x", "y"), ("1_x", "y"), [1, 2]),
        (("x", "1_x", "y"), ("0_x", "1_1_x", "2_y"), [0, 1, 2]),
        (("4_door", "2_door"), ("0_4_door", "1_2_door"), [0, 1]),
        (("red", "2 door"), ("1_red", "2_2_door"), [0, 1]),
        (("red", "2 door"), ("2_door", "red"), [1, 0]),
    ],
)
def test_a_class_may_begin_with_a_number(classes, folders, labels, tmp_path):
    _, path = of_classes(tmp_path, *classes)
    opened = ddpp.open_set(pictures(tmp_path / "pics", *folders), path, "raw", device="cpu")
    assert opened.distilled.labels.tolist() == labels


def test_a_folder_that_may_be_of_two_classes_is_refused(tmp_path):
    _, path = of_classes(tmp_path, "1_x", "x", "y")
    # a class of the data, and what `export_png` calls another
    with refused("the folder '1_x' may be of several classes", "a number before them"):
        ddpp.open_set(pictures(tmp_path / "pics", "1_x", "2_y"), path, "raw", device="cpu")


def test_labels_under_another_name_are_asked_for_and_not_assumed(sample, tmp_path):
    images, labels = sample
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    mixed = {"images": images[order], "target": labels[order]}
    opened = open_sample(as_saved(mixed, tmp_path / "target.pt"))
    assert torch.equal(opened.distilled.labels, labels[order])
    mixed["kinds"] = mixed.pop("target")
    with refused("no labels, but 10 numbers named 'kinds'", "name them 'labels'"):
        open_sample(as_saved(mixed, tmp_path / "kinds.pt"))


def test_names_of_classes_in_a_file_say_what_its_labels_mean(sample, tmp_path):
    names = ddpp.load_data("cifar10-sample", zca=False, device="cpu").classes
    backwards = {"images": sample[0], "labels": sample[1], "classes": names[::-1]}
    opened = open_sample(as_saved(backwards, tmp_path / "backwards.pt"))
    assert torch.equal(opened.distilled.labels, 9 - sample[1])
    arrays = {"images": sample[0].numpy().astype(">f4"), "labels": sample[1].numpy()}
    np.savez(tmp_path / "mine.npz", **arrays, classes=np.array(names[::-1]))
    assert torch.equal(open_sample(tmp_path / "mine.npz").distilled.labels, 9 - sample[1])


def test_bytes_that_are_nearly_black_are_not_taken_for_pixels(sample, tmp_path):
    path = as_saved((sample[0].round().byte(), sample[1]), tmp_path / "binary.pt")
    with refused("bytes from 0 to 1, so nearly black", "--space raw"):
        open_sample(path)
    assert open_sample(path, "raw").distilled.images.isfinite().all()


def test_a_folder_that_is_not_whole_is_noted(sample, tmp_path):
    data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    whole = ddpp.DistilledDataset.from_tensors(*data.draw(ipc=2, seed=0), 0.02, data)
    whole.export_png(tmp_path)
    notes = lambda: [note for note in open_sample(tmp_path).notes if "is the set whole?" in note]
    assert notes() == []
    *_, folder = sorted(tmp_path.iterdir())  # as a kill leaves it
    (folder / "001.png").unlink()
    assert notes() == ["1 to 2 images per class: is the set whole?"]
    shutil.rmtree(folder)
    assert notes() == [f"1 of 10 classes have no images, as {data.classes[9]}: is the set whole?"]
