"""From raw images, by name, in a file, in memory or in datasets of torch, to an `ImageData`."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ChainDataset, ConcatDataset, IterableDataset, Subset

from ddpp.data.images import ImageData, Split, Watched
from ddpp.data.sources import check, class_names, find, forms, keep_classes
from ddpp.data.whitening import Whitening, fit_channels, fit_zca
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error

TRIES = 8  # images of a dataset that are read twice: a random mirroring escapes 1 time in 256
ZCA_LIMIT = 3 * 32 * 32  # values per image up to which ZCA is the default: its cost is cubic


def load_data(
    name_or_path: str | Path = "cifar10-sample",
    *,
    root: str | Path | None = None,
    zca: bool | None = None,
    validation: float = 0.1,
    whitening: Whitening | None = None,
    only: Iterable[int] | None = None,
    device: str | torch.device | None = None,
) -> ImageData:
    """Load a data set and preprocess it, all of it on one device.

    - name_or_path: "cifar10-sample" (bundled: 5,000 training and 1,000 test images of CIFAR-10),
      "cifar10" or "cifar100" (ROOT/NAME.npz if that exists, else downloaded into ROOT), or the
      path of an .npz file. The file has x_train, y_train, x_test, y_test and optionally `classes`.
      Its images are (N, S, S) or (N, S, S, C), uint8 or floats in [0, 1]. Its labels are (N,),
      integers from 0.
    - root: folder of the downloaded data sets. Default "data".
    - zca: True for ZCA, False for mean and standard deviation per channel. Default: ZCA for images
      of at most 3 x 32 x 32 values.
    - validation: share of each class's training images that is held out, to choose among iterates.
      At least 0 and below 1.
    - whitening: the preprocessing to use, of a distilled set, say. Default: one is fitted.
    - only: labels of the classes to keep, at least two, numbered anew in this order. No image of
      another class is used for anything. Default: all.
    - device: "cpu" or "cuda". Default: the GPU if there is one.

    Raises Error for data that cannot be found, read or used. Source: ZCA as in MTT (Cazenavette et
    al., CVPR 2022).

    >>> import ddpp
    >>> ddpp.load_data("cifar10-sample", zca=False, device="cpu")  # doctest: +NORMALIZE_WHITESPACE
    cifar10-sample: 4,500 images to train on, 500 held out, 1,000 to test on, 10 classes, 3x32x32;
    mean and deviation per channel; on cpu
    """
    name, arrays = find(name_or_path, Path(root or "data"))
    if only is not None:
        name, arrays = keep_classes(name, arrays, only)
    return _prepared(name, arrays, zca, validation, whitening, device)


def from_arrays(
    x: np.ndarray | Tensor,
    y: np.ndarray | Tensor | Sequence[int],
    x_test: np.ndarray | Tensor,
    y_test: np.ndarray | Tensor | Sequence[int],
    *,
    classes: Sequence[str] | None = None,
    zca: bool | None = None,
    validation: float = 0.1,
    device: str | torch.device | None = None,
) -> ImageData:
    """Take a data set from memory and preprocess it, as `load_data` does with one from a file.

    - x, x_test: images, uint8 or floats in [0, 1]. Arrays lie as (N, S, S) or (N, S, S, C), tensors
      as (N, S, S) or (N, C, S, S).
    - y, y_test: labels (N,), integers from 0 without gaps.
    - classes: their names. Default: the numbers.
    - zca, validation, device: as in `load_data`.

    Raises Error for arrays that do not fit.

    >>> import ddpp, torch
    >>> x, y = torch.rand(40, 3, 8, 8), torch.arange(40) % 2
    >>> data = ddpp.from_arrays(x, y, x[:10], y[:10], classes=["cat", "dog"], device="cpu")
    >>> data.shape, data.classes, len(data.train.labels)
    ((3, 8, 8), ('cat', 'dog'), 36)
    """
    arrays = {"x_train": _array(x), "y_train": _array(y)}
    arrays |= {"x_test": _array(x_test), "y_test": _array(y_test)}
    if classes is not None:
        arrays["classes"] = np.array(_names(classes))
    return _prepared("arrays", arrays, zca, validation, None, device)


def from_datasets(
    train: Iterable,
    test: Iterable,
    *,
    classes: Sequence[str] | None = None,
    zca: bool | None = None,
    validation: float = 0.1,
    device: str | torch.device | None = None,
) -> ImageData:
    """Take a data set from two datasets of torch or torchvision, all of it, and preprocess it.

    - train, test: they yield (image, label). An image is a PIL image, an array (S, S) or (S, S, C),
      or a tensor (C, S, S). All have one size, and are not normalized yet. Images with a palette
      become RGB.
    - classes: their names. Default: the attribute `classes` of `train`, else the numbers. Other
      names than the datasets' rename their classes, label by label.
    - zca, validation, device: as in `load_data`.

    Raises Error for images and labels that do not fit.

    >>> import ddpp, torch
    >>> from torch.utils.data import TensorDataset
    >>> images = TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 2)
    >>> ddpp.from_datasets(images, images, device="cpu").shape
    (1, 8, 8)
    """
    names = _common_names(train, test, None if classes is None else _names(classes))
    (x, y), (x_test, y_test) = _stacked("train", train), _stacked("test", test)
    return from_arrays(
        x, y, x_test, y_test, classes=names, zca=zca, validation=validation, device=device
    )


def _names(classes: Any) -> list[str]:
    """The names of classes, in the order of their labels."""
    if not isinstance(classes, Iterable):
        raise Error(f"the `classes` are {classes!r}: give a list of names, one per class")
    if isinstance(classes, set | frozenset):
        raise Error(
            "the `classes` are a set, which has no order: give a list, in the order of the labels"
        )
    return [str(name) for name in classes]


def _common_names(train: Any, test: Any, given: list[str] | None) -> list[str] | None:
    """The names that are given for the classes of two datasets, or else those of the first. Raises
    Error where a label would mean two things.
    """
    lists = [("the training images", names) for names in _own_names(train)]
    lists += [("the test images", names) for names in _own_names(test)]
    for other in lists[1:]:
        _refuse_others(lists[0], other)
    if given is None:
        return _listed(train)
    for where, names in lists[:1]:  # the others are the same
        n = min(len(names), len(given))
        moved = any(a != b and b in names for a, b in zip(names[:n], given[:n], strict=True))
        if moved or len(names) != len(given):  # else all may have names in another language
            _refuse_others((where, names[:n]), ("`classes`", given[:n]))
    return given


def _refuse_others(one: tuple[str, Sequence[str]], other: tuple[str, Sequence[str]]) -> None:
    """Raise an Error for the first label of which two lists, each with its place, differ."""
    (here, ours), (there, theirs) = one, other
    for label, (a, b) in enumerate(zip_longest(ours, theirs, fillvalue="nothing")):
        if a != b:
            raise Error(
                f"label {label} means {a} in {here} and {b} in "
                f"{'others of them' if here == there else there}: bring both to the same list of "
                "classes"
            )


def _own_names(dataset: Any) -> list[list[str]]:
    """The lists of classes of a dataset and, where it has none, of those that it is a part of or
    put together from.
    """
    if (names := _listed(dataset)) is not None:
        return [names]
    if isinstance(dataset, Subset):
        return _own_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset | ChainDataset):
        return [names for part in dataset.datasets for names in _own_names(part)]
    return []


def _listed(dataset: Any) -> list[str] | None:
    """The classes that a dataset lists, in the order of their labels."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, Iterable) or isinstance(names, str | Mapping | set | frozenset):
        return None
    return [str(name) for name in names]


