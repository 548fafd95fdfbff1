"""Whole runs: every method, its settings, one run from nothing to a report, and lists of runs."""

from ddpp.experiments.auditing import Audit, Design, audit, read_audit
from ddpp.experiments.choosing import Search, rank
from ddpp.experiments.comparing import Comparison, Difference, compare, comparison_of, holm
from ddpp.experiments.grids import Candidate, Grid, stratified
from ddpp.experiments.lists import Run, elsewhere, home, runs, select, settings
from ddpp.experiments.overview import overview
from ddpp.experiments.queues import read_queue
from ddpp.experiments.ranking import Ranking
from ddpp.experiments.remembering import class_tasks, read_memories, remember
from ddpp.experiments.reproducing import reproduce
from ddpp.experiments.results import read, read_result, read_row

__all__ = [
    "Audit",
    "Candidate",
    "Comparison",
    "Design",
    "Difference",
    "Grid",
    "Ranking",
    "Run",
    "Search",
    "audit",
    "class_tasks",
    "compare",
    "comparison_of",
    "elsewhere",
    "holm",
    "home",
    "overview",
    "rank",
    "read",
    "read_audit",
    "read_memories",
    "read_queue",
    "read_result",
    "read_row",
    "remember",
    "reproduce",
    "runs",
    "select",
    "settings",
    "stratified",
]
