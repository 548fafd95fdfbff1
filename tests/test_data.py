"""Data: the bundled images, whitening, augmentation; and arrays that cannot be used are refused,
each with a sentence that says what is wrong and what to do.
"""

import copy
import hashlib
import itertools
import math
import os
import pickle
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from PIL import Image
from small import INF, NAN, XT, YT, X, Y, arrays, load, refused, save, untouched
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from ddpp.data import Split, from_arrays, from_datasets, load_data
from ddpp.data.augmentation import OPERATIONS, Draw, augment, draw, draw_epoch
from ddpp.data.sources import SHA256
from ddpp.data.whitening import Whitening, fit_channels, fit_zca
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.seeds import generator


@pytest.fixture(scope="module")
def sample():
    return load_data(device="cpu", zca=False)


def test_the_sample_is_real_cifar10_balanced(sample):
    assert sample.train.images.shape == (4500, 3, 32, 32)
    assert sample.train.labels.bincount().tolist() == [450] * 10
    assert sample.validation.labels.bincount().tolist() == [50] * 10
    assert sample.test.labels.bincount().tolist() == [100] * 10
    assert sample.classes[3] == "cat"
    assert len(SHA256["cifar10-sample"]) == 4  # checked on every load


def test_the_validation_split_is_disjoint_and_the_same_each_time(sample):
    digest = lambda images: {hashlib.sha256(x.numpy().tobytes()).digest() for x in images}
    train, validation = digest(sample.train.images), digest(sample.validation.images)
    assert len(train & validation) <= 5  # CIFAR-10 itself repeats a few images
    assert load_data(device="cpu", zca=False, validation=0).validation is None


def test_each_class_may_give_another_number_of_images(sample):
    even, uneven = sample.draw(3, 0), sample.draw([3, 0, *[1] * 8], 0)
    assert uneven.labels.bincount(minlength=10).tolist() == [3, 0, *[1] * 8]
    assert torch.equal(uneven.images[:3], even.images[:3])
    assert torch.equal(sample.draw([3] * 10, 0).images, even.images)
    with refused("2 numbers are given for 10 classes"):
        sample.draw([1, 1], 0)
    for wrong in (0, [0] * 10, [-1, *[1] * 9]):
        with refused("images per class cannot be drawn"):
            sample.draw(wrong, 0)


def test_numbers_of_images_are_whole_numbers_of_any_kind(sample):
    counts = [3, 0, *[1] * 8]
    for same in (np.array(counts), torch.tensor(counts), [np.int64(n) for n in counts]):
        assert torch.equal(sample.draw(same, 0).images, sample.draw(counts, 0).images)
    for one in (np.int64(2), np.array(2), torch.tensor(2)):
        assert torch.equal(sample.draw(one, np.int64(1)).images, sample.draw(2, 1).images)
    for wrong in (1.5, np.float32(1), [1.5] * 10, None, "1" * 10):
        with refused("the number of images per class is", "it must be a whole number"):
            sample.draw(wrong, 0)


def test_zca_makes_the_covariance_nearly_white_and_inverts():
    # neighbours depend on one another
    images = torch.rand(400, 3, 6, 6, generator=generator(0)).cumsum(3) / 6
    zca = fit_zca(images, eps=1e-6)
    white = zca.apply(images)
    covariance = torch.cov(white.flatten(1).T)
    assert torch.allclose(covariance, torch.eye(len(covariance)), atol=0.02)
    assert torch.allclose(zca.invert(white), images, atol=1e-3)
    assert torch.allclose(zca.matrix, zca.matrix.T, atol=1e-4)


def test_zca_follows_its_definition():
    images = torch.rand(300, 1, 5, 5, generator=generator(1))
    flat = images.flatten(1).double()
    u, s, _ = torch.linalg.svd(torch.cov(flat.T))
    expected = (u * (s + 0.1).rsqrt()) @ u.T
    assert torch.allclose(fit_zca(images).matrix.double(), expected, atol=1e-5)


def test_a_whitening_that_stays_where_it_is_keeps_its_inverse():
    whitening = fit_zca(torch.rand(20, 1, 4, 4))
    inverse = whitening.inverse
    assert whitening.to("cpu").inverse is inverse
    assert whitening.to("meta").mean.device.type == "meta"


@pytest.mark.parametrize("fit", [fit_zca, fit_channels])
def test_whitening_survives_a_file(fit):
    images = torch.rand(50, 3, 4, 4, generator=generator(2))
    whitening = fit(images)
    again = Whitening.from_tensors(whitening.tensors())
    assert torch.equal(again.apply(images), whitening.apply(images))
    assert torch.allclose(again.invert(again.apply(images)), images, atol=1e-5)


