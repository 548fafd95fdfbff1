"""Statistics of a few values, and of their paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

K = TypeVar("K")
EQUAL = 1e-9  # points of accuracy that differ by rounding alone


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Difference:
    """Paired differences of one setting to another, one per seed, in points of accuracy."""

    values: tuple[float, ...]

    @classmethod
    def paired(cls, values: Mapping[int, float], base: Mapping[int, float]) -> "Difference | None":
        """Of the seeds that both have; None if there are none.

        - values, base: accuracies by seed.
        """
        gains = tuple(value - base[seed] for seed, value in values.items() if seed in base)
        return cls(gains) if gains else None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def error(self) -> float | None:
        """The standard error of the mean. None for one seed, and where all seeds differ by the same
        amount: with so few digits nobody can tell how much is chance.
        """
        error = spread(self.values) / math.sqrt(len(self.values))
        if len(self.values) < 2 or (error < EQUAL and abs(self.mean) > EQUAL):
            return None
        return error

    @property
    def half(self) -> float | None:
        """Half the width of the 95 % interval of the mean, by Student's t; None as for `error`."""
        from scipy import stats  # here, as it takes half a second to import

        if self.error is None:
            return None
        return float(stats.t.ppf(0.975, len(self.values) - 1)) * self.error

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the 95 % interval of the mean; None as for `error`."""
        half = self.half
        return None if half is None else (self.mean - half, self.mean + half)

    def text(self, digits: int = 2) -> str:
        """Write the mean with its interval, which fewer than three seeds do not give.

        >>> from ddpp.foundation.stats import Difference
        >>> Difference((0.1, 0.2, 0.3)).text()
        '+0.20 (-0.05 to +0.45)'
        """
        mean = f"{self.mean:+.{digits}f}"
        ends = self.interval
        if ends is None or len(self.values) < 3:
            return mean
        return f"{mean} ({ends[0]:+.{digits}f} to {ends[1]:+.{digits}f})"

    @property
    def p(self) -> float | None:
        """How probable so large a mean would be without a difference; None as for `error`."""
        from scipy import stats

        if self.error is None:
            return None
        if self.error < EQUAL:
            return 1.0
        return float(2 * stats.t.sf(abs(self.mean) / self.error, len(self.values) - 1))

    def detectable(self, level: float = 0.05) -> float | None:
        """The smallest true difference that a test finds in four of five such comparisons.

        - level: of the test.

        None as for `error`. The spread is taken to be the true one, so with few seeds it is rough.
        """
        from scipy import optimize, stats

        n = len(self.values)
        if self.error is None:
            return None
        critical = stats.t.ppf(1 - level / 2, n - 1)
        shares = (np.arange(2000) + 0.5) / 2000  # of the spreads that n seeds may show
        needed = critical * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))

        def power(errors: float) -> float:  # where the true difference is so many standard errors
            return float(np.mean(stats.norm.sf(needed - errors) + stats.norm.sf(needed + errors)))

        if power(0) >= 0.8:  # at so high a level a test finds a difference anyway
            return 0.0
        found = optimize.root_scalar(lambda x: power(x) - 0.8, bracket=(0, 4 * critical + 4))
        return float(found.root) * self.error


def holm(differences: Mapping[K, Difference]) -> dict[K, float | None]:
    """Return the p of each difference, corrected for their number by Holm's procedure (1979).

    >>> from ddpp.foundation.stats import Difference, holm
    >>> found = holm({"a": Difference((1.0, 1.1, 1.2)), "b": Difference((-1.0, 0.0, 1.1))})
    >>> {name: round(p, 3) for name, p in found.items()}
    {'a': 0.005, 'b': 0.961}
    """
    known = {name: d.p for name, d in differences.items() if d.p is not None}
    order, worst, found = sorted(known, key=lambda name: known[name]), 0.0, {}
    for rank, name in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * known[name]))
        found[name] = worst
    return {name: found.get(name) for name in differences}
