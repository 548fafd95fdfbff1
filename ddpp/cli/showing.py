"""What the commands show: a report in words, and pictures in files."""

import contextlib
import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Evaluation
from ddpp.experiments.places import report_path
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.text import show_mean
from ddpp.judging.cards import CARD_HEAD

MADE = {"device", "versions", "commit", "finished"}  # what a report says of itself
PNG, WRITER = b"\x89PNG", b"ddpp show"  # how a picture begins, and what ours say of themselves
SATURATED = 0.5  # loss below which little is left to match


def read_report(file: Path) -> dict | None:
    """The report beside a distilled file, if there is one that has the accuracies of this very
    file.
    """
    path = report_path(file)
    try:
        report = json.loads(path.read_text()) if path.exists() else {}
        known = (report.get("asked", report.get("set")) or {}).get("sha256")
        accuracies = report.keys() & {"distilled", "random"}
        for which in accuracies:
            Evaluation(**report[which]).lines()
        if accuracies and not (report.keys() >= MADE and "torch" in dict(report["versions"])):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Error(f"{path} is no report, but another file: move it away") from None
    if known and known != files.sha256(file):
        print(f"note: {path} is of another file, so its accuracies are left out")
        return None
    return report if len(accuracies) == 2 else None


def show_report(out: Path, distilled: DistilledDataset, report: dict) -> None:
    """Print what a run wrote where, and the accuracies of its set."""
    kept = ""
    if "kept" in distilled.history:
        kept = f", {distilled.history['kept'].nanmean():.1%} of the parameters kept on average"
    print(f"{len(distilled)} images, alpha {distilled.alpha:.4f}{kept}")
    if "skipped" in distilled.history and (skipped := int(distilled.history["skipped"].sum())):
        print(f"{skipped} steps were skipped because their loss, images or alpha were not usable")
    ours, real = (Evaluation(**report[which]) for which in ("distilled", "random"))
    print("\n".join(ours.lines()))
    print(f"the same number of random real images: {real.mean:.1f} ± {real.std:.1f} %")
    print(f"distillation gains {ours.mean - real.mean:+.1f} points of test accuracy")
    if teachers := report.get("teachers"):
        print("\n".join(ceiling(distilled, ours.mean, teachers)))
    print(f"written: {out} (images, alpha, preprocessing) and {report_path(out)} (report)")


def ceiling(distilled: DistilledDataset, accuracy: float, teachers: dict) -> Iterator[str]:
    """Say how good the teachers are, and what to do if the set is as good as they are."""
    theirs = teachers["accuracies"]
    at = f"at epoch {teachers['epoch']}"
    yield f"the teachers that it matches: {show_mean(theirs)} %, {at}"
    loss = float(distilled.history["unmasked"][-20:].nanmean())
    if loss < SATURATED and accuracy > statistics.fmean(theirs) - 4:
        yield (
            f"the set is nearly as good as they are, and matches them (loss {loss:.2f}): for more, "
            "train them longer, and match later epochs (--teachers.epochs, --max-start-epoch)"
        )


def check_replaceable(path: Path) -> None:
    """Raise an Error for a file that `show` did not write, a picture or a page about a set."""
    if path.is_file():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            start = file.read(1000)
            if start.startswith(CARD_HEAD.encode()) or (start[:4] == PNG and WRITER in start):
                return
        raise Error(f"{path} is a file of something else: move it, or choose another place")


def save_figure(name: str, subject: Any, path: Path) -> None:
    """Draw a subject with the function of this name in book/figures, and save the figure."""
    from matplotlib import pyplot  # here, as it takes seconds to import

    from ddpp.book import figures

    figures.use_style()
    figure = getattr(figures, name)(subject)
    try:
        save_picture(figure, path)
    finally:
        pyplot.close(figure)


def save_picture(picture: Any, path: Path) -> None:
    """Save a picture of Pillow or a figure of Matplotlib, all or nothing. Raises Error where that
    is not possible.
    """
    stream, ending = io.BytesIO(), path.suffix.lower()
    try:
        if not isinstance(picture, Image.Image):
            mark = {"metadata": {"Software": WRITER.decode()}} if ending == ".png" else {}
            picture.savefig(stream, format=ending.removeprefix("."), **mark)
        elif kind := Image.registered_extensions().get(ending):
            mark = PngInfo()
            mark.add_text("Software", WRITER.decode())
            picture.save(stream, kind, **({"pnginfo": mark} if kind == "PNG" else {}))
        else:
            raise ValueError(f"unknown file extension '{ending}'")
    except (OSError, ValueError, KeyError) as e:  # KeyError: Pillow reads such files only
        why = f"'{ending}' cannot be written" if isinstance(e, KeyError) else e
        raise Error(f"cannot write {path}: {why}; choose another place or .png") from e
    files.write_bytes(path, stream.getvalue())
