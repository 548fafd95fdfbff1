"""A distilled set says what is wrong with it when it is made, by hand too, and goes by its
labels.
"""

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import resize
from torchvision.utils import make_grid

from ddpp import DistilledDataset, Error, NetworkConfig, Protocol, evaluate, load_data
from ddpp.book import figures
from ddpp.cli import main
from ddpp.data.whitening import Whitening
from ddpp.distilled.formation import fold, unfold
from ddpp.evaluating import loss_on, train
from ddpp.foundation.seeds import generator
from ddpp.judging import export

NETWORK = NetworkConfig(width=4, depth=2)


@pytest.fixture
def data(npz):
    return load_data(npz(), device="cpu")


@pytest.fixture
def make(data):
    """A set made by hand: images of the data with these labels."""

    def made(given, /, **changes):
        n = len(given)
        images = torch.randn(n, *data.shape, generator=generator(0))
        values = {
            "images": images,
            "labels": torch.as_tensor(given),
            "alpha": 0.01,
            "whitening": data.whitening,
        }
        return DistilledDataset(**values | {"classes": data.classes, "network": NETWORK} | changes)

    return made


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": [[1.0]]}, "the images are a list"),
        (
            {"images": torch.zeros(3, 12, 12)},
            r"float32 \(3, 12, 12\): they must be a float32 tensor \(N, C, H, W\)",
        ),
        (
            {"images": torch.zeros(3, 1, 12, 12, dtype=torch.float64)},
            "the images are torch.float64",
        ),
        ({"images": torch.full((3, 1, 12, 12), torch.nan)}, "not finite"),
        (
            {"images": torch.zeros(0, 1, 12, 12), "labels": torch.zeros(0, dtype=torch.int64)},
            "at least one",
        ),
        ({"images": torch.zeros(3, 3, 12, 12)}, "give the whitening of the data"),
        ({"labels": torch.tensor([0, 1])}, r"int64 \(2,\): for 3 images of 3 classes"),
        ({"labels": [0, 1, 2]}, "the labels are a list"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "must be int64, from 0 to 2"),
        ({"labels": torch.tensor([0, 1, 3])}, "go from 0 to 3: there are 3 classes"),
        ({"labels": torch.tensor([-1, 1, 2])}, "go from -1 to 2"),
        ({"labels": torch.eye(3).double()}, "must be float32 and finite"),
        ({"labels": torch.eye(3).log()}, "must be float32 and finite"),
        ({"labels": torch.eye(3) - 1 / 3}, "say loss='squared error'"),
        ({"labels": 2 * torch.eye(3)}, "take their softmax"),
        ({"loss": "squared error"}, "needs labels"),
        ({"loss": "squared"}, "did you mean 'squared error'"),
        ({"alpha": 0.0}, "must be one positive number"),
        ({"alpha": torch.tensor([0.1, 0.2])}, "must be one positive number"),
        ({"alpha": "0.1"}, "must be one positive number"),
        ({"alpha": torch.tensor(torch.nan)}, "must be one positive number"),
        ({"iterates": {5: (torch.zeros(2, 1, 12, 12), torch.tensor(0.1))}}, "the images of step 5"),
        ({"iterates": {5: (torch.zeros(3, 1, 12, 12), torch.tensor(-0.1))}}, "the alpha of step 5"),
    ],
)
def test_what_is_wrong_with_a_set_is_said_when_it_is_made(make, changes, words):
    with pytest.raises(Error, match=words):
        make([0, 1, 2], **changes)


def test_a_set_made_by_hand_can_be_saved_shown_and_evaluated(make, data, npz, tmp_path, capsys):
    path, folder = tmp_path / "hand.safetensors", tmp_path / "png"
    make([2, 0, 2, 0, 0]).save(path)
    assert main(["show", str(path), "--folder", str(folder)]) == 0
    assert "5 images, 0 to 3 per class" in capsys.readouterr().out
    assert (
        main(["evaluate", str(path), "--repeats", "1", "--protocol.epochs", "2", "--device", "cpu"])
        == 1
    )
    assert "names no data set: say where it is with --data" in capsys.readouterr().err
    small = ["--data", str(npz()), "--repeats", "1", "--protocol.epochs", "2", "--device", "cpu"]
    assert main(["evaluate", str(path), *small]) == 0
    assert "final iterate:" in capsys.readouterr().out
    for option in ("--progress", "--before-after"):
        assert main(["show", str(path), option, str(tmp_path / "figure.png")]) == 1
        assert "it was not distilled" in capsys.readouterr().err


