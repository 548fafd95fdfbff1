"""Anybody's distilled sets: read without running code in them, and tested under one protocol."""

from ddpp.judging.cards import card
from ddpp.judging.exporting import export
from ddpp.judging.opening import Opened, open_set
from ddpp.judging.tensors import Found, read_tensors
from ddpp.judging.verdicts import Judged, judge, report

__all__ = [
    "Found",
    "Judged",
    "Opened",
    "card",
    "export",
    "judge",
    "open_set",
    "read_tensors",
    "report",
]
