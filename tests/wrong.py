"""A wrong solution of an assignment, as a student would hand it in."""

from dataclasses import dataclass

import nbformat


@dataclass(frozen=True)
class Wrong:
    """What is written instead of the solution, and what it should cost.

    cell: grade_id of the solution cell; replace: text of the solution -> what the student has;
    fails: grade_id of a check -> part of what it says. All other points are kept.
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
