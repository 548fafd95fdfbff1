"""What a distilled set takes in each form that it can be stored in, and what each form costs.

A form is written into an empty folder, and read back through the door that its user has:
`open_set`, or for pictures without alpha and whitening `from_tensors`, with both given.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ddpp.data import ImageData, load_data
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import write_set
from ddpp.distilled.checks import SQUARED_ERROR
from ddpp.evaluating import Protocol, train
from ddpp.foundation import files
from ddpp.foundation.devices import clock
from ddpp.foundation.errors import Error, choose
from ddpp.judging.exporting import WEBP, WHOLE, export
from ddpp.judging.opening import open_set
from ddpp.judging.sheets import write_sheet
from ddpp.networks import NetworkConfig, accuracy

# images with labels, and nothing that explains them
UNEXPLAINED = ("half", "png", "png, not whitened")
Read = tuple[DistilledDataset, ImageData]  # as it was read back, and what to test it on


@dataclass(frozen=True)
class Form:
    """A way to store a set."""

    write: Callable[[DistilledDataset, Path], object]  # into an empty folder
    # from the folder, with the name or path of the data and the set that was written, of which only
    # what somebody could note down beside the file is used
    read: Callable[[Path, str, DistilledDataset], Read]


@dataclass(frozen=True)
class Stored:
    """A set in one form."""

    bytes: int
    distilled: DistilledDataset  # as it was read back
    data: ImageData  # to test it on, preprocessed as a reader of this form does

    def error(self, original: DistilledDataset) -> float:
        """How far the images are from the original's, as a share of their deviation."""
        mine, images = (_by_class(each) for each in (self.distilled, original))
        return float((mine - images).square().mean().sqrt() / images.std())


def _by_class(distilled: DistilledDataset) -> Tensor:
    """The images, class by class, as pictures in folders are."""
    return distilled.images[[i for members in distilled.by_class() for i in members]].cpu()


def store(distilled: DistilledDataset, form: str, folder: str | Path, data: str | Path) -> Stored:
    """Write a set in one form, and read it back.

    - distilled: the set.
    - form: a name in FORMS.
    - folder: for the files. It must be empty, or not there.
    - data: the data set that the set stands for, a name or the path of an .npz.

    The bytes count all files in the folder. Raises Error for a form that this set cannot
    take, and for a folder that holds something.

    >>> import ddpp
    >>> from ddpp.baselines import selection
    >>> from ddpp.judging import store
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> real = selection.random(data, ipc=1, network={"width": 32})
    >>> stored = store(real, "webp", "forms/webp", "cifar10-sample")
    >>> stored.error(real) < 1e-4  # photographs have 8 bits
    True
    """
    chosen, folder = FORMS[choose("form", form, FORMS)], Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise Error(f"{folder} has files, whose bytes would be counted: choose an empty folder")
    if form in UNEXPLAINED and (distilled.formation > 1 or distilled.loss == SQUARED_ERROR):
        raise Error(
            f"the form {form} says neither how many pictures an image holds nor that labels are "
            "targets of a regression: choose file, compact or webp"
        )
    pictures = form in UNEXPLAINED[1:]
    if pictures and distilled.labels.is_floating_point():
        raise Error(
            f"the form {form} has folders for labels, which are classes: choose file, compact or "
            "webp"
        )
    if pictures and "given" in distilled.provenance.get("data", {}):
        raise Error(
            f"the form {form} has no whitening, and this set's is not the one of its data: choose "
            "file or compact"
        )
    folder.mkdir(parents=True, exist_ok=True)
    distilled = distilled.to("cpu")
    chosen.write(distilled, folder)
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Stored(taken, *chosen.read(folder, str(data), distilled))


