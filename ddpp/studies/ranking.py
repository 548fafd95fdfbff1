"""How well one order of networks predicts another: rank correlations, regret, their intervals."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpp.foundation.errors import Error, choose
from ddpp.foundation.seeds import generator
from ddpp.foundation.text import AsTable
from ddpp.studies.grids import Candidate

TRUTH = "all images"  # what this row of a report was trained on
RESAMPLES = 1000
FACTORS = tuple(f.name for f in fields(Candidate))  # of which networks have one value each


def ranks(values: Tensor) -> Tensor:
    """Rank values (n,) from 1; equal ones share the mean of their ranks.

    >>> import torch
    >>> from ddpp.studies.ranking import ranks
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
    check_rows(a, b)
    x, y = (ranks(values).double() - (len(values) + 1) / 2 for values in (a, b))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def kendall(a: Tensor, b: Tensor) -> float:
    """Compute the share of pairs in equal order minus that in opposite order, of two rows (n,).

    Ties are accounted for (tau-b). NaN if all values of one row are equal. Source: Kendall (1945).
    """
    check_rows(a, b)
    x, y = ((values[:, None] - values).sign().double() for values in (a, b))
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def check_rows(a: Tensor, b: Tensor) -> None:
    """Raise an Error unless these are two rows of values (n,) of the same networks."""
    if a.dim() != 1 or a.shape != b.shape or len(a) < 2:
        raise Error(
            f"the shapes {tuple(a.shape)} and {tuple(b.shape)} are no two rows of values of the "
            "same networks: give two of (n,), with n at least 2"
        )


def in_best_tenth(truth: Tensor, proxy: Tensor) -> float:
    """Spearman's correlation (see `spearman`) over the tenth of the networks that is truly best.

    - truth, proxy: scores (n,), the higher the better. A tenth is rounded up, and at least two.
    """
    best = truth.argsort(descending=True, stable=True)[: max(2, math.ceil(len(truth) / 10))]
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
        """Write the value with its interval, or a dash where there is none."""
        if math.isnan(self.value):
            return "–"
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
class Ranking(AsTable):
    """What networks learn from sets: by `rank`, or read from its report by `Ranking.read`."""

    candidates: tuple[Candidate, ...]
    truth: Tensor  # test accuracies after training on all images, (repeats, n), in percent
    again: Tensor  # held-out accuracies after the same trainings, (repeats, n)
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
            again = torch.tensor([row["held_out"] for row in found[TRUTH]])
            return cls(candidates, columns.pop(TRUTH), again, columns, seconds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise Error(f"{path} is no report of ddpp rank: name its ranking.json") from None

    def only(self, factor: str, *values: object) -> "Ranking":
        """The networks that have one of these values of a factor, a field of Candidate.

        Raises Error if there is no such factor, or if fewer than two networks have these values.
        """
        choose("factor", factor, FACTORS)
        kept = [i for i, one in enumerate(self.candidates) if getattr(one, factor) in values]
        if len(kept) < 2:
            raise Error(f"fewer than two networks have {factor} {values}: name more values")
        return replace(
            self,
            candidates=tuple(self.candidates[i] for i in kept),
            truth=self.truth[:, kept],
            again=self.again[:, kept],
            proxies={name: rows[:, kept] for name, rows in self.proxies.items()},
        )

    def estimate(self, name: str, statistic: Statistic, base: str | None = None) -> Estimate:
        """Compute a statistic of a set, the mean over its draws.

        - name: of the set; or TRUTH, for how well one training on all images predicts another.
        - statistic: one of STATISTICS.
        - base: another set, whose mean is subtracted, over the same networks. Default: none.

        Raises Error for a set that is not there.
        """
        for of in (name, base) if base else (name,):
            choose("set", of, [*self.proxies, TRUTH])

        def mean(of: str, index: Tensor) -> float:
            pairs = self._pairs(of)
            return statistics.fmean(statistic(a[index], b[index]) for a, b in pairs)

        def value(index: Tensor) -> float:
            return mean(name, index) - (mean(base, index) if base else 0.0)

        return bootstrap(value, len(self.candidates))

    def _pairs(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """The truth and a proxy (n,), for each draw of a set.

        For TRUTH: each training's held-out accuracies, and the test accuracies of the others.
        """
        if name != TRUTH:
            return [(self.truth.mean(0), row) for row in self.proxies[name]]
        if len(self.truth) < 2:
            raise Error("all images were trained on once: rank with at least two repeats")
        total = self.truth.sum(0)
        others = [(total - row) / (len(self.truth) - 1) for row in self.truth]
        return list(zip(others, self.again, strict=True))

    def shifts(self, name: str, factor: str) -> dict[object, float]:
        """By how many ranks a set prefers each value of a factor, compared with the truth.

        - name: of the set.
        - factor: a field of Candidate.

        Returns means over networks and draws: positive where the set ranks too high. Raises Error
        for a set or factor that is not there.
        """
        choose("set", name, self.proxies)
        choose("factor", factor, FACTORS)
        true = ranks(self.truth.mean(0))
        shift = torch.stack([ranks(row) - true for row in self.proxies[name]]).mean(0)
        values = [getattr(one, factor) for one in self.candidates]
        return {
            value: float(shift[torch.tensor([one == value for one in values])].mean())
            for value in dict.fromkeys(values)
        }

    def lines(self) -> list[list[str]]:
        """The table as text, its head first. The last row says how well all images do it again."""
        lines = [["trained on", *STATISTICS, "minutes"]]
        known = [TRUTH] if len(self.truth) > 1 else []
        for name in [*self.proxies, *known]:
            found = [self.estimate(name, statistic) for statistic in STATISTICS.values()]
            digits = [1 if "regret" in column else 2 for column in STATISTICS]
            shown = [one.text(n) for one, n in zip(found, digits, strict=True)]
            lines.append([name, *shown, f"{self.seconds[name] / 60:.1f}"])
        if not known:
            lines.append([TRUTH, *[""] * len(STATISTICS), f"{self.seconds[TRUTH] / 60:.1f}"])
        return lines
