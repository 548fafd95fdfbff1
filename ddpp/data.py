"""Data sets as whole tensors on one device: CIFAR-10 (bundled sample or complete), CIFAR-100, or
any .npz file.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpp.foundation import files
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, NetworkConfig
from ddpp.whitening import Whitening, fit_channels, fit_zca

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
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# pixels x channels up to which ZCA is fitted unless told otherwise: its cost is cubic
ZCA_LIMIT = 3 * 32 * 32
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


class Split(NamedTuple):
    """Images (N, C, H, W), preprocessed, float32; labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, repr=False)
class ImageData:
    """A data set on one device. `validation` is held out from training, and thereby from the
    teachers and the ZCA.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    whitening: Whitening
    held_out: float  # the share of each class's training images that became `validation`
    sha256: str  # of the raw arrays: the same data from another source has the same

    def __repr__(self) -> str:
        held_out = f", {len(self.validation.labels):,} held out" if self.validation else ""
        kind = {"zca": "ZCA whitening", "channels": "mean and deviation per channel"}[
            self.whitening.kind
        ]
        return (
            f"{self.name}: {len(self.train.labels):,} images to train on{held_out}, "
            f"{len(self.test.labels):,} to test on, "
            f"{len(self.classes)} classes, {'x'.join(map(str, self.shape))}; {kind}; on "
            f"{self.device.type}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    @property
    def identity(self) -> dict:
        """What a file derived from this data records, and is checked against."""
        return {
            "sha256": self.sha256,
            "whitening": self.whitening.kind,
            "validation": self.held_out,
        }

    @property
    def provenance(self) -> dict:
        """What a distilled file says of its data."""
        return {"data": {"name": self.name, **self.identity}}

    def made_from(self, network: NetworkConfig) -> dict:
        """What a run on this data without teachers is made from, for its identity."""
        return {"network": asdict(network), "images": self.identity}

    def network(self, config: NetworkConfig) -> Flat:
        """The network of a NetworkConfig, sized for these images and classes."""
        return config.build(self.shape[0], len(self.classes), self.shape[1], self.device)

    def draw(self, ipc: int, seed: int) -> Split:
        """`ipc` random training images of each class, class by class."""
        if ipc < 1:
            raise Error(f"{ipc} images per class cannot be drawn: ask for at least 1")
        rng, picks = generator(seed, "draw", ipc), []
        for label, name in enumerate(self.classes):
            members = (self.train.labels == label).nonzero().flatten().cpu()
            if len(members) < ipc:
                raise Error(
                    f"class '{name}' has {len(members)} training images, fewer than the {ipc} "
                    "images per class asked "
                    "for: lower the images per class"
                )
            picks.append(members[torch.randperm(len(members), generator=rng)[:ipc]])
        index = torch.cat(picks).to(self.device)
        return Split(self.train.images[index], self.train.labels[index])


def load_data(
    name_or_path: str | Path = "cifar10-sample",
    *,
    root: str | Path | None = None,
    zca: bool | None = None,
    validation: float = 0.1,
    whitening: Whitening | None = None,
    device: str | torch.device | None = None,
) -> ImageData:
    """Load and preprocess a data set, all of it, on one device (the GPU if there is one).

    - name_or_path: "cifar10-sample" (bundled: 5,000 + 1,000 images), "cifar10", "cifar100" (from
      ROOT/NAME.npz if that exists, else torchvision's download into ROOT), or an .npz file with
      x_train, y_train, x_test, y_test and optionally `classes`; images (N, S, S) or (N, S, S, C),
      uint8 or floats in [0, 1]; labels integers from 0.
    - zca: ZCA (True) or mean and deviation per channel (False); None: ZCA up to 3 x 32 x 32 values
      an image.
    - validation: the share of each class's training images that is held out, for choosing among
      iterates.
    - whitening: use this preprocessing (of a distilled file, say) instead of fitting one.
    """
    name, arrays = _find(name_or_path, Path(root or "data"))
    _check(name, arrays)
    names = CLASSES.get(name, arrays.get("classes"))
    classes = tuple(map(str, range(len(np.unique(arrays["y_train"]))) if names is None else names))
    _check_labels(name, arrays, classes)
    if not 0 <= validation < 1:
        raise Error(f"the validation share is {validation}: it must be at least 0 and below 1")

    device = find_device(device)
    images = {key: _pixels(arrays[key]).to(device) for key in ("x_train", "x_test")}
    labels = {
        key: torch.from_numpy(arrays[key].astype(np.int64)).to(device)
        for key in ("y_train", "y_test")
    }
    held_out = _hold_out(labels["y_train"], len(classes), validation)
    if whitening is None:
        use_zca = images["x_train"][0].numel() <= ZCA_LIMIT if zca is None else zca
        whitening = (fit_zca if use_zca else fit_channels)(images["x_train"][~held_out])
    whitening = whitening.to(device)
    train = Split(whitening.apply(images["x_train"]), labels["y_train"])
    return ImageData(
        name=name,
        classes=classes,
        train=Split(train.images[~held_out], train.labels[~held_out]),
        validation=Split(train.images[held_out], train.labels[held_out])
        if held_out.any()
        else None,
        test=Split(whitening.apply(images["x_test"]), labels["y_test"]),
        whitening=whitening,
        held_out=validation,
        sha256=hashlib.sha256("".join(_sha256(arrays[key]) for key in ARRAYS).encode()).hexdigest(),
    )


def _find(name_or_path: str | Path, root: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The raw arrays and the data set's name."""
    text = str(name_or_path)
    if text == "cifar10-sample":
        return text, _unpack_sample()
    if text in SHA256:
        path = root / f"{text}.npz"
        return text, _read_npz(path) if path.exists() else _download(text, root)
    if not text.endswith(".npz"):
        choose("data set", text, [*SHA256, "a path that ends in .npz"])
    return Path(text).stem, _read_npz(Path(text))


def _unpack_sample() -> dict[str, np.ndarray]:
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
        reason = getattr(e, "strerror", None) or "it is damaged, or not an .npz"
        if "Object arrays" in str(e):
            reason = (
                "images of several sizes, or names that are Python objects, cannot be one array"
            )
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
        train, test = both(False)  # where it is complete, nothing need be written
    except Exception:  # missing, or in part
        files.check_writable(root / name)
        try:
            with files.lock(root / name, wait=True):  # several runs may want it at once
                train, test = both(True)
        except Exception as e:
            raise Error(
                f"{name} could not be downloaded into {root} ({e}): try again, or put {name}.npz "
                "there, "
                f"with {', '.join(ARRAYS)}"
            ) from e
    label = lambda part: np.asarray(part.targets, dtype=np.uint8)
    return {
        "x_train": train.data,
        "y_train": label(train),
        "x_test": test.data,
        "y_test": label(test),
    }


def _check(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Everything that can be wrong with somebody's arrays, each with its own sentence."""
    for key, want in SHA256.get(name, {}).items():
        if _sha256(arrays[key]) != want:
            raise Error(
                f"{key} of {name} is not the official array (its SHA-256 differs): "
                "fetch the data again, or give data of your own another name"
            )
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim not in (3, 4) or x.shape[1] != x.shape[2]:
            raise Error(
                f"x_{part} has the shape {x.shape}: images must be square and lie as (N, S, S) "
                "or (N, S, S, C), "
                "channels last; crop or transpose them"
            )
        if not x.size:
            raise Error(
                f"x_{part} has the shape {x.shape}, without a single pixel: give at least one image"
            )
        if x.dtype != np.uint8:
            if not np.issubdtype(x.dtype, np.floating):
                raise Error(
                    f"x_{part} has the type {x.dtype}: give uint8, or floats between 0 and 1"
                )
            if not np.isfinite(x).all():
                raise Error(
                    f"x_{part} holds values that are not finite: replace or drop those images"
                )
            if x.min() < 0 or x.max() > 1:
                raise Error(
                    f"x_{part} has values from {x.min():g} to {x.max():g}: scale the floats to "
                    "between 0 and 1"
                )
        if not np.issubdtype(y.dtype, np.integer):
            raise Error(
                f"y_{part} has the type {y.dtype}: labels must be integers from 0 to the number "
                "of classes - 1"
            )
        if y.shape != (len(x),):
            raise Error(
                f"x_{part} has {len(x)} images but y_{part} has the shape {y.shape}: one label "
                "per image is needed"
            )
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise Error(
            f"training images are {arrays['x_train'].shape[1:]} and test images "
            f"{arrays['x_test'].shape[1:]}: "
            "bring all images to one size"
        )
    names = arrays.get("classes")
    if names is not None and (names.ndim != 1 or len(np.unique(names)) < len(names)):
        raise Error(
            f"the `classes` of {name} must be a list of different names, one per class: correct "
            "them"
        )


def _check_labels(name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    for key in ("y_train", "y_test"):
        y = arrays[key]
        if y.min() < 0 or y.max() >= len(classes):
            raise Error(
                f"{key} of {name} has labels from {y.min()} to {y.max()}, but there are "
                f"{len(classes)} classes: "
                f"labels must be integers from 0 to {len(classes) - 1}, without gaps"
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


def _pixels(x: np.ndarray) -> Tensor:
    """uint8 or float (N, H, W[, C]) -> float32 (N, C, H, W) in [0, 1]."""
    x = x if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
    images = torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)
    # `contiguous` leaves one channel as it lies there
    images = images.clone(memory_format=torch.contiguous_format)
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _hold_out(labels: Tensor, classes: int, share: float) -> Tensor:
    """Mark the last `share` of each class, so that the split needs no seed."""
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(classes):
        members = (labels == label).nonzero().flatten()
        held_out[members[len(members) - int(len(members) * share) :]] = True
    return held_out


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
