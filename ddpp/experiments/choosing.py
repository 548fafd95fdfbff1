"""Architecture search by proxy: small networks, ranked by what a small set teaches them.

Each network of a grid is trained on a small set, distilled or of real images, and tested on
held-out images. That gives an order in little time. The truth is the order of their test accuracies
after training on all images. Source: the search of DC (Zhao et al., ICLR 2021), with 720 ConvNets.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol, check_pair, train
from ddpp.experiments.run import provenance
from ddpp.foundation import files
from ddpp.foundation.errors import Count, Error, check_bounds, choose, differences
from ddpp.foundation.identity import as_in_files, marks
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, accuracy

REPORT, SCORES = "choosing.json", "choosing.scores"
TRUTH = "all images"
RESAMPLES = 2000
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "instance": lambda width: nn.GroupNorm(width, width),  # the ConvNet's
    "layer": lambda width: nn.GroupNorm(1, width),
    "group": lambda width: nn.GroupNorm(4, width),
}
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leaky": nn.LeakyReLU}
POOLINGS = {"none": nn.Identity, "max": lambda: nn.MaxPool2d(2), "average": lambda: nn.AvgPool2d(2)}


@dataclass(frozen=True)
class Candidate:
    """A ConvNet whose parts can be chosen; with the last three at their defaults it is ours.

    >>> from ddpp.experiments.choosing import Candidate
    >>> str(Candidate(16, 2, norm="group"))
    '16 x 2, group, relu, average'
    """

    width: int = 128  # channels of each block
    depth: int = 3  # blocks
    norm: str = "instance"  # of NORMS
    activation: str = "relu"  # of ACTIVATIONS
    pooling: str = "average"  # of POOLINGS

    def __str__(self) -> str:
        return f"{self.width} x {self.depth}, {self.norm}, {self.activation}, {self.pooling}"

    def module(self, channels: int, classes: int, image_size: int) -> nn.Module:
        """Make the module, freshly initialized. Raise Error for images that are too small."""
        side = image_size if self.pooling == "none" else image_size // 2**self.depth
        if side < 1:
            raise Error(
                f"a network of depth {self.depth} halves the image {self.depth} times, which "
                f"{image_size} x {image_size} pixels do not allow: leave that depth out"
            )
        blocks = []
        for i in range(self.depth):
            before = self.width if i else channels
            convolution = nn.Conv2d(before, self.width, kernel_size=3, padding=1)
            activation, pooling = ACTIVATIONS[self.activation](), POOLINGS[self.pooling]()
            blocks += [convolution, NORMS[self.norm](self.width), activation, pooling]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(self.width * side**2, classes))

    def network(self, data: ImageData) -> Flat:
        """Build the network for these images and classes, on their device."""
        channels, side, _ = data.shape
        classes = len(data.classes)
        flat = Flat(lambda: self.module(channels, classes, side), data.device, str(self))
        flat.check(data.shape, classes)
        return flat


@dataclass(frozen=True)
class Grid:
    """The values of each factor; the grid is all their combinations."""

    width: tuple[int, ...] = (8, 16)  # channels of each block
    depth: tuple[int, ...] = (1, 2, 3)  # blocks
    norm: tuple[str, ...] = tuple(NORMS)
    activation: tuple[str, ...] = tuple(ACTIVATIONS)
    pooling: tuple[str, ...] = ("max", "average")  # or none, which takes several times as long

    def __post_init__(self):
        for name, table in (("norm", NORMS), ("activation", ACTIVATIONS), ("pooling", POOLINGS)):
            for value in getattr(self, name):
                choose(name, value, table)
        for field in fields(self):
            values = getattr(self, field.name)
            if not values:
                raise Error(f"the grid is empty: give {field.name} at least one value")
            if len(set(values)) < len(values):
                raise Error(f"the grid names a {field.name} twice: name each once")
        for name in ("width", "depth"):
            if min(getattr(self, name)) < 1:
                raise Error(f"the grid has a {name} below 1: each must be at least 1")

    def candidates(self) -> list[Candidate]:
        """All networks of the grid."""
        return [Candidate(*parts) for parts in itertools.product(*self._values())]

    def stratified(self, count: int, seed: int = 0) -> list[Candidate]:
        """Draw networks in which each value of each factor appears equally often.

        - count: of networks; a multiple of each factor's number of values.
        - seed: equal seeds draw equal networks.

        Raises Error for a count with which that is not possible.

        >>> from ddpp.experiments.choosing import Grid
        >>> grid = Grid(width=(8, 16), depth=(1, 2), norm=("none",), activation=("relu",))
        >>> [str(one) for one in grid.stratified(2, seed=0)]
        []
        """
        everything = self.candidates()
        unit = math.lcm(*map(len, self._values()))
        if count not in range(unit, len(everything) + 1, unit):
            raise Error(
                f"{count} networks of this grid cannot have each value equally often: choose a "
                f"multiple of {unit} up to {len(everything)}"
            )
        rng = generator(seed, "networks")
        order = torch.randperm(len(everything), generator=rng).tolist()
        chosen, others = order[:count], order[count:]
        missing = self._imbalance([everything[at] for at in chosen])
        while missing:  # exchange two at random, unless that makes it worse
            i = int(torch.randint(len(chosen), (), generator=rng))
            k = int(torch.randint(len(others), (), generator=rng))
            tried = [*chosen[:i], others[k], *chosen[i + 1 :]]
            after = self._imbalance([everything[at] for at in tried])
            if after <= missing:
                chosen, others[k], missing = tried, chosen[i], after
        return [everything[at] for at in sorted(chosen)]

    def _values(self) -> list[tuple]:
        return [getattr(self, field.name) for field in fields(self)]

    def _imbalance(self, chosen: Sequence[Candidate]) -> int:
        """Sum over all values how far they are from appearing equally often."""
        total = 0
        for field, values in zip(fields(self), self._values(), strict=True):
            each, found = len(chosen) // len(values), [getattr(one, field.name) for one in chosen]
            total += sum(abs(found.count(value) - each) for value in values)
        return total


def ranks(values: Tensor) -> Tensor:
    """Rank values (n,) from 1; equal ones share the mean of their ranks.

    >>> import torch
    >>> from ddpp.experiments.choosing import ranks
    >>> ranks(torch.tensor([0.3, 0.1, 0.3])).tolist()
    [2.5, 1.0, 2.5]
    """
    below = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)  # itself included
    return below + (equal + 1) / 2


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlate the ranks of two rows of values (n,): 1 for equal orders, -1 for opposite ones.

    NaN if all values of one row are equal. Source: Spearman (1904).
    """
    x, y = (ranks(values).double() - (len(values) + 1) / 2 for values in (a, b))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def kendall(a: Tensor, b: Tensor) -> float:
    """Compare all pairs of two rows of values (n,): the share in equal order minus that in opposite
    order.

    Ties are accounted for (tau-b). NaN if all values of one row are equal. Source: Kendall (1945).
    """
    x, y = ((values[:, None] - values).sign().double() for values in (a, b))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def in_best_tenth(truth: Tensor, proxy: Tensor) -> float:
    """Spearman's correlation (see `spearman`) over the tenth of the networks that is truly best.

    - truth, proxy: scores (n,), the higher the better; a tenth is rounded up.
    """
    best = truth.argsort(descending=True, stable=True)[: math.ceil(len(truth) / 10)]
    return spearman(truth[best], proxy[best])