def _stacked(name: str, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Stack all images and labels of a dataset."""
    images, labels = [], []
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    indexed = indexed and not issubclass(type(dataset), IterableDataset)
    if indexed and not hasattr(dataset, "__iter__"):  # Python would read on behind its length
        items = (dataset[i] for i in range(len(dataset)))
    else:
        items = iter(dataset)
    for item in items:
        image, label = _pair(name, item)
        images.append(_pixels_of(image))
        labels.append(label)
    again = range(min(len(dataset), TRIES)) if indexed else ()
    pixels = lambda i: _pixels_of(_pair(name, dataset[i])[0])
    if any(images[i].tobytes() != pixels(i).tobytes() for i in again):
        raise Error(
            f"the {name} dataset gives an image in another form each time: leave out random "
            "transforms, as ddpp augments the images itself"
        )
    if sizes := {image.shape for image in images[1:]} - {image.shape for image in images[:1]}:
        raise Error(
            f"the {name} images have several shapes, as {images[0].shape} and {sizes.pop()}: "
            "resize and convert all to one"
        )
    if not images:
        raise Error(f"the {name} dataset yields nothing: give at least one image")
    return np.stack(images), np.array(labels)


def _pixels_of(image: Any) -> np.ndarray:
    """The pixels of an image that a dataset yields, channels last."""
    if isinstance(image, Image.Image) and image.mode in ("P", "PA"):
        image = image.convert("RGB")  # its values are indices into a palette
    return _array(image[None])[0] if isinstance(image, Tensor) else np.asarray(image)


def _pair(name: str, item: Any) -> tuple[Any, int]:
    """Return an image and its label, or raise an Error for what a dataset should not yield."""
    try:
        image, label = item
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(item, Mapping) or not number.is_integer():
        what = f"a {type(item).__name__}"
        if isinstance(item, tuple | list):
            what += f" of {', '.join(type(part).__name__ for part in item)}"
        raise Error(
            f"the {name} dataset yields {what}: it must yield pairs of an image and its label, an "
            "integer, one at a time. Of rows with names, give "
            '[(row["image"], row["label"]) for row in dataset]'
        )
    return image, int(number)


def _array(values: np.ndarray | Tensor | Sequence[int]) -> np.ndarray:
    """Turn a tensor, with channels first, or anything else, with channels last, into an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has none
    return (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).numpy()


def _prepared(
    name: str,
    arrays: dict[str, np.ndarray],
    zca: bool | None,
    validation: float,
    whitening: Whitening | None,
    device: str | torch.device | None,
) -> ImageData:
    """Check raw arrays and preprocess them. For the arguments see `load_data`."""
    check(name, arrays)
    classes = class_names(name, arrays)
    if isinstance(validation, np.generic):
        validation = validation.item()  # which files can hold
    if not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise Error(f"the validation share is {validation!r}: it must be at least 0 and below 1")

    device = find_device(device)
    raw = {part: _raw(arrays, part, device) for part in ("train", "test")}
    held_out = _hold_out(raw["train"].labels, len(classes), validation)
    if without := _without(raw["train"].labels[held_out], classes):
        warnings.warn(
            f"the class '{without[0]}' has too few images for {validation:g} of them to be one, so "
            "iterates are chosen on the other classes alone: raise validation, or set it to 0",
            stacklevel=3,
        )
    given = ""
    if whitening is not None:
        whitening = whitening.to(device)
        given = "" if whitening.fits(raw["train"].images[~held_out]) else whitening.numbers
    else:
        use_zca = raw["train"].images[0].numel() <= ZCA_LIMIT if zca is None else zca
        whitening = (fit_zca if use_zca else fit_channels)(raw["train"].images[~held_out])
    images, labels = whitening.apply(raw["train"].images), raw["train"].labels
    splits = {
        "train": Split(images[~held_out], labels[~held_out]),
        "validation": Split(images[held_out], labels[held_out]) if held_out.any() else None,
        "test": Split(whitening.apply(raw["test"].images), raw["test"].labels),
    }
    hashes = forms(arrays)
    return ImageData(
        name=name,
        classes=classes,
        **splits,
        loaded={part: Watched(split) for part, split in splits.items()},
        whitening=whitening,
        held_out=validation,
        given=given,
        sha256=hashes[0],
        forms=hashes,
    )


def _raw(arrays: dict[str, np.ndarray], part: str, device: torch.device) -> Split:
    """Move one part of the raw arrays to the device, as pixels in [0, 1] and int64 labels."""
    labels = torch.from_numpy(arrays[f"y_{part}"].astype(np.int64))
    return Split(_pixels(arrays[f"x_{part}"]), labels).to(device)


def _pixels(x: np.ndarray) -> Tensor:
    """Turn uint8 or float (N, H, W[, C]) into float32 (N, C, H, W) in [0, 1]."""
    x = np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32, copy=False))
    images = torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)
    # not `contiguous`, which leaves images of one channel with the strides of the array
    images = images.clone(memory_format=torch.contiguous_format)
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _without(held_out: Tensor, classes: Sequence[str]) -> list[str]:
    """The classes that have no held-out image where others have some."""
    there = set(held_out.tolist())
    return [name for label, name in enumerate(classes) if there and label not in there]


def _hold_out(labels: Tensor, classes: int, share: float) -> Tensor:
    """Mark the last `share` of each class, so that the split needs no seed."""
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(classes):
        members = (labels == label).nonzero().flatten()
        count = int(round(len(members) * share, 6))  # 0.29 * 100 is 28.999999999999996
        held_out[members[len(members) - count :]] = True
    return held_out
