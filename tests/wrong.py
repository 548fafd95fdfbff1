"""Wrong solutions of the assignments, as a student would hand them in: the mistakes of
ddpp_course/solutions, each with what its checks should say.
"""

import re
from dataclasses import dataclass
from string import Formatter

import nbformat

from ddpp_course import messages, mistakes


@dataclass(frozen=True)
class Wrong:
    """What is written instead of the solution, and what it should cost.

    cell: grade_id of the solution cell; replace: text of the solution -> what the student has;
    fails: grade_id of a check -> a pattern in what it says. All other points are kept.
    """

    cell: str
    replace: dict[str, str]
    fails: dict[str, str]

    def apply(self, solution: nbformat.NotebookNode) -> nbformat.NotebookNode:
        """The solved notebook with this mistake in it."""
        (cell,) = [
            c for c in solution.cells if c.metadata.get("nbgrader", {}).get("grade_id") == self.cell
        ]
        for old, new in self.replace.items():
            if cell.source.count(old) != 1:
                raise ValueError(
                    f"{old!r} occurs {cell.source.count(old)} times in the solution of {self.cell}"
                )
            cell.source = cell.source.replace(old, new)
        return solution


def of(name: str) -> dict[str, Wrong]:
    """All wrong solutions of an assignment."""
    found = {}
    for row in mistakes.read(name):
        fails = {check: pattern(name, key, row.words) for check, key in row.fails.items()}
        found[f"{row.place}: {row.name}"] = Wrong(row.cell, row.change, fails)
    return found


def pattern(section: str, key: str, words: dict) -> str:
    """What a message looks like with some of its words."""
    section, key = ("any", key[4:]) if key.startswith("any.") else (section, key)
    found = ""
    for text, field, form, _ in Formatter().parse(messages.texts()[section][key]):
        found += re.escape(text)
        if field is not None:
            found += re.escape(format(words[field], form or "")) if field in words else ".*"
    return found
