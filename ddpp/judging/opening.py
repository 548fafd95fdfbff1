"""Open any distilled set together with the data that it stands for."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.baselines.selection import LEARNING_RATE
from ddpp.data import ImageData, load_data
from ddpp.data.sources import DARKEST, SHA256
from ddpp.data.whitening import Whitening
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import RESULT, rejoin
from ddpp.distilled.checks import go_to_255
from ddpp.distilled.dataset import KIND
from ddpp.distilled.format import from_file
from ddpp.distilled.formation import fold
from ddpp.distilled.pictures import as_folder
from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.loop import CHECKPOINT
from ddpp.judging.sheets import ENDING, Sheet, read_sheet
from ddpp.judging.tensors import FOREIGN, Found, read_tensors
from ddpp.networks import NetworkConfig

SPACES = ("raw", "standardized", "whitened")
WIDEST = 5  # deviation that standardized pixels do not reach, not even learned ones
# mean and standard deviation with which the field's code standardizes, of DC's repository
PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True)
class Opened:
    """A set, the data to test it on, and what was assumed of it."""

    distilled: DistilledDataset
    data: ImageData
    space: str  # of its pixels: one of SPACES
    rated: bool  # whether it brought a learning rate
    notes: tuple[str, ...] = ()


def open_set(
    path: str | Path,
    data: str | Path | None = None,
    space: str | None = None,
    *,
    network: NetworkConfig | None = None,
    root: str | Path = "data",
    device: str | None = None,
) -> Opened:
    """Open a distilled set of any of the known kinds.

    - path: a file of `DistilledDataset.save`, a checkpoint, a result under results/, a sheet of
      `write_sheet`, or what `read_tensors` reads.
    - data: the data set that it stands for, as in `load_data`. Default: what a file of ddpp names.
    - space: of the pixels: "raw" (0 to 1, or 0 to 255), "standardized" (by channel) or "whitened"
      (ZCA). Default: recognized from their statistics, else Error. A file of ddpp says it itself.
    - network: to train. Default: as a file of ddpp says, else the ConvNet.
    - root, device: as in `load_data`.

    Raises Error for a file that would run code, is damaged, or does not fit the data.
    """
    if space is not None:
        choose("space", space, SPACES)
    if not Path(path).is_dir() and Path(path).suffix not in FOREIGN:
        return open_own(path, data, network=network, root=root, device=device)
    if data is None:
        raise Error(
            f"{path} does not say what data it stands for: name it with --data, in Python data="
        )
    # the whitening of all training images, as other codes have it
    plain = load_data(data, root=root, zca=False, device=device, validation=0)
    found = _grey(read_tensors(path, plain.shape[1]), plain)
    if tuple(found.images.shape[1:]) != plain.shape:
        mine, size = ("x".join(map(str, one)) for one in (found.images.shape[1:], plain.shape))
        raise Error(
            f"the images in {path} are {mine}, and those of {plain.name} are {size}: name the data "
            "that they stand for"
        )
    if found.classes is not None:
        found = _in_order(found, plain.classes)
    if found.images.dtype == torch.uint8 and space not in (None, "raw"):
        raise Error(f"the images in {path} are bytes, which are raw, not {space}: say --space raw")
    if space is None:
        space, why = _space_of(found, Path(path))
        found = found.but(f"{space}: {why}")
    found = _scaled(found, space)
    whitening = _whitening(space, plain, data, root, device)
    images_of = load_data(data, root=root, whitening=whitening, device=device)
    labels, notes = _labels(found, len(images_of.classes), path)
    images = found.images
    if images.dtype == torch.uint8:  # pixels, as was said or recognized, however dark they are
        images = images.float() / 255
    distilled = DistilledDataset.from_tensors(
        images,
        labels,
        LEARNING_RATE if found.alpha is None else found.alpha,
        images_of,
        network=network or NetworkConfig(),
        raw=space == "raw",
    )
    del distilled.provenance["data"]["validation"]  # whether any were held out, nobody knows
    rated = found.alpha is not None
    return Opened(distilled, images_of, space, rated, (*found.notes, *notes, *_gaps(distilled)))


def _gaps(distilled: DistilledDataset) -> list[str]:
    """Say that classes have no images, or fewer than others, as in a folder that is not whole."""
    if distilled.labels.is_floating_point():
        return []
    counts = [len(members) for members in distilled.by_class()]
    if missing := counts.count(0):
        name = distilled.classes[counts.index(0)]
        return [f"{missing} of {len(counts)} classes have no images, as {name}: is the set whole?"]
    least, most = min(counts), max(counts)
    return [] if least == most else [f"{least} to {most} images per class: is the set whole?"]


def load_set(
    path: str | Path, data: str | Path | None = None, *, root: str | Path = "data"
) -> DistilledDataset:
    """Read a file that ddpp has written. Only the preprocessing of some needs their data.

    - path: a file of `DistilledDataset.save`, a checkpoint, a result under results/, or a sheet.
    - data, root: as in `open_set`.
    """
    if _own(path).kind in (KIND, CHECKPOINT):
        return DistilledDataset.load(path)
    return open_own(path, data, root=root, device="cpu").distilled


def _space_of(found: Found, path: Path) -> tuple[str, str]:
    """Tell the space of a set, and the reason: as is written beside it, or from its pixels."""
    if found.space is not None and found.images.dtype != torch.uint8:
        return choose("space", found.space, SPACES), "as is written beside the images"
    if path.name.startswith("images_zca_"):
        return "raw", "under this name MTT saves natural colours"
    return recognize(found.images, likely=found.likely)


def recognize(images: Tensor, likely: str | None = None) -> tuple[str, str]:
    """Tell the space of the pixels from their statistics, and return it and the reason.

    - images: (N, C, H, W), of any type.
    - likely: the space that the form of the file suggests. It decides between natural colours and
      standardized ones.

    Numbers from 0 to 1, or from 0 to 255, are raw pixels. Real images have a deviation of 1 when
    standardized and of about 0.26 when whitened with MTT's ZCA, and neighbouring pixels correlate
    with 0.93 and 0.68. Distilled ones reach 0.9 to 2.3 and 0.4 to 1.2. Whitened values reach about
    as far below 0 as above it. Natural colours, strongly learned, deviate as much as standardized
    ones, but their mean is above 0. Raises Error where these leave it open.
    """
    if images.dtype == torch.uint8:
        if images.max() <= DARKEST:
            raise Error(
                f"the images are bytes from {int(images.min())} to {int(images.max())}, so nearly "
                "black: multiply them, so that white is 255, save floats from 0 to 1, or, if they "
                "are meant so, say --space raw"
            )
        return "raw", "whole numbers from 0 to 255"
    x = images.float()
    if x.min() >= 0 and x.max() <= 1:
        return "raw", "all values are in 0 to 1"
    if x.min() >= 0 and go_to_255(x) and x.max() <= 255:
        return "raw", "all values are in 0 to 255"
    deviation, near = float(x.std(correction=0)), _neighbours(x)
    numbers = f"deviation {deviation:.2f}, neighbouring pixels correlate with {near:.2f}"
    two_sided = float(x.min()) < -0.5 * float(x.max())  # dark raw pixels are below 0 by a little
    if deviation < 0.7 and abs(float(x.mean())) < 0.3 and near < 0.8 and two_sided:
        return "whitened", numbers
    centred = float(x.mean()) < 0.15 * deviation or likely == "standardized"
    if 0.8 < deviation < WIDEST and near > 0.7 and centred:
        return "standardized", numbers
    _refuse_signed(x)
    raise Error(
        f"it is not certain what the pixels are ({numbers}): say --space raw, standardized or "
        "whitened, in Python space="
    )


def _refuse_signed(images: Tensor) -> None:
    """Raise an Error for pixels that fill -1 to 1, a usual range that is none of the spaces."""
    low, high = float(images.min()), float(images.max())
    if -1.001 < low < -0.9 and 0.9 < high < 1.001:
        raise Error("the pixels go from -1 to 1: bring them to 0 to 1 first, as (images + 1) / 2")


def _neighbours(images: Tensor) -> float:
    """Correlate each pixel with the one to its right."""
    x = images - images.mean((1, 2, 3), keepdim=True)
    a, b = x[..., :-1], x[..., 1:]
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-12))


def open_own(
    path: str | Path,
    data: str | Path | None = None,
    *,
    network: NetworkConfig | None = None,
    root: str | Path = "data",
    device: str | None = None,
) -> Opened:
    """Open a file that ddpp has written. The arguments are the same as for `open_set`."""
    file = _own(path)
    stored = DistilledDataset.load(path) if file.kind in (KIND, CHECKPOINT) else None
    provenance = stored.provenance if stored else file.meta["provenance"]
    source = provenance.get("data", {})
    name = data or source.get("name")
    if data is None and name not in SHA256:
        own = f"was distilled from '{name}', a file of your own" if name else "names no data set"
        raise Error(f"{path} {own}: say where it is with --data, in Python data=")
    images_of = load_data(
        name,
        root=root,
        validation=source.get("validation", 0.1),
        zca=source.get("whitening") == "zca",
        whitening=stored.whitening if stored else None,
        device=device,
    )
    if stored is None:
        stored = file.join(images_of) if isinstance(file, Sheet) else _rejoined(file, images_of)
    if network:
        stored = replace(stored, network=asdict(network))
    space = "whitened" if images_of.whitening.kind == "zca" else "standardized"
    return Opened(stored.to(images_of.device), images_of, space, True, (f"a {file.kind} of ddpp",))


def _own(path: str | Path) -> files.Lazy | Sheet:
    """Read a file that ddpp has written: its kind and its metadata, at least."""
    if Path(path).suffix == ENDING:
        return read_sheet(path)
    return files.Lazy(path, KIND, CHECKPOINT, RESULT)


def _rejoined(file: files.Lazy, data: ImageData) -> DistilledDataset:
    """Join the images of a result with the preprocessing of their data, fitted anew."""
    provenance = file.meta["provenance"]
    made_from, config = provenance.get("teachers", provenance), provenance.get("config", {})
    network = made_from.get("network", asdict(NetworkConfig()))
    found = rejoin(file, data, from_file(network, provenance))
    done = provenance.get("stopped_at", config.get("steps"))
    mean = "mean_of" in provenance  # of several sets, so it is of no step
    if done and not mean and config.get("init", "real") == "real":  # where it began is known
        n = found.formation
        start = fold(data.draw(config["ipc"] * n**2, config["seed"]).images, n).to("cpu")
        began = start, torch.tensor(config.get("alpha0", config.get("alpha", LEARNING_RATE)))
        return replace(found, iterates={0: began, done: (found.images, found.alpha)})
    return found


def _whitening(
    space: str, plain: ImageData, data: str | Path, root: str | Path, device: str | None
) -> Whitening:
    """Return the preprocessing that goes with a space, as the field's code has it."""
    if space == "whitened":
        return load_data(data, root=root, zca=True, device=device, validation=0).whitening
    known = PUBLISHED.get(plain.name.removesuffix("-sample"))
    if space == "standardized" and known:
        mean, std = (torch.tensor(x).view(3, 1, 1).to(plain.device) for x in known)
        return Whitening("channels", mean.expand(plain.shape).contiguous(), std=std)
    return plain.whitening


