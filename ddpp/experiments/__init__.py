"""Whole runs: every method, its settings, one run from nothing to a report, and lists of runs."""

from ddpp.experiments.comparing import Comparison, Difference, compare, comparison_of, holm
from ddpp.experiments.lists import Run, elsewhere, home, runs, select, settings
from ddpp.experiments.overview import overview
from ddpp.experiments.queues import read_queue
from ddpp.experiments.reproducing import reproduce
from ddpp.experiments.results import read, read_result, read_row

__all__ = [
    "Comparison",
    "Difference",
    "Run",
    "compare",
    "comparison_of",
    "elsewhere",
    "holm",
    "home",
    "overview",
    "read",
    "read_queue",
    "read_result",
    "read_row",
    "reproduce",
    "runs",
    "select",
    "settings",
]
