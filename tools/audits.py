"""The audits of chapter 16: `python -m tools.audits`. A stopped call resumes.

All use the bundled sample at half its size, 16 x 16 pixels, and the same halves and teachers.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ddpp.data.sources import find
from ddpp.evaluating import Protocol
from ddpp.experiments.recipes import Recipe, recipe
from ddpp.foundation import files
from ddpp.foundation.errors import choose
from ddpp.foundation.loop import Saving
from ddpp.foundation.provenance import commit
from ddpp.networks import NetworkConfig
from ddpp.studies import Design, audit
from ddpp.studies.auditing import REPORT
from ddpp.teachers import TeacherConfig
from tools.commands import run

DATA = "sample16.npz"
NETWORK = NetworkConfig(width=16)
TEACHERS = TeacherConfig(count=2, epochs=7, lr=0.03, batch=32, network=NETWORK)
LONG = Protocol(epochs=60, batch=64)  # of networks on the whole half, 500 images
BRIEF = Protocol(epochs=14, batch=64)  # as long as makes them as accurate as those of MTT's sets
SHORT = Protocol(epochs=300)  # of networks on 50 images
NOISY = Protocol(epochs=20, batch=250, augment=False)  # of networks with differential privacy
SETS, WHOLE = Design(), Design(whole=True)
WEAK = replace(WHOLE, rate=1.0, noise=1.8)  # epsilon 8.0
STRONG = replace(WHOLE, rate=1.0, noise=5.25)  # epsilon 2.0
MATCHING = {
    **{"steps": 20, "student_steps": 10, "max_start_epoch": 6, "iterates": 1},
    **{"image_lr": 100.0, "alpha0": 0.03, "alpha_lr": 1e-5, "engine": "autograd"},
}
DM = {"steps": 60, "batch_real": 32, "iterates": 1}


@dataclass(frozen=True)
class Each:
    """One audit of the chapter."""

    name: str
    method: str
    settings: dict
    protocol: Protocol = SHORT
    design: Design = SETS

    def recipe(self, data: Path) -> Recipe:
        base = recipe("smoke", str(data), ipc=5, method=self.method)
        distill = replace(base.distill, **self.settings)
        how = {"teachers": TEACHERS, "protocol": self.protocol, "repeats": 1}
        return replace(base, distill=distill, **how)


def audits() -> Iterator[Each]:
    """List the audits, the most telling first."""
    yield Each("whole", "random", {}, LONG, WHOLE)
    yield Each("short", "random", {}, BRIEF, WHOLE)
    yield Each("random", "random", {})
    yield Each("mtt-real", "mtt", MATCHING)
    yield Each("mtt-noise", "mtt", MATCHING | {"init": "noise"})
    yield Each("dm-real", "dm", DM | {"image_lr": 1.0})
    yield Each("dm-noise", "dm", DM | {"image_lr": 10.0, "init": "noise"})
    yield Each("rule-real", "ddpp", MATCHING)
    yield Each("rule-noise", "ddpp", MATCHING | {"init": "noise"})
    yield Each("private-weak", "random", {}, NOISY, WEAK)
    yield Each("private-strong", "random", {}, NOISY, STRONG)


def halve(path: Path) -> None:
    """Write the bundled sample with each 2 x 2 pixels averaged, unless it is there."""
    if path.exists():
        return
    _, arrays = find("cifar10-sample", path.parent)
    for name in ("x_train", "x_test"):
        quarters = arrays[name].reshape(-1, 16, 2, 16, 2, 3)
        arrays = arrays | {name: np.uint8(np.rint(quarters.mean((2, 4))))}
    np.savez_compressed(file := io.BytesIO(), **arrays)  # pyright: ignore[reportArgumentType]
    files.write_bytes(path, file.getvalue())


def command(
    out: Path = Path("results/auditing"), work: Path = Path("runs/audits"), only: str = ""
) -> None:
    """Work off the audits, and write a report of each.

    Args:
        out: the folder of reports; an audit that has one is not made again
        work: folder of the data, of teachers, sets and models
        only: names of audits, with commas between them; empty: all
    """
    commit()
    known = {each.name: each for each in audits()}
    chosen = [choose("audit", name, known) for name in only.split(",")] if only else [*known]
    halve(work / DATA)
    for each in known.values():
        path = out / f"{each.name}.json"
        if path.exists() or each.name not in chosen:
            continue
        say = lambda line, name=each.name: print(f"{name}: {line}", flush=True)
        saving = Saving(progress=False, report=say)
        how = {"teachers": work / "teachers", "device": "cpu", "saving": saving}
        found = audit(each.recipe(work / DATA), work / each.name, each.design, **how)
        files.write_bytes(path, (work / each.name / REPORT).read_bytes())
        print("\n".join(found.lines()), flush=True)


main = partial(run, command, "audits")

if __name__ == "__main__":
    sys.exit(main())