def test_channels_are_standardized():
    white = fit_channels(images := 3 * torch.rand(60, 2, 4, 4, generator=generator(3))).apply(
        images
    )
    assert torch.allclose(white.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(white.std((0, 2, 3)), torch.ones(2), atol=1e-2)


@pytest.mark.parametrize("size, kind", [(8, "zca"), (33, "channels")])
def test_small_images_are_whitened_by_zca_and_large_ones_by_channel(npz, size, kind):
    data = load_data(npz(size=size, channels=3), device="cpu")
    assert data.whitening.kind == kind


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_augmentation_is_a_function_of_its_draw(operation):
    images = torch.rand(5, 3, 8, 8, generator=generator(4))
    how = Draw(operation, torch.rand(5, 3, generator=generator(5), dtype=torch.float64))
    out = augment(images, how)
    assert out.shape == images.shape
    assert torch.equal(out, augment(images, how))
    assert not torch.equal(out, images)
    each = torch.cat(
        [augment(images[i : i + 1], Draw(operation, how.u[i : i + 1])) for i in range(5)]
    )
    # an image's result depends on its own numbers alone
    assert torch.allclose(out, each, atol=1e-6)


def test_the_draws_of_an_epoch_are_those_of_its_batches_one_by_one():
    batches, images = torch.randperm(11, generator=generator(0)).split(4), torch.zeros(1)
    for kind in (True, ("flip", "crop")):
        one, other = generator(1), generator(1)
        for index, how in zip(batches, draw_epoch(batches, one, kind, images), strict=True):
            alone = draw(len(index), other, kind)
            assert (how.operation, how.u.dtype) == (alone.operation, torch.float32)
            assert torch.equal(how.u, alone.u.float())
        assert torch.equal(torch.rand(1, generator=one), torch.rand(1, generator=other))
    assert draw_epoch(batches, one, False, images) == [None] * 3


def test_augmentations_differentiate():
    images = torch.rand(2, 3, 6, 6, generator=generator(6), dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, 3, generator=generator(7), dtype=torch.float64)
    for operation in OPERATIONS:
        assert torch.autograd.gradcheck(lambda x, op=operation: augment(x, Draw(op, u)), images)


def test_augmentations_do_what_their_names_say():
    x = torch.rand(1, 3, 32, 32, generator=generator(8))
    at = lambda *u: torch.tensor([u], dtype=torch.float64)
    assert torch.equal(augment(x, Draw("flip", at(0.4, 0, 0))), x.flip(3))
    assert torch.equal(augment(x, Draw("flip", at(0.6, 0, 0))), x)
    middle = 4.5 / 9  # of the nine shifts -4 ... 4, the one that leaves the image where it is
    assert torch.equal(augment(x, Draw("crop", at(middle, middle, 0))), x)
    moved = augment(x, Draw("crop", at(0.99, middle, 0)))
    assert torch.equal(moved[:, :, :-4], x[:, :, 4:])
    assert (moved[:, :, -4:] == 0).all()
    holed = augment(x, Draw("cutout", at(0.5, 0.5, 0)))
    assert int((holed[0, 0] == 0).sum()) == 16 * 16
    assert torch.allclose(augment(x, Draw("rotate", at(0.5, 0, 0))), x, atol=1e-4)
    one = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    assert torch.allclose(augment(x, Draw("scale", at(one, one, 0))), x, atol=1e-4)
    assert torch.allclose(augment(x, Draw("color", at(0.5, 0.5, 0.5))), x, atol=1e-6)


def test_rotations_and_scales_sample_where_their_matrix_says():
    """A ramp, of which bilinear sampling is exact, in the middle, that sees nothing outside."""
    side, at = torch.linspace(-1, 1, 33, dtype=torch.float64), slice(5, -5)
    y, x = torch.meshgrid(side, side, indexing="ij")
    ramp = lambda x, y: (2 * x + 5 * y)[None, None]
    cos, sin = math.cos(math.pi / 12), math.sin(math.pi / 12)  # of 15 degrees
    for operation, u, expected in [
        ("rotate", (1.0, 0, 0), ramp(cos * x - sin * y, sin * x + cos * y)),
        ("rotate", (0.0, 0, 0), ramp(cos * x + sin * y, -sin * x + cos * y)),
        ("scale", (1.0, 0, 0), ramp(1.2 * x, y / 1.2)),
        ("scale", (0.0, 1, 0), ramp(x / 1.2, 1.2 * y)),
    ]:
        found = augment(ramp(x, y), Draw(operation, torch.tensor([u], dtype=torch.float64)))
        assert torch.allclose(found[..., at, at], expected[..., at, at], atol=1e-6)


def test_colours_change_as_published():
    x = torch.rand(2, 3, 8, 8, generator=generator(10), dtype=torch.float64)
    colour = lambda *u: augment(x, Draw("color", torch.tensor([u] * 2, dtype=torch.float64)))
    grey, level = x.mean(1, keepdim=True), x.flatten(1).mean(1).view(2, 1, 1, 1)
    for u, expected in [
        ((0.75, 0.5, 0.5), x + 0.25),
        ((0, 0.5, 0.5), x - 0.5),
        ((0.5, 0, 0.5), grey.expand_as(x)),
        ((0.5, 1, 0.5), grey + 2 * (x - grey)),
        ((0.5, 0.5, 0), level + 0.5 * (x - level)),
        ((0.5, 0.5, 1), level + 1.5 * (x - level)),
        # one after the other: brightness, saturation, contrast
        ((1, 0, 1), level + 0.5 + 1.5 * (grey - level).expand_as(x)),
    ]:
        assert torch.allclose(colour(*u), expected, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_number_that_rounds_to_one_is_no_shift_out_of_the_image(operation):
    almost = torch.full((1, 3), 1 - 2**-26, dtype=torch.float64)
    assert almost.float().eq(1).all()
    x = torch.rand(1, 3, 32, 32, generator=generator(11))
    assert augment(x, Draw(operation, almost)).isfinite().all()


def test_every_operation_is_drawn():
    rng = generator(9)
    assert {draw(2, rng).operation for _ in range(100)} == set(OPERATIONS)


def test_a_folder_is_answered_with_how_to_pack_it(tmp_path):
    with refused("is a folder", "ddpp pack"):
        load(tmp_path)


@pytest.mark.parametrize(
    "asked, near", [("cifar-10", "cifar10"), ("cifar10_sample", "cifar10-sample")]
)
def test_an_unknown_data_set_is_answered_with_the_nearest(asked, near):
    with refused("unknown data set", asked, f"did you mean '{near}'", "a path that ends in .npz"):
        load(asked)


def test_a_name_like_no_other_gets_the_choices_alone():
    with pytest.raises(Error) as caught:
        load("mnist")
    assert "did you mean" not in str(caught.value)
    assert "cifar10-sample, cifar10, cifar100" in str(caught.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"y_train": Y - 1}, ["y_train", "from -1 to 0", "integers from 0 to 1"]),
        ({"y_test": YT + 1}, ["y_test", "from 1 to 2", "2 classes", "integers from 0 to 1"]),
        (
            {"classes": np.array(["a", "b"]), "y_train": Y * 2},
            ["y_train", "from 0 to 2", "2 classes"],
        ),
        ({"y_train": Y * 2, "y_test": YT * 2}, ["from 0 to 2", "2 classes", "without gaps"]),
        # must not make 10**17 names first
        ({"y_train": Y * 10**17}, ["2 classes", "without gaps"]),
        ({"classes": np.array(["a", "b", "c"])}, ["class 2", "no training image", "without gaps"]),
        ({"classes": np.array(["a", "a"])}, ["classes", "different names"]),
        ({"classes": np.array("ab")}, ["classes", "a list"]),
        ({"classes": np.array(["a", "b"], object)}, ["Python objects"]),
        ({"y_train": Y * 0, "y_test": YT * 0}, ["one class only", "at least 2"]),
        ({"y_train": Y * 1.0}, ["y_train", "float64", "labels must be integers"]),
        ({"y_train": Y > 0}, ["y_train", "bool", "labels must be integers"]),
        ({"y_train": Y[:-1]}, ["12 images", "(11,)", "one label per image"]),
        ({"y_train": Y[:, None]}, ["12 images", "(12, 1)", "one label per image"]),
    ],
)
def test_labels_must_number_the_classes(tmp_path, changes, words):
    with refused(*words):
        load(save(tmp_path / "mine.npz", **changes))


