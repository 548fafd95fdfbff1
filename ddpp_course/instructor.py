"""The instructor's copy of an assignment, as the grader reads it."""

import ast
import hashlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from ddpp.foundation.errors import Error
from ddpp_course import copies
from ddpp_course.session import Limits
from ddpp_course.submissions import names

SECONDS = 120  # for a cell, where the assignment does not say


@dataclass(frozen=True)
class Assignment:
    """An instructor's notebook, read for grading."""

    name: str
    tasks: list[copies.Task]
    setup: str  # code that the checks need
    checks: dict[str, str]  # task -> code
    functions: set[str]  # names that the students define
    values: set[str]  # names that the students assign
    given: set[str]  # all cells as they were handed out
    stubs: set[str]  # the code of the students' cells as they were handed out
    # the code of cells that nothing graded depends on: those with the tag skip-grading
    pictures: set[str]
    seconds: float  # for a cell, unless the grader says otherwise
    digest: str  # of all that decides the points

    @staticmethod
    def read(path: Path) -> "Assignment":
        notebook = copies.instructors(path)
        marked = {
            copies.nbgrader(cell)["grade_id"]: cell
            for cell in notebook.cells
            if copies.nbgrader(cell)
        }
        code = {name: cell for name, cell in marked.items() if cell.cell_type == "code"}
        answers = {name for name, cell in code.items() if copies.nbgrader(cell)["solution"]}
        tasks = copies.tasks(notebook)
        checks = {task.name: code[task.name].source for task in tasks if not task.by_hand}
        for name, check in checks.items():
            _parsed(path, name, check)
        found = [names(_parsed(path, name, _plain(code[name].source))) for name in answers]
        functions, values = (set[str]().union(*(pair[i] for pair in found)) for i in (0, 1))
        students = copies.students(notebook).cells
        handed_out = {copies.nbgrader(cell).get("grade_id"): cell.source for cell in students}
        course = Path(__file__).parent
        made_of = [path, *sorted([*course.glob("*.py"), *course.rglob("*.toml")])]
        return Assignment(
            name=path.stem,
            tasks=tasks,
            setup="\n".join(
                cell.source for name, cell in code.items() if name not in answers | checks.keys()
            ),
            checks=checks,
            functions=functions,
            values=values,
            given={cell.source.strip() for cell in students},
            stubs={handed_out[name] for name in answers},
            pictures={
                cell.source
                for cell in notebook.cells
                if "skip-grading" in cell.metadata.get("tags", [])
            },
            seconds=_seconds(path, notebook),
            digest=hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest(),
        )

    def limits(self, limits: Limits) -> Limits:
        """Return the limits, with the assignment's own where they leave it open."""
        return limits if limits.seconds else replace(limits, seconds=self.seconds)

    def asks_for(self, check: str) -> tuple[list[str], list[str]]:
        """Return the names of the student's functions and values that the code of a check uses."""
        used = {node.id for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Name)}
        return sorted(used & self.functions), sorted(used & self.values)


def _seconds(path: Path, notebook: NotebookNode) -> float:
    """Return what a cell has, or raise Error where the metadata have no seconds to run in."""
    own = notebook.metadata.get("ddpp", {})
    if not isinstance(own, dict):
        raise Error(
            f"the metadata of {path} have the ddpp {own!r}: write an object, such as "
            f'{{"assignment": "{path.stem}"}}, or leave it out'
        )
    seconds = own.get("seconds", SECONDS)
    if (
        not isinstance(seconds, (int, float))
        or isinstance(seconds, bool)
        or not 0 < seconds < math.inf
    ):
        raise Error(
            f"the metadata of {path} have the seconds {seconds!r}: write a number above 0, or "
            f"leave them out for {SECONDS}"
        )
    return seconds


def _plain(code: str) -> str:
    """Return the code of a notebook without its magics."""
    return TransformerManager().transform_cell(re.sub(r"^%%.*", "", code))


def _parsed(path: Path, name: str, code: str) -> str:
    """Return the code of a cell, or raise Error where it is no Python: nobody could earn points."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError) as e:
        raise Error(f"the cell '{name}' of {path} is no Python: {e}. Correct it") from None
    return code


def assignments(folder: Path) -> dict[str, Assignment]:
    """Read the assignments in FOLDER/source, by name."""
    return {name: Assignment.read(path) for name, path in copies.sources(folder).items()}