def test_a_set_of_tensors_has_its_own(data):
    images, labels = data.draw(1, 0)
    alpha = torch.tensor(0.1)
    made = DistilledDataset.from_tensors(images, labels, alpha, data)
    before = made.images.clone(), made.labels.clone()
    for tensor in (images, labels, alpha):
        tensor.zero_()
    assert torch.equal(made.images, before[0]) and torch.equal(made.labels, before[1])
    assert float(made.alpha) == pytest.approx(0.1)


def test_what_json_cannot_say_is_refused_in_a_set(make, tmp_path):
    made = make([0, 1, 2], provenance={"from": tmp_path})
    with pytest.raises(Error, match="keeps text, numbers, lists and dictionaries alone"):
        made.save(tmp_path / "set.safetensors")
    assert not (tmp_path / "set.safetensors").exists()


def test_bytes_are_raw_pixels_whatever_is_said(data):
    bytes_ = torch.randint(256, (3, *data.shape), generator=generator(0)).to(torch.uint8)
    of = lambda images, **how: DistilledDataset.from_tensors(
        images, torch.arange(3), 0.01, data, **how
    )
    expected = data.whitening.apply(bytes_ / 255)
    for made in (of(bytes_), of(bytes_, raw=True), of(bytes_ / 255, raw=True)):
        assert torch.equal(made.images, expected)
    assert torch.equal(of(expected).images, expected)  # preprocessed already


def test_bytes_that_are_nearly_black_are_told(data):
    masks = torch.randint(2, (3, *data.shape), generator=generator(0))
    of = lambda images: DistilledDataset.from_tensors(images, torch.arange(3), 0.01, data)
    with pytest.warns(UserWarning, match="the set goes from 0 to 1 as uint8, in which white is"):
        of(masks.to(torch.uint8))
    for images in (255 * masks.to(torch.uint8), masks.bool(), masks):
        assert float(of(images).natural().max()) == pytest.approx(1)


def test_a_set_is_equal_to_itself_alone(make):
    one, other = make([0, 1]), make([0, 1])
    assert one == one and one != other
    assert one in [other, one] and one not in [other]
    assert len({one, other, one}) == 2


def test_raw_pixels_go_up_to_1(data):
    numbers = torch.randint(256, (3, *data.shape), generator=generator(0))
    for images, how in ((numbers.float(), {"raw": True}), (numbers, {})):
        with pytest.raises(Error, match="raw images go up to 255: give floats from 0 to 1, or"):
            DistilledDataset.from_tensors(images, torch.arange(3), 0.01, data, **how)
    learned = numbers / 100 - 0.5  # pixels that were optimized may leave 0 to 1
    made = DistilledDataset.from_tensors(learned, torch.arange(3), 0.01, data, raw=True)
    assert torch.allclose(data.whitening.invert(made.images), learned, atol=1e-4)


def test_raw_pixels_that_are_not_called_raw_are_told(data):
    pixels = torch.rand((3, *data.shape), generator=generator(0))
    with pytest.warns(UserWarning, match="taken as preprocessed: if they are raw, give raw=True"):
        DistilledDataset.from_tensors(pixels, torch.arange(3), 0.01, data)


def test_alpha_may_be_a_number_of_numpy(make):
    assert float(replace(make([0, 1]), alpha=np.float32(0.01)).alpha) == pytest.approx(0.01)