def sizes(*images):
    array = np.empty(len(images), object)
    array[:] = images
    return array


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"x_train": X[:, :, :6]}, ["x_train", "(12, 8, 6, 3)", "must be square"]),
        ({"x_train": X.transpose(0, 3, 1, 2)}, ["(12, 3, 8, 8)", "channels last", "transpose"]),
        ({"x_test": XT.reshape(6, -1)}, ["x_test", "(6, 192)", "(N, S, S)"]),
        ({"x_train": np.full(X.shape, NAN)}, ["x_train", "not finite", "drop"]),
        ({"x_test": np.full(XT.shape, INF)}, ["x_test", "not finite", "drop"]),
        ({"x_train": X / 100}, ["x_train", "values from 0 to", "scale the floats"]),
        ({"x_train": X / -255}, ["x_train", "values from -", "scale the floats"]),
        ({"x_train": X.astype(np.int64)}, ["x_train", "int64", "uint8, or floats"]),
        ({"x_train": X.astype(complex)}, ["x_train", "complex128", "uint8, or floats"]),
        ({"x_train": X.astype(str)}, ["x_train", "uint8, or floats"]),
        ({"x_test": XT[:, :6, :6]}, ["(8, 8, 3)", "(6, 6, 3)", "one size"]),
        ({"x_test": XT[..., :1]}, ["(8, 8, 3)", "(8, 8, 1)", "one size"]),
        ({"x_train": sizes(X[0], X[1, :6, :6])}, ["several sizes", "all images of one size"]),
        ({"x_train": X[:0], "y_train": Y[:0]}, ["x_train", "at least one image"]),
        ({"x_test": XT[:0] / 255, "y_test": YT[:0]}, ["x_test", "at least one image"]),
        ({"x_train": X[..., :0], "x_test": XT[..., :0]}, ["without a single pixel"]),
        ({"x_train": X * 0}, ["same value in every training pixel", "drop it"]),
    ],
)
def test_images_must_be_square_finite_and_of_one_size(tmp_path, changes, words):
    with refused(*words):
        load(save(tmp_path / "mine.npz", **changes))


@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "f8", np.longdouble])
def test_floats_of_every_kind_are_images(tmp_path, data, kind):
    loaded = load(
        save(tmp_path / "mine.npz", x_train=(X / 255).astype(kind), x_test=(XT / 255).astype(kind))
    )
    torch.testing.assert_close(loaded.train.images, data.train.images, rtol=0, atol=5e-3)


@pytest.mark.parametrize("share", [-0.1, 1.0, NAN])
def test_the_validation_share_is_a_share(tmp_path, share):
    with refused("validation share", "at least 0 and below 1"):
        load(save(tmp_path / "mine.npz"), validation=share)


