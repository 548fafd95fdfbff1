"""Architecture search by proxy: small networks, ranked by what a small set teaches them.

Each network of a grid is trained on a small set, distilled or of real images, and tested on
held-out images. That gives an order in little time. The truth is the order of their test accuracies
after training on all images. Source: the search of DC (Zhao et al., ICLR 2021), with 720 ConvNets.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol, check_pair, made_from_other_images, score_once, train
from ddpp.foundation import files
from ddpp.foundation.devices import clock
from ddpp.foundation.errors import Count, Error, check_bounds
from ddpp.foundation.identity import marks
from ddpp.foundation.provenance import commit
from ddpp.networks import accuracy
from ddpp.studies.grids import Candidate
from ddpp.studies.ranking import TRUTH, Ranking
from ddpp.studies.reports import refuse_other, write_report

REPORT, SCORES = "ranking.json", "ranking.scores"


@dataclass(frozen=True)
class Search:
    """How networks are trained, on small sets and on all images."""

    small_epochs: Count = 20  # passes over a small set
    small_batch: Count = 20  # images per update
    epochs: Count = 6  # passes over all images
    batch: Count = 64  # images per update
    rates: tuple[float, ...] = (0.03,)  # learning rates; the best on held-out images counts
    repeats: Count = 1  # trainings on all images
    seed: int = 0  # of the networks

    def __post_init__(self):
        check_bounds(self, "the search's ")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise Error(
                f"the search's rates are {self.rates}: give learning rates, all of them positive"
            )

    def protocol(self, name: str) -> Protocol:
        """How a network is trained on the set of this name."""
        if name == TRUTH:
            return Protocol(epochs=self.epochs, batch=self.batch)
        return Protocol(epochs=self.small_epochs, batch=self.small_batch)


def rank(
    candidates: Sequence[Candidate],
    sets: Mapping[str, Sequence[DistilledDataset]],
    data: ImageData,
    folder: str | Path,
    search: Search = Search(),
    *,
    progress: bool = True,
) -> Ranking:
    """Rank networks by training on small sets, and compare with training on all images.

    - candidates: the networks.
    - sets: {name: sets of one kind}, as draws or seeds. Each is trained on by each network.
    - data: all images, with a held-out split and the preprocessing of the sets.
    - folder: of the report, and of the scores so far. The same call resumes from what is there.
    - search: how networks are trained.
    - progress: whether a progress bar is shown.

    Raises Error for sets that do not fit the data, and for a folder with another report.
    """
    commit()  # remembered now: the source tree may move on in the meantime
    candidates, folder = tuple(candidates), Path(folder)
    for name, several in sets.items():
        if isinstance(several, DistilledDataset):
            raise Error(
                f"the sets '{name}' are a single set: give a list of sets, such as [{name}]"
            )
    sets = {name: tuple(one.to(data.device) for one in several) for name, several in sets.items()}
    _check(candidates, sets, data)
    whole = DistilledDataset.from_tensors(*data.train, search.rates[0], data)
    jobs = {TRUTH: (whole,) * search.repeats} | sets
    networks = [asdict(one) for one in candidates]
    prints = {name: [_fingerprints(one) for one in several] for name, several in sets.items()}
    asked = {"networks": networks, "search": asdict(search), "sets": prints}
    asked |= {"data": data.identity} | marks(augmentation=search.protocol(TRUTH).augment)
    report = folder / REPORT
    files.check_writable(report)
    with files.lock(report, wait=False):
        advice = "move it away; what both have in common is not trained again"
        refuse_other(report, asked, f"{report} is the report", advice)
        total = len(candidates) * len(search.rates) * sum(map(len, jobs.values()))
        with tqdm(total=total, desc="train", unit="network", disable=not progress) as bar:
            trainer = _Trainer(data, search, folder / SCORES, bar)
            found = {
                name: [
                    trainer.row(candidates, name, one, number) for number, one in enumerate(several)
                ]
                for name, several in jobs.items()
            }
        content = {"asked": asked, "networks": networks, "found": found}
        write_report(report, content, data.device)
    return Ranking.read(report)


class _Trainer(NamedTuple):
    """Trains networks on sets, and reads the scores that are known already."""

    data: ImageData
    search: Search
    scores: Path
    bar: tqdm

    def row(
        self, candidates: Sequence[Candidate], name: str, on: DistilledDataset, number: int
    ) -> dict:
        """The scores of all networks after training on one set, each with its best rate."""
        best, seconds = [], 0.0
        # all images are named by the data's identity
        prints = None if name == TRUTH else _fingerprints(on)
        for candidate in candidates:
            tried = []
            for rate in self.search.rates:
                key = self._key(candidate, name, prints, number, rate)
                tried.append((rate, *self._score(key, candidate, name, on, number, rate)))
            best.append(max(tried, key=lambda one: one[1]))
            seconds += sum(one[3] for one in tried)
        rates, held_out, test, _ = zip(*best, strict=True)
        found = {"rate": list(rates), "held_out": list(held_out), "test": list(test)}
        return found | {"seconds": round(seconds, 2)}

    def _key(
        self, candidate: Candidate, name: str, prints: list | None, number: int, rate: float
    ) -> str:
        """Name all that a score depends on."""
        protocol = self.search.protocol(name)
        of = {"data": self.data.identity, "network": asdict(candidate), "set": prints}
        of |= {"protocol": asdict(protocol), "rate": rate, "seed": self.search.seed}
        of |= {"role": _role(name)}
        return files.identity(of | {"number": number} | marks(augmentation=protocol.augment))

    def _score(
        self,
        key: str,
        candidate: Candidate,
        name: str,
        on: DistilledDataset,
        number: int,
        rate: float,
    ) -> tuple[float, float, float]:
        """The accuracies on held-out and test images, and the seconds that the training took."""

        def make() -> tuple[tuple, Tensor]:
            network, began = candidate.network(self.data), clock(self.data.device)
            protocol, path = self.search.protocol(name), (_role(name), number)
            rated = replace(on, alpha=torch.tensor(rate, device=self.data.device))
            theta = train(network, rated, protocol, self.search.seed, *path)
            seconds = clock(self.data.device) - began
            splits = (self.data.validation, self.data.test)
            found = [accuracy(network, theta, *split) for split in splits if split]
            return (*found, round(seconds, 3)), theta

        held_out, test, seconds = score_once(self.scores, key, tuple, number, rate, make)
        self.bar.update()
        return held_out, test, seconds


def _role(name: str) -> str:
    return "truth" if name == TRUTH else "proxy"


def _fingerprints(on: DistilledDataset) -> list:
    """Name a set by its tensors; real images by their 8-bit pixels, as the last bits of whitened
    ones depend on the machine.
    """
    levels = on.whitening.invert(on.images) * 255
    real = bool((levels - levels.round().clamp(0, 255)).abs().max() < 0.1)
    images = levels.round().to(torch.uint8) if real else on.images
    return [files.fingerprint(images), files.fingerprint(on.labels), on.loss, on.formation]


def _check(
    candidates: Sequence[Candidate], sets: Mapping[str, Sequence[DistilledDataset]], data: ImageData
) -> None:
    """Raise Error for networks, sets and data that cannot be ranked together."""
    if len(candidates) < 2:
        raise Error("there is nothing to rank: give at least two networks")
    if not all(sets.values()) or not sets:
        raise Error("there is nothing to train on: give at least one set under each name")
    if TRUTH in sets:
        raise Error(f"'{TRUTH}' is the name of the truth: give the set another name")
    if data.validation is None:
        raise Error("ranking needs held-out images: load the data with a validation share")
    for name, several in sets.items():
        for one in several:
            check_pair(one, data)
            if other := made_from_other_images(one, data):
                raise Error(f"the set '{name}' cannot be ranked with: {other}")
            source = one.provenance.get("data", {})
            if source and "validation" not in source:
                warnings.warn(
                    f"the set '{name}' is not of ddpp, and may have been made from the held-out "
                    "images as well, on which networks are ranked",
                    stacklevel=3,
                )
            share = source.get("validation", data.held_out)
            if share != data.held_out:
                raise Error(
                    f"the set '{name}' was made with a validation share of {share}, here it is "
                    f"{data.held_out}: load the data with that share, or images that are held out "
                    "may be in the set"
                )
    for candidate in candidates:
        candidate.network(data)  # refuses one that cannot work, before the first is trained