def _grey(found: Found, data: ImageData) -> Found:
    """Take one of three equal channels, as pictures have them, where the data have one."""
    images = found.images
    equal = images.shape[1] == 3 and (images == images[:, :1]).all()
    return replace(found, images=images[:, :1]) if data.shape[0] == 1 and equal else found


def _scaled(found: Found, space: str) -> Found:
    """Bring raw pixels to 0 to 1. Pixels of 8 bits may be there as numbers of any type."""
    images = found.images
    if space == "raw" and images.dtype != torch.uint8:
        _refuse_signed(images.float())
    if space != "raw" or images.dtype == torch.uint8 or not go_to_255(images):
        return found
    return found.but("values from 0 to 255: divided by 255", images=images.float() / 255)


def _in_order(found: Found, classes: tuple[str, ...]) -> Found:
    """Give labels with names, as of folders, the order of the data's classes."""
    assert found.classes is not None and found.labels is not None
    # by their names, or as folders of `export_png` have them
    known = {as_folder(name): label for label, name in enumerate(classes)}
    known |= {name: label for label, name in enumerate(classes)}
    folders = [as_folder(name) for name in classes]
    numbered = [f"{label}_{name}" for label, name in enumerate(folders)]  # by `export_png`
    if sorted(found.classes) == sorted(numbered):
        index = torch.tensor([numbered.index(name) for name in found.classes])
        return replace(found, labels=index[found.labels])
    names = [name if name in known else re.sub(r"^\d+_", "", name) for name in found.classes]
    for folder, name in zip(found.classes, names, strict=True):
        alike = name not in classes and folders.count(name) > 1
        if names.count(name) > 1 or alike or (folder == name and folder in numbered):
            raise Error(
                f"the folder '{folder}' may be of several classes, whose names differ only in "
                "signs or in a number before them: give the images as tensors, or rename the "
                "classes"
            )
    if missing := sorted(set(names) - set(known)):
        raise Error(
            f"'{missing[0]}' is no class of the data: its classes are {', '.join(classes)}. Rename "
            "it, or, in a file of tensors, leave out 'classes': the labels are then their numbers"
        )
    index = torch.tensor([known[name] for name in names])
    return replace(found, labels=index[found.labels])