@pytest.mark.parametrize("share", ["0.1", None, [0.1]])
def test_the_validation_share_is_a_number(tmp_path, share):
    with refused("validation share is", "at least 0 and below 1"):
        load(save(tmp_path / "mine.npz"), validation=share)
    share = load(save(tmp_path / "mine.npz"), validation=np.float64(0.5)).identity["validation"]
    assert type(share) is float  # which a file can hold


@pytest.mark.parametrize("percent", [*range(5, 95, 5), 1, 29, 33, 57, 58])
def test_a_share_holds_out_as_many_images_as_a_calculator_says(percent):
    x, y = np.random.default_rng(0).random((200, 1, 1), np.float32), np.arange(200) % 2
    held_out = from_arrays(x, y, x, y, zca=False, validation=percent / 100, device="cpu").validation
    assert held_out.labels.bincount().tolist() == [percent] * 2


@pytest.mark.parametrize(
    "only", [[True, False], np.array([True, False]), [0.0, 1.0], ["0", "1"], "01", 1]
)
def test_the_classes_to_keep_are_whole_numbers(npz, only):
    with refused("the classes to keep are", "give a list of their labels", "whole numbers"):
        load(npz(), only=only)


def test_the_classes_to_keep_are_integers_of_any_kind(npz):
    path, kept = npz(), load(npz(), only=[2, 0])
    for only in (np.array([2, 0]), torch.tensor([2, 0]), (np.uint8(2), 0), range(2, -1, -2)):
        assert load(path, only=only).identity == kept.identity


@pytest.mark.parametrize("kept", [0, 8, 700, -30])
def test_a_truncated_npz_is_called_damaged(tmp_path, kept):
    path = save(tmp_path / "mine.npz")
    path.write_bytes(path.read_bytes()[:kept])
    with untouched(path), refused("mine.npz cannot be read", "damaged", "numpy.savez"):
        load(path)


def test_an_altered_npz_is_called_damaged(tmp_path):
    path = save(tmp_path / "mine.npz")
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with untouched(path), refused("mine.npz cannot be read", "damaged", "numpy.savez"):
        load(path)


def test_another_kind_of_file_is_not_an_npz(tmp_path):
    np.save(tmp_path / "images.npy", X)
    (tmp_path / "images.npy").rename(tmp_path / "npy.npz")
    (tmp_path / "text.npz").write_text("images")
    for name in ("npy.npz", "text.npz"):
        with refused(f"{name} cannot be read", "not an .npz", "numpy.savez"):
            load(tmp_path / name)


@pytest.mark.parametrize("lacking", [["y_test"], ["x_train", "x_test"]])
def test_an_npz_must_hold_four_arrays(tmp_path, lacking):
    with refused("lacks", ", ".join(lacking), "it must hold x_train, y_train, x_test, y_test"):
        load(save(tmp_path / "mine.npz", without=lacking))


def test_a_path_that_is_not_there_or_no_npz(tmp_path):
    with refused("there is no file", "nowhere.npz", "check the path"):
        load(tmp_path / "nowhere.npz")
    with refused("there is no file", "check the path"):
        load(tmp_path.with_name(tmp_path.name + ".npz"))
    with refused("cannot be read", "name too long"):
        load("x" * 300 + ".npz")
    (tmp_path / "images.csv").write_text("1,2,3")
    with refused("images.csv", "a path that ends in .npz"):
        load(tmp_path / "images.csv")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_a_forbidden_file_is_not_called_damaged(tmp_path):
    npz, ours = save(tmp_path / "mine.npz"), tmp_path / "ours.safetensors"
    files.write(ours, "thing", {}, {})
    for path in (npz, ours):
        path.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with refused("mine.npz cannot be read", "Permission denied"):
            load(npz)
        with refused("cannot read", "ours.safetensors", "Permission denied", "permissions"):
            files.read(ours, "thing")
    finally:
        if root:
            os.seteuid(0)


def test_cifar10_must_be_the_official_arrays(tmp_path):
    path = save(tmp_path / "cifar10.npz")
    with (
        untouched(path),
        refused("x_train of cifar10 is not the official array", "SHA-256", "fetch the data again"),
    ):
        load("cifar10", root=tmp_path)


