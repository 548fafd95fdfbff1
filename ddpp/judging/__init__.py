"""Anybody's distilled sets: read without running code in them, and tested under one protocol."""

from ddpp.judging.cards import card
from ddpp.judging.exporting import export
from ddpp.judging.opening import Opened, open_set
from ddpp.judging.sheets import Sheet, read_sheet, write_sheet
from ddpp.judging.storing import FORMS, Form, Networks, Stored, picture_bytes, store
from ddpp.judging.tensors import Found, read_tensors
from ddpp.judging.verdicts import Judged, judge, refuse_loss, report

__all__ = [
    "FORMS",
    "Form",
    "Found",
    "Judged",
    "Networks",
    "Opened",
    "Sheet",
    "Stored",
    "card",
    "export",
    "judge",
    "open_set",
    "picture_bytes",
    "read_sheet",
    "read_tensors",
    "refuse_loss",
    "report",
    "store",
    "write_sheet",
]
