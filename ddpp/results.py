"""What a run leaves: a report, and beside it the distilled images, without the preprocessing, as
the data has it.
"""

import hashlib
import json
import statistics
from pathlib import Path

from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset, loss_in
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.loop import unpack

KIND = "result"
LAST = 20  # distillation steps over which the final loss is averaged
# bytes of images that a result may hold; larger sets stay where they were distilled
LARGEST = 16 * 2**20


def summary(distilled: DistilledDataset, report: dict) -> dict:
    """The numbers of a run that tables and figures are made of."""
    column, accuracies = distilled.history, report["distilled"]
    found = {
        "accuracy": statistics.fmean(accuracies["final"]),
        "selected": statistics.fmean(accuracies["selected"] or accuracies["final"]),
        "alpha": float(distilled.alpha),
    }
    if "kept" in column:  # trajectories were matched
        taken = column["skipped"] == 0
        found |= {
            "kept": float(column["kept"][taken].mean()),
            "unmasked": float(column["unmasked"][taken][-LAST:].mean()),
            "skipped": int(column["skipped"].sum()),
        }
    return found


def write_set(path: Path, distilled: DistilledDataset) -> dict | None:
    """Keep the final images, labels, alpha and the history; None for a set that is too large for
    that.
    """
    images = distilled.images
    if images.numel() * images.element_size() > LARGEST:
        return None
    tensors = {"images": images, "labels": distilled.labels, "alpha": distilled.alpha}
    tensors |= {f"history.{name}": column for name, column in distilled.history.items()}
    meta = {"loss": distilled.loss} if distilled.labels.is_floating_point() else {}
    files.write(path, KIND, tensors, {"provenance": distilled.provenance} | meta)
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_set(path: Path, row: dict, data: ImageData) -> DistilledDataset:
    """The images beside the report at `path`, which says `row`, joined with the preprocessing and
    classes of the data
    that they were made from. Raises Error where the data are others, or were preprocessed in
    another way."""
    tensors, meta = files.read(path.with_name(row["set"]["file"]), KIND)
    made_from = meta["provenance"]["data"]
    if {key: made_from[key] for key in data.identity} != data.identity:
        raise Error(
            f"{path} was made from {made_from['name']}, or from other preprocessing: load that data"
        )
    return DistilledDataset(
        images=tensors["images"].to(data.device),
        labels=tensors["labels"].to(data.device),
        alpha=tensors["alpha"].to(data.device),
        whitening=data.whitening,
        classes=data.classes,
        network=row["recipe"]["teachers"]["network"],
        history=unpack(tensors)[1],
        provenance=meta["provenance"],
        loss=loss_in(tensors, meta),
    )


def read_row(path: Path) -> dict:
    """The report at `path`, checked together with the file of images that it names.

    name, method, seed, error; of trajectories also rule and epsilon; accuracy (percent, mean of the
    final iterate's networks), selected (the same of the iterate chosen on held-out images), alpha;
    kept (share of parameters, mean over steps), unmasked (MTT loss, mean of the last steps),
    skipped (steps); all of `distilled` and `random` (see Evaluation); of and network, where another
    run's set was evaluated; recipe, seconds, device, versions, commit.
    """
    try:
        row = json.loads(path.read_text())
        row = {"method": "ddpp"} | row  # the first reports had no other
        needed = {"name", "seed", "error", "recipe", "device", "versions", "commit", "finished"}
        if row["method"] in ("ddpp", "mtt"):
            needed |= {"rule", "epsilon"}
        if not row["error"]:
            needed |= {"accuracy", "distilled", "seconds"}
            if "rule" in row and "of" not in row:
                needed |= {"selected", "kept", "unmasked", "skipped"}
        if missing := needed - row.keys():
            raise KeyError(missing)
        kept = row.get("set")
        intact = (
            not kept
            or hashlib.sha256((path.parent / kept["file"]).read_bytes()).hexdigest()
            == kept["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Error(
            f"{path}, or the file of images beside it, is not the result of a run: move both away"
        ) from None
    if not intact:
        raise Error(
            f"the images beside {path} are not those that it reports on: move both away, then "
            "run it again"
        )
    return row


def describe(row: dict) -> str:
    """One row in words."""
    if row["error"]:
        return f"stopped: {row['error']}"
    kept = f", kept {row['kept']:.1%}, skipped {row['skipped']}" if "kept" in row else ""
    return f"{row['accuracy']:.1f} %{kept}"
