"""What distilled sets cost to store: `python -m tools.storage`.

Stored sets of results/smoke/regimes, five seeds each, are written in every form of FORMS, read
back, and trained on. Beside them are as many photographs, as in the reports of the sets, the
photographs that take the same bytes, and all photographs. Half an hour of one core; a stopped call
resumes.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor

from ddpp.baselines import selection
from ddpp.data import ImageData, load_data, loading
from ddpp.data.whitening import Whitening
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol
from ddpp.experiments.results import read_row
from ddpp.foundation import files
from ddpp.foundation.provenance import commit, provenance
from ddpp.judging import (
    FORMS,
    Networks,
    Opened,
    Stored,
    open_set,
    picture_bytes,
    store,
    write_sheet,
)
from ddpp.networks import NetworkConfig
from tools.commands import resumed, run

DATA = "cifar10-sample"
SETS = {  # images per class: the file of a seed, by the paper's rule
    10: "results/smoke/regimes/ten-signed-0.1-20-seed{}.safetensors",
    1: "results/smoke/regimes/long-signed-0.1-40-seed{}.safetensors",
}
SEEDS = (0, 1, 2, 3, 4)
# as in the reports of the sets
OWN = {10: Networks(Protocol(epochs=60), 2), 1: Networks(Protocol(epochs=200), 2)}
LONG = Networks(Protocol(epochs=200), 1)  # for the photographs that take the same bytes
ALL, RATE = Networks(Protocol(epochs=20), 1), 0.02  # all photographs: 18 updates per epoch
QUALITY = 80  # of the photographs that take the same bytes: the usual one of WebP
FIRST = ("file", "bare file", "compact", "result", "webp", "webp 90", "png", "photographs")


def measurements() -> Iterator[tuple[str, int, int]]:
    """List (what, images per class, seed), the most valuable first."""
    yield from ((form, ipc, seed) for seed in SEEDS for ipc in (1, 10) for form in FIRST)
    yield "all photographs", 0, 0
    later = ("same bytes", *(form for form in FORMS if form not in FIRST))
    yield from ((what, ipc, seed) for what in later for ipc in (1, 10) for seed in SEEDS)


def fitted_once() -> AbstractContextManager:
    """Let everything in a block share the fitted whitenings, which would take most of the time."""
    fit, known = loading.fit_zca, {}

    def fitted(x: Tensor) -> Whitening:
        key = files.fingerprint(x)
        if key not in known:
            known[key] = fit(x)
        return known[key]

    return patch.object(loading, "fit_zca", fitted)


def measure(what: str, ipc: int, seed: int, folder: Path) -> dict:
    """Measure one form of one set, or photographs, in an empty folder; return a row."""
    if what == "all photographs":
        return _all(seed)
    path = Path(SETS[ipc].format(seed))
    opened = _opened(path)
    distilled = opened.distilled
    if what == "photographs":
        real = store(_photographs(opened.data, ipc, seed), "webp", folder, DATA)
        known = read_row(path.with_suffix(".json"))
        made = {"images": len(real.distilled), "bytes": real.bytes}
        epochs = known["recipe"]["protocol"]["epochs"]
        return made | {"accuracies": known["random"]["final"], "epochs": epochs}
    if what == "same bytes":
        budget = store(distilled, "webp", folder / "set", DATA).bytes
        return _same_bytes(opened.data, ipc, seed, budget, folder / "distilled.webp")
    stored = store(distilled, what, folder, DATA)
    row = _row(stored, seed, OWN[ipc])
    alike = stored.distilled.whitening.kind == distilled.whitening.kind
    return row | ({"error": stored.error(distilled)} if alike else {})


@lru_cache(maxsize=1)
def _opened(path: Path) -> Opened:
    return open_set(path, device="cpu")


def _row(stored: Stored, seed: int, networks: Networks) -> dict:
    scores, seconds = networks.test(stored, seed)
    made = {"images": len(stored.distilled), "alpha": float(stored.distilled.alpha)}
    made |= {"bytes": stored.bytes, "accuracies": scores, "seconds": seconds}
    return made | {"epochs": networks.protocol.epochs}


def _photographs(data: ImageData, ipc: int, seed: int) -> DistilledDataset:
    return selection.random(data, ipc, asdict(NetworkConfig(width=32)), seed)


def _same_bytes(data: ImageData, ipc: int, seed: int, budget: int, path: Path) -> dict:
    """As many photographs as take the bytes of the set's sheet, compressed with loss."""

    def taken(count: int) -> int:
        write_sheet(_photographs(data, count, seed), path, QUALITY)
        return path.stat().st_size

    most = int(data.train.labels.bincount().min())  # of a class
    low, high = ipc, min(100 * ipc, most) + 1
    while high - low > 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) <= budget else (low, middle)
    size = taken(low)
    read = open_set(path, DATA, device="cpu")
    return _row(Stored(size, read.distilled, read.data), seed, LONG)


def _all(seed: int) -> dict:
    """All photographs that the sets are made of, and the bytes that they take in several forms."""
    data = load_data(DATA, device="cpu")
    network = NetworkConfig(width=32)
    whole = DistilledDataset.from_tensors(*data.train, RATE, data, network=network)
    natural = data.whitening.invert(data.train.images)
    taken = {"uint8": natural.numel(), "png": picture_bytes(natural)}
    taken |= {"jpeg 90": picture_bytes(natural, "JPEG", quality=90)}
    row = _row(Stored(taken["png"], whole, data), seed, ALL)
    return row | {"bytes_as": taken}


def command(
    out: Path = Path("results/storage/forms.json"), work: Path = Path("runs/storage")
) -> None:
    """Measure all forms, and write them as JSON.

    Args:
        out: the file; what it has is not measured again
        work: folder for the files that are counted, which are deleted afterwards
    """
    commit()
    work.mkdir(parents=True, exist_ok=True)
    about = {
        "sets": {
            path: files.sha256(path)
            for path in (name.format(seed) for name in SETS.values() for seed in SEEDS)
        },
        "data": DATA,
        "protocol": asdict(Protocol()) | {"epochs": "of each row"},
    }
    with fitted_once(), resumed(out, "rows", about) as known:
        there = {(row["form"], row["ipc"], row["seed"]) for row in known}
        for what, ipc, seed in measurements():
            if (what, ipc, seed) in there:
                continue
            with TemporaryDirectory(dir=work) as empty:
                row = measure(what, ipc, seed, Path(empty))
            known.append({"form": what, "ipc": ipc, "seed": seed} | row)
            files.write_json(out, {"rows": known} | about | provenance(torch.device("cpu")))
            said = f"{row['bytes']:,} bytes, {row['accuracies']}"
            print(f"{what}, {ipc} per class, seed {seed}: {said}")


main = partial(run, command, "storage")

if __name__ == "__main__":
    sys.exit(main())