def _labels(found: Found, classes: int, path: str | Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as `DistilledDataset` takes them, and what was assumed."""
    labels, n = found.labels, len(found.images)
    if labels is None:
        if n % classes:
            raise Error(
                f"{path} has no labels, and {n} images are not the same number for each of "
                f"{classes} classes: give the labels beside them"
            )
        each = torch.arange(classes).repeat_interleave(n // classes)
        return each, ("no labels: taken as sorted by class",)
    labels = labels.detach()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1:
        if not torch.equal(labels.float(), labels.float().round()):
            raise Error(
                f"the labels of {path} are no whole numbers: give the class of each image, from 0"
            )
        return labels.long(), ()
    labels = labels.float()
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise Error(
            f"the labels of {path} are {tuple(labels.shape)}: for {classes} classes give "
            f"({n},) or ({n}, {classes})"
        )
    if not labels.isfinite().all():
        raise Error(
            f"the labels of {path} hold values that are not finite: replace them, or leave out "
            "their images"
        )
    sums = labels.sum(1)
    if (labels >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return labels, ("soft labels",)
    if torch.allclose(sums, torch.zeros_like(sums), atol=1e-3) and labels.abs().max() <= 1:
        raise Error(
            f"the labels of {path} add up to 0 for each image, as targets of a regression do: "
            "networks train here on classes, or on soft labels that add up to 1"
        )
    return F.softmax(labels, 1), ("soft labels: the softmax of the file's logits",)
