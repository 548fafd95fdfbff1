"""Read the images, labels and learning rate that other codes of the field save.

A .pt file is read with `weights_only=True`: tensors, numbers and containers are taken, and a file
that would call anything else is refused unread. Known are the files of

- MTT, DATM and their descendants (FTD, TESLA, PAD, EDF ...): images_best.pt, with labels_best.pt
  and, of DATM, lr_best.pt beside it; DATM's labels are logits;
- DC, DSA, DM and CAFE: one res_*.pt with {"data": [[images, labels], ...]}, one per experiment;
- whatever holds a dictionary or a tuple of images, labels and a learning rate;
- .npz files with such arrays;
- folders of pictures, FOLDER/CLASS/PICTURE.
"""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ddpp.data.folder import read_classes, read_picture
from ddpp.foundation.errors import Error, described

FOREIGN = (".pt", ".pth", ".npz")
IMAGES = ("images", "image", "x", "x_train", "data", "image_syn", "syn_images")
LABELS = ("labels", "label", "y", "y_train", "targets", "target", "label_syn", "syn_labels")
LABELS += ("y_syn", "label_train")
RATES = ("lr", "alpha", "syn_lr", "lr_net", "learning_rate")
WHERE = "give a .pt of tensors, an .npz, a folder of pictures, or a file of ddpp"
NUMBERS = (torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS += (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Found:
    """What a file holds, as it is there."""

    images: Tensor  # (N, C, H, W), uint8 or floating point
    labels: Tensor | None = None  # (N,) or (N, classes)
    alpha: float | None = None
    classes: tuple[str, ...] | None = None  # names of the folders, where there are some
    space: str | None = None  # of the pixels, where a text beside them says it
    likely: str | None = None  # the space that the form of the file suggests
    notes: tuple[str, ...] = ()  # what was assumed, in words

    def but(self, note: str, **changes: Any) -> "Found":
        """The same with changes, and a note on them."""
        return replace(self, notes=(*self.notes, note), **changes)


def read_tensors(path: str | Path, size: int = 32) -> Found:
    """Read a distilled set that was not written by ddpp.

    - path: a .pt or .pth file, an .npz file, or a folder of pictures.
    - size: side in pixels to which pictures are brought.

    Returns its tensors as they are. Raises Error for a file that would run code, is damaged, or
    holds no images.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, size)
    if not path.is_file():
        raise Error(f"there is no file {path}: check the path")
    if path.suffix == ".npz":
        return _checked(_from_mapping(_read_npz(path), path), path)
    if path.suffix not in FOREIGN:
        raise Error(f"{path} is of no kind that is known here: {WHERE}")
    content = _read_pt(path)
    if isinstance(content, Tensor):
        if content.ndim < 3 and re.search(r"(?<![a-z])(labels?|lr)(?![a-z])", path.stem):
            raise Error(f"{path} holds labels or a learning rate: give the file of the images")
        return _checked(_with_siblings(Found(content), path), path)
    if isinstance(content, dict):
        return _checked(_from_mapping(content, path), path)
    if isinstance(content, (list, tuple)):
        return _checked(_from_sequence(content, path), path)
    raise Error(f"{path} holds a {type(content).__name__}, and no images: {WHERE}")


def _read_pt(path: Path) -> Any:
    """Read tensors, numbers and containers; NumPy's numbers too, which DC saves as accuracies."""
    scalar = np.float64(0).__reduce__()[0]
    number = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype]
    number += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    try:
        _check_sums(path)
        with torch.serialization.safe_globals(number):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as e:
        named = re.search(r"GLOBAL (\S+)", str(e))
        what = f"would call {named[1].rstrip('.,')}" if named else "is no file of tensors"
        raise Error(
            f"{path} was not opened: it {what}, and a set of images needs no code. Ask its owner "
            "for tensors alone"
        ) from None
    except Exception as e:  # a file cut short raises whatever its bytes happen to mean
        raise Error(
            f"{path} is damaged, or no file of torch.save ({type(e).__name__}): get it anew"
        ) from None


def _check_sums(path: Path) -> None:
    """Raise BadZipFile for a part with another checksum than it was saved with: `torch.load` does
    not look at them.

    Where `torch.serialization.set_crc32_options` left them out, all are 0.
    """
    if not zipfile.is_zipfile(path):  # as of PyTorch before 1.6, which wrote none
        return
    with zipfile.ZipFile(path) as file:
        if any(part.CRC for part in file.infolist()) and (name := file.testzip()):
            raise zipfile.BadZipFile(name)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: _from_numpy(file[name]) for name in file.files}
    except Exception as e:  # damaged bytes raise whatever they happen to mean
        raise Error(
            f"{path} cannot be read ({type(e).__name__}): it must be an .npz of numbers alone, not "
            "damaged"
        ) from None


def _from_numpy(array: np.ndarray) -> Tensor | list[str]:
    """A tensor, also of numbers in another order of bytes, or the list of an array of texts."""
    if array.dtype.kind == "U":
        return array.tolist()
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _read_folder(folder: Path, size: int) -> Found:
    classes = read_classes(folder)
    pictures = [(label, path) for label, paths in enumerate(classes.values()) for path in paths]
    images = np.stack([read_picture(path, size) for _, path in pictures])
    found = Found(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([label for label, _ in pictures]),
        classes=tuple(classes),
    )
    return found.but(f"pictures of a folder, brought to {size} x {size} pixels")