def test_a_failed_download_says_where_the_arrays_can_go(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", offline)
    with refused("cifar100 could not be downloaded", "no route to host", "put cifar100.npz there"):
        load("cifar100", root=tmp_path)


def test_a_folder_of_the_name_of_a_data_set_is_in_nobodys_way(tmp_path, monkeypatch):
    def there_after_download(root, train, download):
        if not download:
            raise RuntimeError("not there")
        part = "train" if train else "test"
        return SimpleNamespace(data=arrays()[f"x_{part}"], targets=arrays()[f"y_{part}"].tolist())

    (tmp_path / "cifar100").mkdir()
    monkeypatch.setattr("torchvision.datasets.CIFAR100", there_after_download)
    # which these are not, but they were downloaded
    with refused("x_train of cifar100 is not the official array"):
        load("cifar100", root=tmp_path)


def test_data_that_is_there_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    asked = []

    def complete(root, train, download):
        asked.append(download)
        part = "train" if train else "test"
        return SimpleNamespace(data=arrays()[f"x_{part}"], targets=arrays()[f"y_{part}"].tolist())

    monkeypatch.setattr("torchvision.datasets.CIFAR100", complete)
    monkeypatch.setattr(
        "ddpp.data.sources.files.check_writable", lambda path: pytest.fail(f"{path} is asked for")
    )
    # which these are not, but they were read
    with refused("x_train of cifar100 is not the official array"):
        load("cifar100", root=tmp_path)
    assert asked == [False, False]


# Data from memory


@pytest.mark.parametrize("channels", [1, 3])
def test_data_from_memory_are_those_from_a_file(tmp_path, channels):
    rng = np.random.default_rng(0)
    x, x_test = (rng.integers(0, 256, (n, 12, 12, channels), np.uint8) for n in (60, 20))
    y, y_test = np.arange(60) % 3, np.arange(20) % 3
    names = ["cat", "dog", "frog"]
    np.savez(
        tmp_path / "mine.npz",
        x_train=x,
        y_train=y,
        x_test=x_test,
        y_test=y_test,
        classes=np.array(names),
    )
    want = load_data(tmp_path / "mine.npz", device="cpu")
    first = lambda images: torch.from_numpy(images).permute(0, 3, 1, 2)
    pairs = [
        [(first(image[None])[0], label) for image, label in zip(*part, strict=True)]
        for part in ((x, y), (x_test, y_test))
    ]
    pictures = [
        [(Image.fromarray(image.squeeze()), int(label)) for image, label in zip(*part, strict=True)]
        for part in ((x, y), (x_test, y_test))
    ]
    for found in (
        from_arrays(x, y, x_test, y_test, classes=names, device="cpu"),
        from_arrays(first(x), torch.from_numpy(y), first(x_test), y_test, classes=names),
        from_datasets(*pairs, classes=names, device="cpu"),
        from_datasets(*pictures, classes=names, device="cpu"),
    ):
        assert found.identity == want.identity
        assert found.classes == want.classes
        assert torch.equal(found.train.images, want.train.images)
        assert torch.equal(found.test.labels, want.test.labels)
        assert found.train.images.stride() == want.train.images.stride()


def test_pictures_with_a_palette_have_its_colours():
    rng, y = np.random.default_rng(0), np.arange(20) % 2
    colours = np.uint8(255 * rng.integers(0, 2, (20, 8, 8, 3)))  # of 8, which a palette holds
    pictures = [Image.fromarray(x).quantize(8) for x in colours]
    assert {picture.mode for picture in pictures} == {"P"}
    pairs = list(zip(pictures, y, strict=True))
    found = from_datasets(pairs, pairs, device="cpu")
    assert found.identity == from_arrays(colours, y, colours, y, device="cpu").identity


class Named(list):
    classes = ("a", "b")


def test_a_datasets_own_names_are_taken():
    images = Named((torch.rand(1, 8, 8), i % 2) for i in range(20))
    assert from_datasets(images, images, device="cpu").classes == ("a", "b")


def test_data_from_memory_that_cannot_be_used_are_refused():
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    with refused("x_train has 20 images but y_train has the shape (19,)"):
        from_arrays(x, y[:19], x, y)
    with refused("scale the floats to between 0 and 1"):
        from_arrays(torch.full((20, 1, 8, 8), 2.0), y, x, y)
    with refused("validation share is 1"):
        from_arrays(x, y, x, y, validation=1)
    resized = torch.full((20, 1, 8, 8), 1.0000002)  # white, as resizing rounds it
    assert float(from_arrays(resized, y, resized, y, zca=False).train.images.max()) < 1e3
    with refused("must be a list of different names"):
        from_arrays(x, y, x, y, classes=["cat", "cat"])
    with refused("several shapes", "resize"):
        from_datasets([(np.zeros((8, 8)), 0), (np.zeros((9, 9)), 1)], [])
    with refused("yields nothing"):
        from_datasets([(np.zeros((8, 8)), 0)], [])


def test_data_with_a_whitening_of_other_images_has_another_identity(tmp_path):
    path = save(tmp_path / "mine.npz")
    other = load(save(tmp_path / "other.npz", x_train=arrays()["x_train"] // 2))
    for zca in (True, False):
        data = load(path, zca=zca)
        same = load(path, zca=zca, whitening=data.whitening)
        assert same.identity == data.identity and "given" not in data.identity
    given = load(path, whitening=other.whitening)
    assert given.identity != data.identity
    assert load(path, whitening=other.whitening).identity == given.identity


def given(mean, std=None, matrix=None):
    mean = mean.expand(3, 8, 8).contiguous()
    return Whitening("channels" if matrix is None else "zca", mean, matrix=matrix, std=std)


def test_whitenings_that_differ_in_an_order_alone_have_other_identities(tmp_path):
    path, rng = save(tmp_path / "mine.npz"), generator(0, "given")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    pixels, matrix = torch.rand(3, 8, 8, generator=rng), torch.randn(192, 192, generator=rng)
    order = torch.randperm(192, generator=rng)
    whitenings = [
        given(mean, std),
        given(mean.flip(0), std),
        given(mean, std.flip(0)),
        given(pixels, std),
        given(pixels.flip(2), std),
        given(pixels, matrix=matrix),
        given(pixels, matrix=matrix.T),
        given(pixels, matrix=matrix[order][:, order]),
        given(pixels.flip(2), matrix=matrix),
    ]
    identities = [load(path, whitening=whitening).identity for whitening in whitenings]
    assert all(a != b for a, b in itertools.combinations(identities, 2))
    for whitening, identity in zip(whitenings, identities, strict=True):
        tensors = {name: t * (1 + 1e-7) for name, t in whitening.tensors().items()}
        rounded = Whitening.from_tensors(tensors)  # as on another machine
        assert load(path, whitening=rounded).identity == identity


def test_a_whitening_from_a_compact_file_is_the_one_of_the_whole_file(tmp_path):
    path, other = save(tmp_path / "mine.npz"), torch.rand(50, 3, 8, 8, generator=generator(1))
    whole = fit_zca(other)
    compact = Whitening.from_tensors(whole.compact_tensors())
    assert not torch.equal(whole.matrix, compact.matrix) and whole.equals(compact)
    identities = [load(path, whitening=one).identity for one in (whole, compact)]
    assert identities[0] == identities[1] and "given" in identities[0]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("fit", [fit_zca, fit_channels])
def test_equal_whitenings_are_equal_in_units_of_what_they_whiten(fit, scale):
    """Also of images so faint that all their values differ by less than 0.001."""
    own = fit(scale * torch.rand(50, 3, 4, 4, generator=generator(2)))
    name = "matrix" if fit is fit_zca else "std"
    unit = own.std if own.matrix is None else 1 / own.matrix.abs().max()
    for factor, equal in ((1 + 1e-6, True), (1.01, False), (3, False)):
        assert own.equals(replace(own, **{name: factor * own.tensors()[name]})) == equal
    for step, equal in ((1e-6, True), (0.01, False)):
        assert own.equals(replace(own, mean=own.mean + step * unit)) == equal


def test_faint_images_with_another_deviation_have_another_identity(tmp_path):
    faint = {name: (array / 255e3).astype(np.float32) for name, array in arrays().items()}
    path = save(tmp_path / "faint.npz", x_train=faint["x_train"], x_test=faint["x_test"])
    data = load(path)
    wider = replace(data.whitening, std=3 * data.whitening.std)
    assert load(path, whitening=data.whitening).identity == data.identity
    assert load(path, whitening=wider).identity != data.identity


def test_the_shape_of_images_counts_where_the_bytes_do_not_tell_it():
    rng, y = np.random.default_rng(0), np.arange(12) % 2
    x = rng.integers(0, 256, (12, 16, 16), np.uint8)
    take = lambda *shape: from_arrays(*(x.reshape(shape), y) * 2, zca=False, device="cpu").identity
    assert take(12, 16, 16) == take(12, 16, 16, 1) != take(12, 8, 8, 4)


def test_labels_of_another_integer_type_are_those_of_the_same_images(tmp_path):
    """Which of them a file names stays as it is, as files of both kinds are there."""
    other, kinds = load(save(tmp_path / "other.npz", x_train=X[::-1])), ("u1", "i4", "i8")
    found = [load(save(tmp_path / "mine.npz", y_train=Y.astype(k), y_test=YT)) for k in kinds]
    found += [load(save(tmp_path / "all.npz", y_train=Y.astype("u1"), y_test=YT.astype("u1")))]
    assert len({data.sha256 for data in found}) == 4
    for one, two in itertools.product(found[2:], repeat=2):
        assert one.has_images_of(two.sha256) and not one.has_images_of(other.sha256)
    changed = replace(found[2], sha256="another")
    assert changed.has_images_of("another") and not changed.has_images_of(found[2].sha256)


def test_arrays_may_be_views(tmp_path):
    flipped = from_arrays(X[..., ::-1], Y, XT[..., ::-1], YT, zca=False, validation=0, device="cpu")
    plain = from_arrays(X, Y, XT, YT, zca=False, validation=0, device="cpu")
    assert torch.allclose(flipped.train.images, plain.train.images.flip(1), atol=1e-6)


def test_data_with_a_whitening_of_another_strength_has_another_identity(tmp_path):
    path = save(tmp_path / "mine.npz")
    raw = load(path, zca=False, validation=0)
    images = raw.whitening.invert(raw.train.images)
    same, weaker, weakest = (fit_zca(images, eps=eps) for eps in (0.1, 0.05, 0.01))
    plain = load(path, zca=True, validation=0)
    assert load(path, whitening=same, validation=0).identity == plain.identity
    identities = [load(path, whitening=w, validation=0).identity for w in (weaker, weakest)]
    assert identities[0] != identities[1] and plain.identity not in identities
    wider = replace(raw.whitening, std=2 * raw.whitening.std)
    assert load(path, whitening=wider, validation=0).identity != raw.identity


def test_classes_with_the_whitening_of_others_have_another_identity(npz):
    path = npz(classes=3)
    own, whole = (load(path, only=only, validation=0) for only in ([1, 0], None))
    given = load(path, only=[1, 0], whitening=whole.whitening, validation=0)
    assert given.identity != own.identity


def test_a_split_that_was_replaced_changes_the_identity(npz):
    data = load(npz(), validation=0.3)
    brighter = data.test._replace(images=data.test.images + 1)
    shuffled = data.train._replace(images=data.train.images.flip(0))
    corrupted, shuffled = replace(data, test=brighter), replace(data, train=shuffled)
    chosen_on_test = replace(data, validation=data.test)
    assert chosen_on_test.identity["validation"] == 0.3
    identities = [one.identity for one in (data, corrupted, shuffled, chosen_on_test)]
    assert all(a != b for a, b in itertools.combinations(identities, 2))
    copied = data.test._replace(images=data.test.images.clone())
    assert replace(corrupted, test=copied).identity == data.identity
    assert replace(data, name="another", validation=None).identity == data.identity


def test_a_split_that_was_changed_in_place_changes_the_identity(npz):
    path = npz()
    clean = load(path, validation=0.3)
    seen = [clean.identity]
    for part, change in [
        ("train", lambda split: split.labels.copy_(split.labels.flip(0))),
        ("validation", lambda split: split.images[0].zero_()),
        ("test", lambda split: split.images.add_(1)),
        ("test", lambda split: split.images.add_(1)),
    ]:
        before = clean.identity
        change(getattr(clean, part))
        # asked again, and of what was made from it: still another
        made = (clean, replace(clean, name="another"), copy.deepcopy(clean))
        made += (pickle.loads(pickle.dumps(clean)),)
        for one in (*made, clean):
            assert one.identity == clean.identity != before
        assert f"replaced {part}" in clean.identity
        seen.append(clean.identity)
    assert all(a != b for a, b in itertools.combinations(seen, 2))
    assert load(path, validation=0.3).identity == seen[0]


def test_what_was_changed_in_place_is_what_has_taken_its_place(npz):
    """Equal images have one identity, whichever way they came about."""
    path = npz()
    changed, replaced = load(path), load(path)
    brighter = replaced.test._replace(images=replaced.test.images + 1)
    replaced = replace(replaced, test=brighter)
    changed.test.images.add_(1)
    assert changed.identity == replaced.identity
    brighter.images.add_(1)
    changed.test.images.add_(1)
    assert changed.identity == replaced.identity
    # put back from a copy, though the loaded tensors have changed since
    clean, copied = load(path), load(path).test
    assert replace(clean, test=copied).identity == clean.identity
    identity = clean.identity
    clean.test.images.zero_()
    assert replace(clean, test=copied).identity == identity


def test_copies_and_what_only_reads_leave_the_identity(npz):
    data = load(npz(), validation=0.3)
    with torch.inference_mode():
        other = load(npz(), validation=0.3)
    for one in (copy.copy(data), copy.deepcopy(data), pickle.loads(pickle.dumps(data)), other):
        assert one.identity == data.identity and not one.replaced
    data.network(small.NETWORK)(data.network(small.NETWORK).initial(0), data.test.images)
    data.draw(2, 0).images.zero_()
    assert not data.replaced


def test_the_hash_of_a_split_is_made_once_for_each_change(npz, monkeypatch):
    asked = []
    fingerprint = files.fingerprint
    count = lambda tensor: asked.append(len(tensor)) or fingerprint(tensor)
    monkeypatch.setattr("ddpp.data.images.files.fingerprint", count)
    data = load(npz())
    assert [data.identity for _ in range(3)] and not asked
    data.test.images.add_(1)
    assert [data.identity for _ in range(3)] and len(asked) == 2
    data.test.images.add_(1)
    assert [data.identity for _ in range(3)] and len(asked) == 4


@pytest.mark.parametrize(
    "change, words",
    [
        (tuple, ["are given as a tuple of length 2: give a Split(images, labels)"]),
        (lambda s: s._replace(labels=s.labels[:, None]), ["torch.int64 (18, 1)", "tensor (18,)"]),
        (lambda s: s._replace(labels=s.labels[:-1]), ["torch.int64 (17,)", "tensor (18,)"]),
        (lambda s: s._replace(labels=s.labels[:1]), ["torch.int64 (1,)", "tensor (18,)"]),
        (lambda s: s._replace(labels=s.labels.int()), ["torch.int32 (18,)", "an int64 tensor"]),
        (lambda s: s._replace(labels=torch.eye(3)[s.labels]), ["torch.float32 (18, 3)"]),
        (lambda s: s._replace(labels=s.labels.tolist()), ["are a list of length 18"]),
        (lambda s: s._replace(labels=s.labels + 1), ["go from 1 to 3", "3 classes, from 0"]),
        (lambda s: s._replace(labels=s.labels - 1), ["go from -1 to 1", "3 classes, from 0"]),
        (lambda s: s._replace(labels=s.labels.to("meta")), ["on cpu, their labels on meta"]),
        (lambda s: s._replace(images=s.images.double()), ["torch.float64", "a float32 tensor"]),
        (lambda s: s._replace(images=s.images.numpy()), ["float32 (18, 1, 12, 12)", "tensor"]),
        (lambda s: s._replace(images=s.images.flatten(1)), ["(18, 144)", "(N, C, S, S)"]),
        (lambda s: s._replace(images=s.images[..., :6]), ["(18, 1, 12, 6)", "(N, C, S, S)"]),
    ],
)
def test_a_split_that_does_not_fit_is_refused(npz, change, words):
    data = load(npz())
    split = Split(data.train.images[:18], torch.arange(18) % 3)
    for part, kind in (("train", "training"), ("validation", "held-out"), ("test", "test")):
        replace(data, **{part: split})
        with refused(f"the {kind} images", *words):
            replace(data, **{part: change(split)})


def test_a_split_has_an_image_and_may_be_missing_only_where_it_is_held_out(npz):
    data = load(npz(), validation=0.3)
    assert replace(data, validation=None).validation is None
    empty = Split(*(tensor[:0] for tensor in data.test))
    for part, kind in (("train", "training"), ("validation", "held-out"), ("test", "test")):
        with refused(f"there are no {kind} images: give at least one"):
            replace(data, **{part: empty})
        if part != "validation":
            with refused(f"the {kind} images are given as None"):
                replace(data, **{part: None})


def test_all_splits_have_images_of_one_size(npz):
    data = load(npz())
    smaller = data.test._replace(images=data.test.images[..., :6, :6])
    with refused("test images are (1, 6, 6)", "training images (1, 12, 12)", "to one size"):
        replace(data, test=smaller)


def test_data_are_equal_to_themselves_alone(npz):
    data, other = load(npz()), load(npz())
    assert data == data and data != other
    assert data in [other, data] and data not in [other]
    assert len({data, other, data, data.whitening, other.whitening}) == 4


class Folder(list):
    def __init__(self, *classes):
        self.classes = classes
        super().__init__((torch.rand(1, 8, 8), i % len(classes)) for i in range(20))


def test_two_datasets_that_number_other_classes_are_refused():
    with refused("label 1 means dog in the training images and ship in the test", "same list"):
        from_datasets(Folder("cat", "dog", "ship"), Folder("cat", "ship"))


def test_classes_are_compared_behind_parts_and_sums_of_datasets_and_in_any_list():
    train, test = Folder("cat", "dog", "ship"), Folder("cat", "ship")
    for names in (np.array, lambda classes: dict.fromkeys(classes).keys()):
        test.classes = names(["cat", "ship"])
        for part in (
            Subset(train, range(20)),
            random_split(train, [18, 2])[0],
            Subset(Subset(train, range(20)), range(18)),
            ConcatDataset([TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4)), train]),
        ):
            for pair in ((part, test), (part, Subset(test, range(20)))):
                with refused("label 1 means dog in the training images and ship in the test"):
                    from_datasets(*pair, classes=["cat", "dog", "ship"])
    with refused("label 1 means dog in the training images and ship in others of them"):
        from_datasets(ConcatDataset([train, test]), train)


def test_names_that_are_given_rename_all_classes_or_fit_them():
    read = partial(from_datasets, validation=0, zca=False, device="cpu")
    images, part = Folder("cat", "dog"), Subset(Folder("cat", "dog"), range(18))
    for train, test in itertools.product((images, part), repeat=2):
        go = lambda names, a=train, b=test: read(a, b, classes=names).classes
        assert go(["Katze", "Hund"]) == ("Katze", "Hund")  # other words for the same
        assert go(np.array(["cat", "dog"])) == go(name for name in ("cat", "dog")) == ("cat", "dog")
        for wrong, label, mean in [
            (["dog", "cat"], 0, "dog"),
            (["dog", "Katze"], 0, "dog"),
            (["cat", "ant", "dog"], 1, "ant"),
        ]:
            means = ("cat", "dog")[label]
            with refused(f"label {label} means {means} in the training images and {mean} in `cl"):
                go(wrong)
    first = Folder("cat", "dog", "ship")
    first[:] = [(image, label % 2) for image, label in first]
    assert read(first, first, classes=["cat", "dog"]).classes[1] == "dog"
    plain = [*images]
    assert read(plain, plain, classes=["dog", "cat"]).classes[0] == "dog"
    with refused("label 0 means cat in the test images and dog in `classes`"):
        from_datasets(plain, images, classes=["dog", "cat"])


def test_classes_must_have_an_order():
    images = Folder("cat", "dog")
    for classes in ({"cat", "dog"}, frozenset(["cat", "dog"])):
        with refused("the `classes` are a set, which has no order: give a list"):
            from_arrays(X, Y, XT, YT, classes=classes)
        with refused("the `classes` are a set, which has no order: give a list"):
            from_datasets(images, images, classes=classes)
        unordered = Folder("cat", "dog")
        unordered.classes = classes
        assert from_datasets(unordered, images, device="cpu").classes == ("0", "1")
    with refused("the `classes` are 2: give a list of names"):
        from_arrays(X, Y, XT, YT, classes=2)


def test_a_dataset_is_read_up_to_its_length_and_not_behind_it():
    class Endless:
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return np.full((8, 8), i % 20, np.float32) / 20, i % 2

    assert len(from_datasets(Endless(), Endless(), validation=0, device="cpu").train.labels) == 20


def test_a_dataset_with_random_transforms_is_refused():
    class Flipped(Folder):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image.flip(-1) if torch.rand(()) < 0.5 else image, label

    with refused("the train dataset gives an image in another form each time", "random"):
        from_datasets(Flipped("cat", "dog"), Folder("cat", "dog"))


def test_bytes_that_are_nearly_black_are_told(tmp_path):
    with pytest.warns(UserWarning, match="x_train goes from 0 to 1 as uint8, in which white is"):
        load(save(tmp_path / "mine.npz", x_train=X % 2))


def test_a_compact_file_keeps_a_matrix_that_is_not_symmetric():
    matrix = torch.randn(12, 12, generator=generator(0, "matrix"))
    pca, zca = (Whitening("zca", torch.zeros(3, 2, 2), m) for m in (matrix, matrix + matrix.T))
    for white, kept in ((pca, {"mean", "matrix"}), (zca, {"mean", "triangle"})):
        tensors = white.compact_tensors()
        assert tensors.keys() == kept
        back = Whitening.from_tensors(tensors).tensors()["matrix"]
        assert torch.allclose(back, white.tensors()["matrix"], rtol=1e-3, atol=1e-3)