@dataclass
class Networks:
    """Networks trained on sets, each once: forms that give the same images share them."""

    protocol: Protocol
    repeats: int
    trained: dict[str, tuple[list[Tensor], float]] = field(  # and the seconds of one
        default_factory=dict, init=False, repr=False
    )

    def test(self, stored: Stored, seed: int) -> tuple[list[float], float]:
        """Train on a set, and test on real images.

        - seed: of the networks, as in `evaluate`, whose accuracies these are.

        Returns the accuracies in percent, one per network, and the processor's seconds that one
        training took.
        """
        distilled, data = stored.distilled.to(stored.data.device).unfolded(), stored.data
        network = data.network(NetworkConfig(**distilled.network))
        parts = (distilled.images, distilled.labels, distilled.alpha)
        of = {"set": [*map(files.fingerprint, parts)], "seed": seed}
        key = files.identity(of | {"network": distilled.network, "loss": distilled.loss})
        if key not in self.trained:
            began = clock(data.device)
            thetas = [
                train(network, distilled, self.protocol, seed, "test", number)
                for number in range(self.repeats)
            ]
            self.trained[key] = thetas, (clock(data.device) - began) / self.repeats
        thetas, seconds = self.trained[key]
        return [accuracy(network, theta, *data.test) for theta in thetas], seconds


def picture_bytes(images: Tensor, kind: str = "PNG", **options: int) -> int:
    """Count the bytes of images (N, 3, H, W), in [0, 1], each as a picture of its own.

    - kind, options: of Pillow, as "JPEG" with a quality.
    """
    total = 0
    for array in images.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy():
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, kind, **options)
        total += len(stream.getvalue())
    return total


def _own(name: str) -> Callable[[Path, str, DistilledDataset], Read]:
    """Read a file of ddpp, as `ddpp evaluate` does."""

    def read(folder: Path, data: str, _: DistilledDataset) -> Read:
        opened = open_set(folder / name, data, device="cpu")
        return replace(opened.distilled, iterates={}), opened.data

    return read


def _write_half(distilled: DistilledDataset, folder: Path) -> None:
    content = {"images": distilled.images.half(), "labels": distilled.labels}
    torch.save(content | {"lr": distilled.alpha}, folder / "half.pt")


def _read_half(folder: Path, data: str, distilled: DistilledDataset) -> Read:
    space = "whitened" if distilled.whitening.kind == "zca" else "standardized"
    network = NetworkConfig(**distilled.network)
    opened = open_set(folder / "half.pt", data, space, network=network, device="cpu")
    return opened.distilled, opened.data


def _read_found(folder: Path, data: str, distilled: DistilledDataset) -> Read:
    """Read pictures as `ddpp judge` does, but for alpha: by channel standardized, not whitened."""
    network = NetworkConfig(**distilled.network)
    opened = open_set(folder, data, "raw", network=network, device="cpu")
    return replace(opened.distilled, alpha=distilled.alpha), opened.data


def _read_pictures(folder: Path, data: str, distilled: DistilledDataset) -> Read:
    """Read pictures, and preprocess them as the set was."""
    found, plain = _read_found(folder, data, distilled)
    source = distilled.provenance["data"]
    images_of = load_data(
        data,
        zca=distilled.whitening.kind == "zca",
        validation=source.get("validation", 0.1),  # of other code's sets it is not known
        device="cpu",
    )
    made = DistilledDataset.from_tensors(
        plain.whitening.invert(found.images).clamp(0, 1),
        found.labels,
        distilled.alpha,
        images_of,
        network=NetworkConfig(**distilled.network),
        raw=True,
    )
    return made, images_of


def _final(distilled: DistilledDataset) -> DistilledDataset:
    return replace(distilled, iterates={}, history={}, state={})


FORMS = {
    # as `ddpp distill` writes it, with iterates, history and what the next step needs
    "file": Form(lambda d, folder: d.save(folder / WHOLE), _own(WHOLE)),
    "bare file": Form(lambda d, folder: _final(d).save(folder / WHOLE), _own(WHOLE)),
    "compact": Form(lambda d, folder: export(_final(d), "compact", folder), _own(WHOLE)),
    # as under results/: float32, without whitening
    "result": Form(lambda d, folder: write_set(folder / WHOLE, _final(d)), _own(WHOLE)),
    "half": Form(_write_half, _read_half),
    "webp": Form(lambda d, folder: export(d, "webp", folder), _own(WEBP)),
    "webp 90": Form(lambda d, folder: write_sheet(d, folder / WEBP, 90), _own(WEBP)),
    "webp 50": Form(lambda d, folder: write_sheet(d, folder / WEBP, 50), _own(WEBP)),
    # the pictures that everybody sees, cut to [0, 1]: preprocessed as the set was, or as found
    "png": Form(lambda d, folder: d.export_png(folder), _read_pictures),
    "png, not whitened": Form(lambda d, folder: d.export_png(folder), _read_found),
}