def regret(truth: Tensor, proxy: Tensor, keep: int = 1) -> float:
    """What the choice by a proxy costs: the accuracy of the chosen network minus the best there is.

    - truth, proxy: scores (n,), the higher the better.
    - keep: so many networks with the highest proxy are kept, and the truly best of them is chosen.

    Of equal proxies the first is taken. Returns points of accuracy, at most 0.
    """
    kept = proxy.argsort(descending=True, stable=True)[:keep]
    return float(truth[kept].max() - truth.max())


Statistic = Callable[[Tensor, Tensor], float]  # of truth and proxy, (n,) each
STATISTICS: dict[str, Statistic] = {
    "Spearman": spearman,
    "Kendall": kendall,
    "best tenth": in_best_tenth,
    "regret": regret,
    "regret of five": lambda truth, proxy: regret(truth, proxy, keep=5),
}


class Estimate(NamedTuple):
    """A statistic, with the 95 % interval of a bootstrap over networks."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """Write the value with its interval."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def bootstrap(statistic: Callable[[Tensor], float], count: int, seed: int = 0) -> Estimate:
    """Compute a statistic of networks, and of networks drawn from them with replacement.

    - statistic: a function of indices of networks (n,).
    - count: of networks.
    - seed: of the draws.

    The interval goes from the 2.5 % to the 97.5 % quantile of RESAMPLES draws. Source: Efron
    (1979), the percentile method.
    """
    rng = generator(seed, "bootstrap")
    drawn = [torch.randint(count, (count,), generator=rng) for _ in range(RESAMPLES)]
    found = torch.tensor([statistic(index) for index in drawn], dtype=torch.float64)
    low, high = torch.nanquantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Estimate(statistic(torch.arange(count)), float(low), float(high))


