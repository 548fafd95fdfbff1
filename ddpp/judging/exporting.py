"""Write a distilled set in the forms that other code reads."""

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpp.distilled import DistilledDataset
from ddpp.distilled.checks import SQUARED_ERROR
from ddpp.distilled.pictures import pil
from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose
from ddpp.judging.cards import card
from ddpp.judging.opening import PUBLISHED
from ddpp.judging.sheets import ENDING, check_pictures, write_sheet

WHOLE, WEBP = "distilled.safetensors", f"distilled{ENDING}"
Written = tuple[list[Path], list[str]]  # files, and what to know about them


def export(
    distilled: DistilledDataset, kind: str, folder: str | Path, report: Mapping | None = None
) -> Written:
    """Write a set for other code to read.

    - distilled: the set.
    - kind: "pt": images_best.pt, labels_best.pt and lr_best.pt, named as by MTT and DATM, of pixels
      in natural colours, soft labels as logits. "beard": for the benchmark BEARD, images_best.pt
      and labels_best.pt, standardized by channel, with hard labels. Beside both, space_best.txt
      tells `open_set` what the pixels are. "eccv": for the ECCV 2024
      challenge, one tensor, sorted by class, standardized. "hf": train.parquet for Hugging Face's
      `datasets`, with a README.md, the compact set and its picture. "compact":
      distilled.safetensors in a quarter of the bytes. "webp": distilled.webp, one picture of 8
      bits, without the whitening.
    - report: what `ddpp distill` wrote beside the set, for the README.md.
    - folder: where the files belong.

    Returns the files, and sentences on what was lost or assumed. Raises Error for a set that cannot
    take this form, and for other files of these names: nothing is replaced.
    """
    write = KINDS[choose("kind of export", kind, KINDS)]
    if distilled.formation > 1 and kind not in READ_HERE:
        raise Error(
            f"each image of this set holds {distilled.formation**2} pictures, which other code "
            "would take for one: export it as compact or webp, or in Python unfolded(), which has "
            "so many times as many images"
        )
    with tempfile.TemporaryDirectory() as made:
        written, notes = write(distilled.to("cpu"), Path(made), report)
        contents = {Path(folder) / path.name: path.read_bytes() for path in written}
    for path, content in contents.items():
        files.check_writable(path)
        if path.exists() and path.read_bytes() != content:
            raise Error(f"{path} holds something else: move it away, or choose another folder")
    for path, content in contents.items():
        if not path.exists():
            files.write_bytes(path, content)
    return [*contents], notes


def pixels(distilled: DistilledDataset) -> Tensor:
    """Undo the preprocessing. Unlike `natural`, values outside [0, 1] stay."""
    return distilled.whitening.invert(distilled.images)


def standardized(distilled: DistilledDataset) -> tuple[Tensor, str]:
    """Standardize by channel as the field's code does for this data. Return the images, and how."""
    name = distilled.provenance.get("data", {}).get("name", "")
    known = PUBLISHED.get(str(name).removesuffix("-sample"))
    if known is None:
        raise Error(
            f"the constants by which the field standardizes '{name}' are not known: export the "
            "pixels with --for pt, and standardize them"
        )
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in known)
    return (pixels(distilled) - mean) / std, f"standardized with mean {known[0]} and std {known[1]}"


def _notes(distilled: DistilledDataset) -> list[str]:
    if distilled.whitening.kind != "zca":
        return []
    return [
        "the set was made for whitened images. Undoing the whitening keeps its pixels, but "
        "networks that train on them without whitening reach less: for a judge that does not "
        "whiten, distil with --zca False"
    ]


def _pt(distilled: DistilledDataset, folder: Path, report: Mapping | None) -> Written:
    _check_labels(distilled)
    images, note = pixels(distilled), "pixels in natural colours, float32, mostly in 0 to 1"
    labels, notes = distilled.labels, [note, *_notes(distilled)]
    if labels.is_floating_point():
        labels = labels.clamp(min=torch.finfo(labels.dtype).tiny).log()
        notes.append("labels_best.pt holds logits, as of DATM: the softmax gives the soft labels")
    return _tensors(folder, "raw", images=images, labels=labels, lr=distilled.alpha), notes