def test_pictures_go_by_the_labels(make, tmp_path):
    made = make([2, 0, 2, 0, 0])
    assert made.by_class() == [[1, 3, 4], [], [0, 2]]
    assert made.export_png(tmp_path) == 5
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert files == ["0_0/000.png", "0_0/001.png", "0_0/002.png", "2_2/000.png", "2_2/001.png"]
    pixels = made.natural().mul(255).round().byte()
    for name, i in {"0_0/001.png": 3, "2_2/000.png": 0}.items():
        with Image.open(tmp_path / name) as picture:
            assert np.array_equal(np.asarray(picture), pixels[i, 0])
    # the first of each class, then the others
    assert made.picture(zoom=1).size == (3 * 13 + 1, 2 * 13 + 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("classes, n", [(1, 1), (3, 1), (3, 2), (3, 8), (25, 45)])
def test_a_picture_has_the_pixels_of_torchvisions_grid(channels, classes, n):
    images = torch.rand(n, channels, 6, 6, generator=generator(n))
    whitening = Whitening("channels", torch.zeros(channels, 6, 6), std=torch.ones(channels, 1, 1))
    names, labels = tuple(map(str, range(classes))), torch.arange(n) % classes
    made = DistilledDataset(images, labels, 0.01, whitening, names, {})
    big = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    grid = make_grid(big, nrow=min(classes, 20), padding=2, pad_value=1)
    shown = grid[:3] if len(grid) >= 3 else grid[0]
    pixels = shown.mul(255).round().byte()
    pixels = pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels
    assert np.array_equal(np.asarray(made.picture(zoom=2)), pixels.numpy())


def test_a_picture_needs_no_torchvision():
    path = Path(__file__).with_name("golden") / "set.safetensors"
    code = f"""import sys
from ddpp.distilled import DistilledDataset
DistilledDataset.load({str(path)!r}).picture()
assert 'torchvision' not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_of_a_set_with_unequal_classes_have_a_white_tile_where_none_is(make):
    made = make([2, 0, 2, 0, 0])
    step = {0: (made.images, made.alpha), 4: (made.images, made.alpha)}
    made = replace(made, iterates=step)
    assert len(figures.progress(made).axes) == 4  # two classes at two steps
    assert len(figures.before_after(made).axes) == 2


def test_soft_labels_are_trained_with_cross_entropy_and_regression_targets_with_squared_error(
    make, data, tmp_path
):
    soft = torch.softmax(torch.randn(3, 3, generator=generator(1)), 1)
    logits = torch.randn(3, 3, generator=generator(2))
    assert torch.equal(loss_on(logits, soft, make(soft).loss), F.cross_entropy(logits, soft))
    target = torch.eye(3) - 1 / 3
    regression = make(target, loss="squared error")
    assert torch.equal(loss_on(logits, target, regression.loss), F.mse_loss(logits, target))
    assert make([0, 1, 2]).loss == make(soft).loss == "cross-entropy"
    ends = []
    for name, made in {"soft": make(soft), "same": make(soft, loss="squared error")}.items():
        made.save(tmp_path / name)
        read = DistilledDataset.load(tmp_path / name)
        assert read.loss == made.loss
        protocol = Protocol(epochs=2, augment=False)
        ends.append(train(data.network(NETWORK), read.to(data.device), protocol, 0))
    assert not torch.allclose(*ends)


def test_pictures_in_images_are_the_ones_that_resizing_finds():
    images = torch.randn(2, 3, 12, 8, generator=generator(0), dtype=torch.float64)
    found = unfold(images, 2)
    for i, (image, row, column) in enumerate(product(range(2), range(2), range(2))):
        part = images[image, :, 6 * row : 6 * row + 6, 4 * column : 4 * column + 4]
        large = resize(part, [12, 8], antialias=False)
        assert torch.allclose(found[i], large, atol=1e-12)
    # a mean over n x n pixels, put where `unfold` looks for it
    small = fold(found, 2).unflatten(3, (2, 4)).unflatten(2, (2, 6))
    blocks = found.unflatten(3, (4, 2)).unflatten(2, (6, 2)).mean((3, 5))
    assert torch.allclose(small.permute(0, 2, 4, 1, 3, 5).flatten(0, 2), blocks, atol=1e-12)
    assert unfold(images, 1) is images and fold(images, 1) is images


def test_networks_train_on_the_pictures_in_the_images(make, data, tmp_path):
    folded = make([0, 1, 2], formation=2)
    folded.save(tmp_path / "set.safetensors")
    read = DistilledDataset.load(tmp_path / "set.safetensors")
    assert read.formation == 2 and "3 distilled images" in repr(read) and "4 pictures" in repr(read)
    plain = make([0] * 4 + [1] * 4 + [2] * 4, images=unfold(folded.images, 2))
    assert torch.equal(read.unfolded().images, plain.images)
    assert torch.equal(read.unfolded().labels, plain.labels)
    how = {"repeats": 1, "protocol": Protocol(epochs=3), "progress": False}
    assert evaluate(read, data, **how).final == evaluate(plain, data, **how).final
    with pytest.raises(Error, match=r"each image of this set holds 4 pictures.*unfolded\(\)"):
        read[0]
    with pytest.raises(Error, match="holds 4 pictures, which other code would take for one"):
        export(read, "pt", tmp_path)
    (path, *_), _ = export(read, "compact", tmp_path)
    assert DistilledDataset.load(path).formation == 2


@pytest.mark.parametrize("formation", [0, -1, 5])
def test_a_formation_that_does_not_divide_the_image_is_refused(make, formation):
    with pytest.raises(Error, match=f"formation is {formation}: images of 12 x 12 pixels"):
        make([0], formation=formation)


def test_a_set_of_the_first_files_still_has_its_loss():
    golden = Path(__file__).with_name("golden")
    assert DistilledDataset.load(golden / "kip.safetensors").loss == "squared error"
    assert DistilledDataset.load(golden / "set.safetensors").loss == "cross-entropy"