@dataclass(frozen=True)
class Ranking:
    """What networks learn from sets: by `rank`, or read from its report by `Ranking.read`."""

    candidates: tuple[Candidate, ...]
    truth: Tensor  # test accuracies after training on all images, (repeats, n), in percent
    # {set: held-out accuracies (draws, n)}, one row for each draw or seed of that set
    proxies: dict[str, Tensor]
    seconds: dict[str, float]  # {set or TRUTH: of all trainings of one row, of one core}

    @classmethod
    def read(cls, path: str | Path) -> "Ranking":
        """Read a report of `rank`. Raises Error for another file."""
        try:
            report = json.loads(Path(path).read_text())
            found = report["found"]
            columns = {
                name: torch.tensor([row["test" if name == TRUTH else "held_out"] for row in rows])
                for name, rows in found.items()
            }
            seconds = {
                name: statistics.fmean(row["seconds"] for row in rows)
                for name, rows in found.items()
            }
            candidates = tuple(Candidate(**one) for one in report["networks"])
            return cls(candidates, columns.pop(TRUTH), columns, seconds)
        except (OSError, ValueError, KeyError, TypeError):
            raise Error(f"{path} is no report of ddpp rank: name a {REPORT}") from None

    def estimate(self, name: str, statistic: Statistic, base: str | None = None) -> Estimate:
        """Compute a statistic of a set, the mean over its draws.

        - name: of the set.
        - statistic: one of STATISTICS.
        - base: another set, whose mean is subtracted, over the same networks. Default: none.
        """
        truth = self.truth.mean(0)

        def mean(of: str, index: Tensor) -> float:
            return statistics.fmean(statistic(truth[index], row[index]) for row in self.proxies[of])

        def value(index: Tensor) -> float:
            return mean(name, index) - (mean(base, index) if base else 0.0)

        return bootstrap(value, len(truth))

    def shifts(self, name: str, factor: str) -> dict[object, float]:
        """By how many ranks a set prefers each value of a factor, compared with the truth.

        - name: of the set. - factor: a field of Candidate.

        Returns means over networks and draws: positive where the set ranks too high.
        """
        true = ranks(self.truth.mean(0))
        shift = torch.stack([ranks(row) - true for row in self.proxies[name]]).mean(0)
        values = [getattr(one, factor) for one in self.candidates]
        return {
            value: float(shift[torch.tensor([one == value for one in values])].mean())
            for value in dict.fromkeys(values)
        }

    def lines(self) -> list[list[str]]:
        """The table as text, its head first."""
        head = ["trained on", *STATISTICS, "minutes"]
        lines = [head]
        for name in self.proxies:
            found = [self.estimate(name, statistic) for statistic in STATISTICS.values()]
            digits = [1 if "regret" in column else 2 for column in STATISTICS]
            shown = [one.text(n) for one, n in zip(found, digits, strict=True)]
            lines.append([name, *shown, f"{self.seconds[name] / 60:.1f}"])
        return [*lines, [TRUTH, *[""] * len(STATISTICS), f"{self.seconds[TRUTH] / 60:.1f}"]]