def _beard(distilled: DistilledDataset, folder: Path, report: Mapping | None) -> Written:
    _check_labels(distilled)
    images, note = standardized(distilled)
    notes = [note, *_notes(distilled)]
    if distilled.labels.is_floating_point():
        notes.append("the benchmark trains with hard labels: the soft ones are left out")
    return _tensors(folder, "standardized", images=images, labels=distilled.hard_labels), notes


def _eccv(distilled: DistilledDataset, folder: Path, report: Mapping | None) -> Written:
    classes = distilled.by_class()
    counts = {len(members) for members in classes}
    if len(counts) != 1:
        raise Error(
            "the challenge takes the same number of images of each class, and this set has "
            f"{min(counts)} to {max(counts)}"
        )
    images, note = standardized(distilled)
    notes = [note, *_notes(distilled)]
    if counts != {10}:
        notes.append(f"the challenge takes 10 images per class, and this set has {counts.pop()}")
    if distilled.labels.is_floating_point():
        notes.append("the challenge trains with hard labels: the learned ones are left out")
    name = str(distilled.provenance.get("data", {}).get("name", "set")).removesuffix("-sample")
    order = [i for members in classes for i in members]
    return [_save(images[order].clone(), folder / f"{name}.pt")], notes


def _check_labels(distilled: DistilledDataset) -> None:
    """Refuse labels that a reader would take for logits, or for classes."""
    if distilled.loss == SQUARED_ERROR:
        raise Error(
            "the labels of this set are targets of a regression, to train on with the squared "
            "error, and this form cannot say so: export it as compact, webp or hf"
        )


def _tensors(folder: Path, space: str, **parts: Tensor) -> list[Path]:
    """Write each tensor, and a text that tells `open_set` the space of the images."""
    files.write_text(named := folder / "space_best.txt", f"{space}\n")
    made = [_save(x.detach().clone(), folder / f"{name}_best.pt") for name, x in parts.items()]
    return [*made, named]


def _save(value: Tensor, path: Path) -> Path:
    stream = io.BytesIO()
    torch.save(value, stream)
    files.write_bytes(path, stream.getvalue())
    return path


def _compact(distilled: DistilledDataset, folder: Path, report: Mapping | None) -> Written:
    path = folder / WHOLE
    distilled.save(path, compact=True)
    return [path], ["images and alpha are exact; the whitening is in half precision"]


def _webp(distilled: DistilledDataset, folder: Path, report: Mapping | None) -> Written:
    write_sheet(distilled, path := folder / WEBP)
    return [path], ["pixels of 8 bits; the whitening is left out, and fitted anew from the data"]


def _hf(distilled: DistilledDataset, folder: Path, report: Mapping | None) -> Written:
    check_pictures(distilled)
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise Error("a Parquet file needs the package pyarrow: pip install pyarrow") from None
    images = [{"bytes": _png(image), "path": None} for image in distilled.natural()]
    columns: dict[str, Any] = {"image": images, "label": distilled.hard_labels.tolist()}
    label = {"names": list(distilled.classes), "_type": "ClassLabel"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": label}
    notes = _notes(distilled)
    if distilled.labels.is_floating_point():
        name = "target" if distilled.loss == SQUARED_ERROR else "soft_label"
        columns[name] = distilled.labels.tolist()
        value = {"dtype": "float32", "_type": "Value"}
        features[name] = {"feature": value, "_type": "Sequence"}
        notes.append(f"the column '{name}' holds the learned labels, for the {distilled.loss}")
    table = pyarrow.table(columns)
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), stream)
    files.write_bytes(folder / "train.parquet", stream.getvalue())
    files.write_text(folder / "README.md", card(distilled, report))
    _compact(distilled, folder, report)
    picture = io.BytesIO()
    distilled.picture().save(picture, "PNG")
    files.write_bytes(folder / "picture.png", picture.getvalue())
    written = ["train.parquet", "README.md", WHOLE, "picture.png"]
    lost = f"pictures of 8 bits, cut to 0 to 1; {WHOLE} beside them is exact"
    return [folder / name for name in written], [lost, *notes]


def _png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    pil(image).save(stream, "PNG")
    return stream.getvalue()


KINDS: dict[str, Callable[[DistilledDataset, Path, Mapping | None], Written]] = {
    "beard": _beard,
    "eccv": _eccv,
    "pt": _pt,
    "hf": _hf,
    "compact": _compact,
    "webp": _webp,
}
READ_HERE = ("compact", "webp")  # by ddpp itself, so that nothing is taken for something else
