"""Where images come from: CIFAR-10 (complete or the bundled sample), CIFAR-100, or any .npz file.

Arrays that cannot be used are refused here, each problem with its own sentence.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose

SAMPLE = Path(__file__).parent / "cifar10-sample.webp"
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""
CLASSES = {
    "cifar10-sample": CIFAR10.split(),
    "cifar10": CIFAR10.split(),
    "cifar100": CIFAR100.split(),
}
DARKEST = 16  # the largest value of bytes that were hardly meant as such: the digits have 0 to 16
ROUNDING = 1e-3  # by which resized floats may leave 0 to 1
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
SHA256 = {  # of the arrays' bytes: uint8 images (N, H, W, C) and labels (N,) in the official order
    "cifar10-sample": {
        "x_train": "2bdb8845b4c545aa96aa32c15b131996650eb6b4584728d18da23488e0135cc0",
        "y_train": "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d",
        "x_test": "7c38c61aa8c7f1716d28cda247fd6f77a8db4bc051de264382e94804d47bce91",
        "y_test": "19cab774765c7ba7873e2eb3cee313c084bbb20b53116334dd0e24cd06e8d4e5",
    },
    "cifar10": {
        "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    "cifar100": {
        "x_train": "4e457917601a66aed021f5fa37957b56c6319557c0a8ed5484de3c390af45430",
        "y_train": "9f11b9f97aad759ba6df0a33e3218b01d8deaf4ed3a14aa1185d69b9ad7ebcb3",
        "x_test": "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19",
        "y_test": "4dad7d09c7c97d33f6cb928d705cf4196221316fd6e31bdd978a08ed9103ee0b",
    },
}


def find(name_or_path: str | Path, root: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Find a data set's name and raw arrays."""
    text = str(name_or_path)
    if text == "cifar10-sample":
        return text, unpack_sample()
    if text in SHA256:
        path = root / f"{text}.npz"
        return text, _read_npz(path) if path.exists() else _download(text, root)
    if os.path.isdir(text):  # which answers for any text
        raise Error(
            f"{text} is a folder: make it a file with `ddpp pack {text} --out mine.npz`, and give "
            "that"
        )
    if not text.endswith(".npz"):
        choose("data set", text, [*SHA256, "a path that ends in .npz"])
    return Path(text).stem, _read_npz(Path(text))


