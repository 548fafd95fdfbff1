"""The tables of the book, in Markdown."""

from ddpp.book.tables.paper import (
    SCALES,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    architecture_of,
    best_1,
    best_3,
    missing_1,
    table_2,
    table_3,
)
from ddpp.book.tables.parts import NAMES
from ddpp.book.tables.runs import against, cells, costs, forms, leaks, paired, rivals, summarize

__all__ = [
    "NAMES",
    "SCALES",
    "TABLE_1",
    "TABLE_2",
    "TABLE_3",
    "against",
    "architecture_of",
    "best_1",
    "best_3",
    "cells",
    "costs",
    "forms",
    "leaks",
    "missing_1",
    "paired",
    "rivals",
    "summarize",
    "table_2",
    "table_3",
]
