"""Tables and numbers as text."""

import statistics
from collections.abc import Sequence

from ddpp.foundation.stats import spread


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table as text, its columns below one another."""
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, wide)).rstrip() for line in lines)


def in_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table in Markdown, its head first."""
    head, *others = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *others])


def show_mean(values: Sequence[float]) -> str:
    """Write the mean of a few values with their standard deviation."""
    return f"{statistics.fmean(values):.1f} ± {spread(values):.1f}"


def show_p(p: float) -> str:
    """Write a probability as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


class AsTable:
    """What shows itself as a table: as text, and in a notebook in Markdown."""

    def lines(self) -> list[list[str]]:
        """The table as text, its head first."""
        raise NotImplementedError

    def __str__(self) -> str:
        return aligned(self.lines())

    def markdown(self) -> str:
        """The table in Markdown."""
        return in_markdown(self.lines())

    _repr_markdown_ = markdown
