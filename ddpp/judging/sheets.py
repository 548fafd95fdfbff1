"""A distilled set as one picture of 8 bits, which holds all of it but the whitening.

The picture is a sheet of the images in natural colours, stretched so that no value is cut, as WebP.
Labels, alpha and provenance are in its EXIF. The whitening is fitted anew from the data.
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import check_source
from ddpp.distilled.format import from_file, in_file
from ddpp.foundation import files
from ddpp.foundation.errors import Error

ENDING = ".webp"
DESCRIPTION = 270  # EXIF's ImageDescription
NEEDED = {"alpha", "network", "loss", "formation", "provenance"}  # by `join`


@dataclass(frozen=True)
class Sheet:
    """What a picture holds: all of a set but its preprocessing."""

    path: Path
    pixels: Tensor  # (N, C, H, W), float32, natural colours; values outside [0, 1] are kept
    meta: dict
    kind = "sheet"

    def join(self, data: ImageData) -> DistilledDataset:
        """Join the images with the preprocessing of their data, as a set on the CPU.

        Raises Error for other data or other preprocessing.
        """
        check_source(self.path, self.meta["provenance"], data)
        whitening, labels = data.whitening.to("cpu"), self.meta["labels"]
        learned = any(isinstance(label, list) for label in labels)
        return DistilledDataset(
            images=whitening.apply(self.pixels),
            labels=torch.tensor(labels, dtype=torch.float32 if learned else None),
            alpha=self.meta["alpha"],
            whitening=whitening,
            classes=data.classes,
            network=from_file(self.meta["network"], self.meta["provenance"]),
            provenance=self.meta["provenance"],
            loss=self.meta["loss"],
            formation=self.meta["formation"],
        )


def write_sheet(distilled: DistilledDataset, path: str | Path, quality: int | None = None) -> None:
    """Write a set as one picture of 8 bits. Its whitening is left out.

    - distilled: images of one or three channels, with the data in its provenance, else Error.
    - path: the file, ending in .webp.
    - quality: of WebP's lossy compression, 0 to 100. Default: without loss, but for the 8 bits.
    """
    if quality is not None and not 0 <= quality <= 100:
        raise Error(f"the quality is {quality}: it must be at least 0 and at most 100")
    if Path(path).suffix != ENDING:
        raise Error(f"the sheet {path} must end in {ENDING}")
    if "data" not in distilled.provenance:
        raise Error(
            "the set does not say what data it stands for, and a sheet leaves the whitening to the "
            "data: make it with DistilledDataset.from_tensors"
        )
    if "given" in distilled.provenance["data"]:
        raise Error(
            "the set's whitening is not the one of its data, which a sheet would be read with: "
            "export it as compact"
        )
    check_pictures(distilled)
    pixels = distilled.whitening.invert(distilled.images).cpu()
    low, high = float(pixels.min()), float(pixels.max())
    meta = {
        "sheet": 1,  # the version of this form
        "shape": list(pixels.shape),
        "range": [low, high],
        "labels": distilled.labels.tolist(),
        "alpha": float(distilled.alpha),
        "network": in_file(distilled.network, distilled.provenance),
        "loss": distilled.loss if distilled.labels.is_floating_point() else None,
        "formation": distilled.formation,
        "provenance": distilled.provenance,
    }
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps(meta, separators=(",", ":"))
    steps = (pixels - low) / ((high - low) or 1) * 255
    how = {"lossless": True, "quality": 100} if quality is None else {"quality": quality}
    stream = io.BytesIO()
    try:
        _lay(steps.round().byte()).save(stream, "WEBP", method=6, exif=exif, **how)
    except ValueError as e:
        raise Error(
            f"{len(distilled)} images do not fit into a picture ({e}): export the set as compact"
        ) from None
    files.write_bytes(path, stream.getvalue())


def check_pictures(distilled: DistilledDataset) -> None:
    """Raise an Error for images that are neither grey nor RGB."""
    if (channels := distilled.images.shape[1]) not in (1, 3):
        raise Error(f"images of {channels} channels are no pictures: export the set as compact")


def read_sheet(path: str | Path) -> Sheet:
    """Read a picture that `write_sheet` wrote, or raise Error for any other."""
    path = Path(path)
    if not path.is_file():
        raise Error(f"there is no file {path}: check the path")
    try:
        with Image.open(path) as picture:
            text = picture.getexif().get(DESCRIPTION)
            array = torch.from_numpy(np.array(picture.convert("RGB")))
    except Exception as e:
        reason = getattr(e, "strerror", None) or "it is damaged, or no picture"
        raise Error(f"the picture {path} cannot be read: {reason}") from None
    try:
        meta = json.loads(text or "")
        (n, channels, height, width), (low, high) = meta["shape"], meta["range"]
        if meta["sheet"] != 1 or len(meta["labels"]) != n or not meta.keys() >= NEEDED:
            raise ValueError
        columns = array.shape[1] // width
        tiles = array[..., :channels].unflatten(1, (columns, width)).unflatten(0, (-1, height))
        steps = tiles.permute(0, 2, 4, 1, 3).flatten(0, 1)[:n]  # (n, C, H, W)
        if list(steps.shape) != meta["shape"]:
            raise ValueError
    except (ValueError, KeyError, TypeError, RuntimeError, ZeroDivisionError):
        raise Error(
            f"{path} is a picture, but holds no set that ddpp wrote, or was changed since by a "
            "program that drops what is written beside the pixels: a sheet comes from 'ddpp export "
            "--for webp'. Of pictures give the folder, FOLDER/CLASS/PICTURE"
        ) from None
    return Sheet(path, low + steps.float() * ((high - low) / 255), meta)


def _lay(images: Tensor) -> Image.Image:
    """Lay images (N, C, H, W), uint8, in the order of rows, into a square. The rest is black."""
    columns = math.isqrt(len(images) - 1) + 1
    rows = -(-len(images) // columns)
    rest = images.new_zeros(rows * columns - len(images), *images.shape[1:])
    tiles = torch.cat([images, rest]).unflatten(0, (rows, columns))
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (rows H, columns W, C)
    return Image.fromarray(np.ascontiguousarray(sheet.expand(-1, -1, 3).numpy()))