@dataclass(frozen=True)
class Search:
    """How networks are trained, on small sets and on all images."""

    small_epochs: Count = 40  # passes over a small set
    small_batch: Count = 20  # images per update
    epochs: Count = 8  # passes over all images
    batch: Count = 64  # images per update
    rates: tuple[float, ...] = (0.01, 0.1)  # learning rates; the best on held-out images counts
    repeats: Count = 1  # trainings on all images
    seed: int = 0  # of the networks

    def __post_init__(self):
        check_bounds(self, "the search's ")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise Error("the search needs learning rates, all of them positive")

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
    - folder: of the report, and of the scores so far; the same call resumes from what is there.
    - search: how networks are trained.
    - progress: whether a progress bar is shown.

    Raises Error for sets that do not fit the data, and for a folder with another report.
    """
    candidates, folder = tuple(candidates), Path(folder)
    _check(candidates, sets, data)
    whole = DistilledDataset.from_tensors(*data.train, search.rates[0], data)
    jobs = {name: tuple(several) for name, several in sets.items()}
    jobs |= {TRUTH: (whole,) * search.repeats}
    networks = [asdict(one) for one in candidates]
    prints = {name: [_fingerprints(one) for one in several] for name, several in jobs.items()}
    asked = {"networks": networks, "search": asdict(search), "sets": prints}
    asked |= {"data": data.identity}
    files.check_writable(folder / REPORT)
    with files.lock(folder / REPORT, wait=False):
        _check_report(folder / REPORT, asked)
        total = len(candidates) * len(search.rates) * sum(map(len, jobs.values()))
        with tqdm(total=total, desc="train", unit="network", disable=not progress) as bar:
            trainer = _Trainer(data, search, folder / SCORES, bar)
            found = {
                name: [
                    trainer.row(candidates, name, one, number) for number, one in enumerate(several)
                ]
                for name, several in jobs.items()
            }
        report = {"asked": asked, "networks": networks, "found": found}
        files.write_json(folder / REPORT, report | provenance(data.device))
    return Ranking.read(folder / REPORT)


class _Trainer(NamedTuple):
    """Trains networks on sets; reads the scores that are known already."""

    data: ImageData
    search: Search
    scores: Path
    bar: tqdm

    def row(
        self, candidates: Sequence[Candidate], name: str, on: DistilledDataset, number: int
    ) -> dict:
        """The scores of all networks after training on one set, each with its best rate."""
        best, seconds = [], 0.0
        prints = _fingerprints(on)
        for candidate in candidates:
            tried = []
            for rate in self.search.rates:
                key = self._key(candidate, name, prints, number, rate)
                tried.append((rate, *self._score(key, candidate, name, on, number, rate)))
            best.append(max(tried, key=lambda one: one[1]))
            seconds += sum(one[3] for one in tried)
        rates, held_out, test, _ = zip(*best, strict=True)
        found = {"rate": list(rates), "held_out": list(held_out), "test": list(test)}
        return found | {"seconds": round(seconds, 1)}

    def _key(self, candidate: Candidate, name: str, prints: list, number: int, rate: float) -> str:
        """Name all that a score depends on."""
        protocol = self.search.protocol(name)
        of = {"data": self.data.identity, "network": asdict(candidate), "set": prints}
        of |= {"protocol": asdict(protocol), "rate": rate, "seed": self.search.seed}
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
        known = _read_scores(self.scores)
        if key not in known:
            network, began = candidate.network(self.data), time.process_time()
            protocol, path = self.search.protocol(name), ("rank", number)
            rated = replace(on, alpha=torch.tensor(rate, device=self.data.device))
            theta = train(network, rated, protocol, self.search.seed, *path)
            seconds = time.process_time() - began
            splits = (self.data.validation, self.data.test)
            found = [accuracy(network, theta, *split) for split in splits if split]
            known[key] = [*found, round(seconds, 2)]
            files.write_json(self.scores, known)
        self.bar.update()
        held_out, test, seconds = known[key]
        return held_out, test, seconds


def _fingerprints(on: DistilledDataset) -> list:
    return [files.fingerprint(on.images), files.fingerprint(on.labels), on.loss, on.formation]


def _read_scores(path: Path) -> dict[str, list[float]]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError, TypeError):
        raise Error(f"{path} is not a file of scores: move it away") from None


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
            check_pair(one.to(data.device), data)
            share = one.provenance.get("data", {}).get("validation", data.held_out)
            if share != data.held_out:
                raise Error(
                    f"the set '{name}' was made with a validation share of {share}, here it is "
                    f"{data.held_out}: load the data with that share, or images that are held out "
                    "may be in the set"
                )


def _check_report(path: Path, asked: dict) -> None:
    """Raise an Error if the report of a folder is that of another run."""
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text())["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Error(f"{path} is where the report belongs, but is another file: move it") from None
    if known != (wanted := as_in_files(asked)):
        raise Error(
            f"{path} is the report of another run ({differences(known, wanted)}): move it away, and "
            "what both have in common is not trained again"
        )
