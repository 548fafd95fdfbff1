"""Whole runs: every method, its settings, one run from nothing to a report, and lists of runs."""

from ddpp.experiments.comparing import Comparison, compare, comparison_of
from ddpp.experiments.lists import Run, elsewhere, runs, select
from ddpp.experiments.progress import overview
from ddpp.experiments.queues import read_queue
from ddpp.experiments.reproducing import reproduce
from ddpp.experiments.results import read, read_result, read_row
from ddpp.foundation.stats import Difference, holm

__all__ = [
    "Comparison",
    "Difference",
    "Run",
    "compare",
    "comparison_of",
    "elsewhere",
    "holm",
    "overview",
    "read",
    "read_queue",
    "read_result",
    "read_row",
    "reproduce",
    "runs",
    "select",
]