def unpack_sample() -> dict[str, np.ndarray]:
    """Unpack the bundled sample of CIFAR-10."""
    mosaic = np.asarray(Image.open(SAMPLE).convert("RGB"))  # 75 x 80 tiles of 32 x 32, row by row
    tiles = mosaic.reshape(75, 32, 80, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    label = lambda per_class: np.repeat(np.arange(10, dtype=np.uint8), per_class)
    return {
        "x_train": tiles[:5000],
        "y_train": label(500),
        "x_test": tiles[5000:],
        "y_test": label(100),
    }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        if not path.is_file():
            raise Error(f"there is no file {path}: check the path")
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [key for key in ARRAYS if key not in file]
            if missing:
                raise Error(f"{path} lacks {', '.join(missing)}: it must hold {', '.join(ARRAYS)}")
            return {key: file[key] for key in (*ARRAYS, "classes") if key in file}
    except Error:
        raise
    except Exception as e:
        reason = getattr(e, "strerror", None) or "the file is damaged, or not an .npz"
        if "Object arrays" in str(e):
            reason = "images of several sizes, or names that are Python objects, are not one array"
        raise Error(
            f"{path} cannot be read: {reason}. Write it with numpy.savez, all images of one size"
        ) from e


def _download(name: str, root: Path) -> dict[str, np.ndarray]:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    both = lambda download: [
        dataset(str(root), train=part, download=download) for part in (True, False)
    ]
    try:
        train, test = both(False)  # a complete data set needs no permission to write
    except Exception:  # missing or incomplete
        target = root / f"{name}.npz"  # a name that torchvision does not give to a folder
        files.check_writable(target)
        try:
            with files.lock(target, wait=True):  # several runs may download at once
                train, test = both(True)
        except Exception as e:
            raise Error(
                f"{name} could not be downloaded into {root} ({e}): try again, or put {name}.npz "
                f"there, with {', '.join(ARRAYS)}"
            ) from e
    label = lambda part: np.asarray(part.targets, dtype=np.uint8)
    return {
        "x_train": train.data,
        "y_train": label(train),
        "x_test": test.data,
        "y_test": label(test),
    }


def check(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Raise an Error, with its own sentence, for everything that can be wrong with the arrays."""
    for key, want in SHA256.get(name, {}).items():
        if sha256(arrays[key]) != want:
            raise Error(
                f"{key} of {name} is not the official array (its SHA-256 differs): "
                "fetch the data again, or give data of your own another name"
            )
    for part in ("train", "test"):
        _check_images(f"x_{part}", arrays[f"x_{part}"])
        _check_labels_of(part, arrays)
    train, test = (arrays[key].shape[1:] for key in ("x_train", "x_test"))
    if train != test:
        raise Error(
            f"training images are {train} and test images {test}: bring all images to one size"
        )
    names = arrays.get("classes")
    if names is not None and (names.ndim != 1 or len(np.unique(names)) < len(names)):
        raise Error(
            f"the `classes` of {name} must be a list of different names, one per class: correct "
            "them"
        )


def _check_images(key: str, x: np.ndarray) -> None:
    if x.ndim not in (3, 4) or x.shape[1] != x.shape[2]:
        raise Error(
            f"{key} has the shape {x.shape}: images must be square and lie as (N, S, S) or "
            "(N, S, S, C), channels last; crop or transpose them"
        )
    if not x.size:
        raise Error(
            f"{key} has the shape {x.shape}, without a single pixel: give at least one image"
        )
    if x.dtype == np.uint8:
        warn_of_darkness(f"{key} goes", int(x.min()), int(x.max()), stacklevel=6)
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise Error(f"{key} has the type {x.dtype}: give uint8, or floats between 0 and 1")
    if not np.isfinite(x).all():
        raise Error(f"{key} holds values that are not finite: replace or drop those images")
    if x.min() < -ROUNDING or x.max() > 1 + ROUNDING:
        raise Error(
            f"{key} has values from {x.min():g} to {x.max():g}: scale the floats to between 0 and 1"
        )


def warn_of_darkness(what: str, low: int, high: int, stacklevel: int) -> None:
    """Warn of bytes that were hardly meant as such.

    - what: they are, with a verb, as in "x_train goes".
    - low, high: the least and the largest.
    """
    if 0 < high <= DARKEST:
        warnings.warn(
            f"{what} from {low} to {high} as uint8, in which white is 255, so all its images are "
            "nearly black: multiply the values, or give floats from 0 to 1",
            stacklevel=stacklevel,
        )


def _check_labels_of(part: str, arrays: dict[str, np.ndarray]) -> None:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if not np.issubdtype(y.dtype, np.integer):
        raise Error(
            f"y_{part} has the type {y.dtype}: labels must be integers from 0 to the number of "
            "classes - 1"
        )
    if y.shape != (len(x),):
        raise Error(
            f"x_{part} has {len(x)} images but y_{part} has the shape {y.shape}: one label per "
            "image is needed"
        )


def class_names(name: str, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Name the classes, after a check that the labels fit them."""
    names = CLASSES.get(name, arrays.get("classes"))
    classes = tuple(map(str, range(len(np.unique(arrays["y_train"]))) if names is None else names))
    check_labels(name, arrays, classes)
    return classes


def classes_of(name_or_path: str | Path, root: Path) -> tuple[str, ...]:
    """Name the classes of a data set, after a check of all its arrays."""
    name, arrays = find(name_or_path, root)
    check(name, arrays)
    return class_names(name, arrays)


def keep_classes(
    name: str, arrays: dict[str, np.ndarray], labels: Iterable[int]
) -> tuple[str, dict[str, np.ndarray]]:
    """Keep some classes of a data set, and number them from 0 in the order of `labels`.

    Returns another name, and arrays with the names of the classes. Raises Error unless the
    labels name two or more different classes.
    """
    asked = _whole_numbers(labels)
    check(name, arrays)
    names = class_names(name, arrays)
    known = set(range(len(names)))
    if len(set(asked)) < max(2, len(asked)) or not set(asked) <= known:
        raise Error(
            f"the classes {asked} of {name} cannot be kept: give at least two different labels "
            f"from 0 to {len(names) - 1}"
        )
    new = np.full(len(names), -1)
    new[asked] = range(len(asked))
    kept = {"classes": np.array(names)[asked]}
    for part in ("train", "test"):
        y = new[arrays[f"y_{part}"]]
        kept |= {f"x_{part}": arrays[f"x_{part}"][y >= 0], f"y_{part}": y[y >= 0]}
    return f"{name}, {len(asked)} classes", kept


def _whole_numbers(labels: Iterable[int]) -> list[int]:
    """Labels as Python's integers, also if they are those of an array or a tensor."""
    try:
        given = [one.item() if isinstance(one, np.generic | Tensor) else one for one in labels]
    except (TypeError, RuntimeError):  # no list, or one of tensors with many numbers
        given = [None]
    whole = [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
    if len(whole) < len(given):
        raise Error(
            f"the classes to keep are {labels!r}: give a list of their labels, which are whole "
            "numbers"
        )
    return whole


def check_labels(name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    """Raise an Error unless the labels number these classes, each with a training image."""
    for key in ("y_train", "y_test"):
        y = arrays[key]
        if y.min() < 0 or y.max() >= len(classes):
            raise Error(
                f"{key} of {name} has labels from {y.min()} to {y.max()}, but there are "
                f"{len(classes)} classes: labels must be integers from 0 to {len(classes) - 1}, "
                "without gaps"
            )
    if len(classes) < 2:
        raise Error(
            f"{name} has one class only: give images of at least 2, or there is nothing to learn"
        )
    missing = sorted(set(range(len(classes))) - set(np.unique(arrays["y_train"]).tolist()))
    if missing:
        raise Error(
            f"class {missing[0]} of {name} has no training image: number the classes from 0 "
            "without gaps"
        )


def of_arrays(hashes: Mapping[str, str]) -> str:
    """Join the hashes of the four arrays into one for the data set."""
    return hashlib.sha256("".join(hashes[key] for key in ARRAYS).encode()).hexdigest()


def forms(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The hash of a data set as it is, and as it would be with labels of the other integer types.

    No single type will do: the official labels are uint8, those that `ddpp pack` writes are int64,
    and files say which hash their data have.
    """
    images = {key: sha256(arrays[key]) for key in ("x_train", "x_test")}
    labels = [arrays[key] for key in ("y_train", "y_test")]
    kinds = [(labels[0].dtype, labels[1].dtype)] + [(np.dtype(kind),) * 2 for kind in INTEGERS]
    found = []
    for kind in kinds:
        parts = [y.astype(to) for y, to in zip(labels, kind, strict=True)]
        if all(np.array_equal(part, y) for part, y in zip(parts, labels, strict=True)):
            train, test = map(sha256, parts)
            found.append(of_arrays(images | {"y_train": train, "y_test": test}))
    return tuple(dict.fromkeys(found))


def sha256(array: np.ndarray) -> str:
    """Hash an array's bytes, and its shape if these are images of an unusual number of channels.
    Else the bytes alone say the shape, as no square has three times the pixels of another.
    """
    unusual = array.ndim == 4 and array.shape[3] not in (1, 3)
    header = str(array.shape).encode() if unusual else b""
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()