def _with_siblings(found: Found, path: Path) -> Found:
    """Add the labels, the learning rate and the space that lie beside images_*.pt."""
    named = path.with_name(path.name.replace("images", "space")).with_suffix(".txt")
    if named.stem != path.stem and named.is_file():  # of `export`
        found = replace(found, space=named.read_text(errors="replace").strip())
    for word, field in (("labels", "labels"), ("label", "labels"), ("lr", "alpha")):
        beside = path.with_name(path.name.replace("images", word).replace("image", word))
        if beside == path or not beside.is_file():
            continue
        value = _read_pt(beside)
        if not isinstance(value, Tensor):
            raise Error(f"{beside} holds a {type(value).__name__}: save a tensor there")
        value = _number(value, beside) if field == "alpha" else value
        found = found.but(f"{field if field == 'labels' else 'learning rate'} of {beside.name}")
        found = replace(found, **{field: value})
    return found


def _from_mapping(content: dict, path: Path) -> Found:
    value = lambda names: next((content[name] for name in names if name in content), None)
    images, labels, rate = map(value, (IMAGES, LABELS, RATES))
    if isinstance(images, (list, tuple)):
        found = _from_list(images, path)
    elif isinstance(images, Tensor):
        found = Found(images)
    else:
        names = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise Error(f"{path} has no images among its entries ({names}): name them 'images'")
    if found.labels is None:
        found = replace(found, labels=labels)
    if found.labels is None:
        _refuse_other_labels(content, len(found.images), path)
    if found.alpha is None and rate is not None:
        found = replace(found, alpha=_number(rate, path))
    names = content.get("classes")
    if found.labels is not None and _name(names, found.labels):
        found = replace(found, classes=tuple(names))
    return found


def _refuse_other_labels(content: dict, count: int, path: Path) -> None:
    """Raise an Error for an entry that may be the labels of so many images, under another name."""
    for name, value in content.items():
        if name in (*IMAGES, *RATES) or not isinstance(value, Tensor) or value.ndim > 2:
            continue
        if value.shape[:1] == (count,):
            raise Error(
                f"{path} has no labels, but {count} numbers named '{name}': name them 'labels' if "
                "that is what they are, or leave them out, and images count as sorted by class"
            )


def _name(names: object, labels: Tensor) -> TypeGuard[Sequence[str]]:
    """Whether these are the names of the classes that the labels number."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return False
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return False
    return len(labels) > 0 and 0 <= int(labels.min()) <= int(labels.max()) < len(names)


def _from_list(images: Sequence[Any], path: Path) -> Found:
    """Read images with what belongs to them, or DC's list of experiments, which are such lists."""
    if not images:
        raise Error(f"{path} holds an empty list: it must hold images")
    if isinstance(images[0], Tensor):
        return _from_sequence(images, path)
    more = f"the first of {len(images)} experiments" if len(images) > 1 else "its experiment"
    # whose code standardizes all images
    return _from_sequence(images[0], path).but(f"{more} in the file", likely="standardized")


def _from_sequence(content: Any, path: Path) -> Found:
    if isinstance(content, Tensor):
        return Found(content)
    parts = list(content) if isinstance(content, (list, tuple)) else []
    if len(parts) > 1 and all(isinstance(part, Tensor) and part.ndim > 2 for part in parts):
        raise Error(
            f"{path} holds a list of {len(parts)} tensors of images: join them with torch.cat, or "
            "single images with torch.stack, and give the labels"
        )
    if not 1 <= len(parts) <= 3 or not all(isinstance(part, Tensor) for part in parts[:2]):
        raise Error(
            f"{path} holds a list of {len(parts)} things: save a tensor of images, or a list of "
            "images, labels and, if there is one, the learning rate"
        )
    rate = _number(parts[2], path) if len(parts) == 3 else None
    return Found(parts[0], parts[1] if len(parts) > 1 else None, rate)


def _number(value: Any, path: Path) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise Error(
            f"the learning rate in {path} is {described(value)}: save a single number"
        ) from None


def _checked(found: Found, path: Path) -> Found:
    """Refuse what are no images; give grey ones their channel, and channels their place."""
    images, labels = found.images, found.labels
    _check_dense(images, "images", path)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    shape = tuple(found.images.shape)
    if images.ndim != 4 or not len(images) or images.shape[2] != images.shape[3]:
        raise Error(f"{path} holds a tensor {shape}: images are (N, C, S, S), and at least one")
    if not images.isfinite().all():
        raise Error(
            f"the images in {path} hold values that are not finite: replace or leave out those "
            "images"
        )
    if labels is not None and (
        not isinstance(labels, Tensor) or labels.shape[:1] != images.shape[:1]
    ):
        what = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise Error(
            f"{path} has {len(images)} images and labels {what}: there must be one for each"
        )
    if labels is not None:
        _check_dense(labels, "labels", path)
    return replace(found, images=images.detach())


def _check_dense(tensor: Tensor, what: str, path: Path) -> None:
    """Refuse a tensor that is not simply an array of real numbers."""
    strange = tensor.is_quantized or tensor.is_complex() or tensor.is_meta
    if not strange and tensor.dtype not in NUMBERS:
        raise Error(
            f"the {what} in {path} are of {tensor.dtype}: save them as uint8, float32 or int64, "
            "images of 16 bits divided by 65535"
        )
    if strange or tensor.layout != torch.strided:
        kind = " on the device meta" if tensor.is_meta else f", {tensor.layout}"
        raise Error(
            f"the {what} in {path} are a tensor of {tensor.dtype}{kind}: save real numbers as a "
            "dense tensor, see Tensor.to_dense and Tensor.dequantize"
        )
