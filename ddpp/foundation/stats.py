"""Statistics of a few values."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
