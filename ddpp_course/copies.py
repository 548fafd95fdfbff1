"""Make the students' copies, the solutions and the points from the instructor's notebooks.

FOLDER/source/NAME/NAME.ipynb is the notebook to edit. It has nbgrader's markers and metadata, and
the students' copy is, cell for cell, the one that `nbgrader generate_assignment` makes. But the
package nbgrader is not needed.
"""

import copy
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ddpp.foundation import files
from ddpp.foundation.errors import Error

STUB = "# YOUR CODE HERE\nraise NotImplementedError()"
TEXT_STUB = "YOUR ANSWER HERE"
SOLUTION, HIDDEN = "SOLUTION", "HIDDEN TESTS"  # between ### BEGIN ... and ### END ...
MARKER = re.compile(rf".*(### *(BEGIN|END)\b|\b(BEGIN|END) ({SOLUTION}|{HIDDEN})).*")
# in a heading, of all checks together or one by one
POINTS = re.compile(r"^(##? .*\()[\d.]+( \+ [\d.]+)* points?\b", re.MULTILINE)
CARD = re.compile(r"^(\| \*\*Points\*\* \| )[\d.]+(: [\d.]+ by checks, [\d.]+)?", re.MULTILINE)
HEADING = re.compile(r"^##? *(?:Task \d+: *)?(.+?)(?: *\(.*\))? *$", re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """A cell that gives points. by_hand: a text that a person grades, with a rubric."""

    name: str  # its grade_id
    title: str  # of the section that it stands in
    points: float
    by_hand: bool


def read(path: Path) -> NotebookNode:
    """Read a notebook in today's format, or raise Error where the file is none."""
    try:
        with open(path, encoding="utf-8") as file:
            notebook = nbformat.read(file, 4)
        nbformat.validate(notebook)
        nbformat.writes(notebook).encode()  # half of a character is none
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    except Exception:  # nbformat raises nearly anything, from KeyError to its own
        raise Error(
            f"{path} is not a Jupyter notebook: hand in the .ipynb file, as saved or downloaded"
        ) from None
    return notebook


def instructors(path: Path) -> NotebookNode:
    """Read an instructor's notebook, or raise Error where it would not become what is meant.

    Of two cells with one grade_id only one would be graded, and a marker that has no effect would
    hand out what it should hide.
    """
    notebook, seen = read(path), set()
    for number, cell in enumerate(notebook.cells, 1):
        if wrong := _wrong(cell):
            raise Error(f"cell {number} of {path} {wrong}: correct nbgrader's metadata of the cell")
        name = nbgrader(cell).get("grade_id")
        if name is not None and name in seen:
            raise Error(f"two cells of {path} have the grade_id '{name}': give one of them another")
        seen.add(name)
    for number, cell in enumerate(students(notebook).cells, 1):
        if left := MARKER.search(cell.source):
            raise Error(
                f"cell {number} of {path} would be handed out with the marker {left[0].strip()!r}: "
                f"correct its words, and mark the cell as a solution (for {SOLUTION}) or as graded "
                f"(for {HIDDEN}) in its metadata"
            )
    return notebook


def _wrong(cell: NotebookNode) -> str:
    """Return what is wrong with a cell's nbgrader metadata, if there are some."""
    marks = cell.metadata.get("nbgrader")
    if not marks:
        return ""
    name = marks.get("grade_id") if isinstance(marks, dict) else None
    if not isinstance(name, str) or not name:
        return "has no grade_id, or one that is no text"
    for key in ("grade", "solution", "locked"):
        if not isinstance(marks.get(key), bool):
            return f"('{name}') has the {key} {marks.get(key)!r}, not true or false"
    points = marks.get("points")
    if marks["grade"] and (
        not isinstance(points, (int, float))
        or isinstance(points, bool)
        or not 0 <= points < math.inf
    ):
        return f"('{name}') has the points {points!r}, which are no number from 0"
    if (marks["grade"] or marks["solution"]) and cell.cell_type not in ("code", "markdown"):
        return f"('{name}') is graded or a solution, but neither code nor Markdown"
    if marks["grade"] and not marks["solution"] and cell.cell_type != "code":
        return f"('{name}') is a text that is graded, but nobody writes it, as it is no solution"
    return ""


def nbgrader(cell: NotebookNode) -> dict:
    """Return the cell's nbgrader metadata; empty for a cell that the assignment does not know."""
    marks = cell.metadata.get("nbgrader", {})
    return marks if isinstance(marks, dict) and isinstance(marks.get("grade_id"), str) else {}


def sources(folder: Path) -> dict[str, Path]:
    """Find the instructor's notebook of each assignment in FOLDER/source, by name.

    Raises Error if there is none.
    """
    found = {
        path.stem: path
        for path in sorted(folder.glob("source/*/*.ipynb"))
        if path.stem == path.parent.name
    }
    if not found:
        raise Error(
            f"no assignments in {folder}, where they would be source/NAME/NAME.ipynb: run this "
            "in the project's folder, or name the course's with --assignments"
        )
    return found


def tasks(source: NotebookNode) -> list[Task]:
    """List what gives points in an instructor's notebook, in its order."""
    found, title = [], ""
    for cell in source.cells:
        marks = nbgrader(cell)
        if marks.get("grade"):
            found.append(
                Task(marks["grade_id"], title, marks["points"], bool(marks.get("solution")))
            )
        elif cell.cell_type == "markdown" and (heading := HEADING.search(cell.source)):
            title = heading[1]
    return found


def students(source: NotebookNode) -> NotebookNode:
    """Make the students' copy, without solutions, hidden checks and outputs.

    Cells are locked where nbgrader locks them.
    """
    notebook = _with_points(source)
    for cell in _cells(notebook):
        marks = nbgrader(cell)
        if marks.get("solution"):
            stub = STUB if cell.cell_type == "code" else TEXT_STUB
            cell.source = (
                replace(cell.source, SOLUTION, stub) if f"BEGIN {SOLUTION}" in cell.source else stub
            )
        if marks.get("grade"):
            cell.source = replace(cell.source, HIDDEN)
        if marks:
            cell.metadata["deletable"] = False
            if not marks["solution"]:
                cell.metadata["editable"] = False
            marks |= {"cell_type": cell.cell_type, "checksum": checksum(cell)}
    return notebook


def solutions(source: NotebookNode) -> NotebookNode:
    """Make the notebook that students may see afterwards: solved, without hidden checks."""
    notebook = _with_points(source)
    for cell in _cells(notebook):
        cell.source = replace(cell.source, HIDDEN)
        cell.source = "\n".join(
            line for line in cell.source.split("\n") if f" {SOLUTION}" not in line
        )
    return notebook


def _with_points(source: NotebookNode) -> NotebookNode:
    """Copy a notebook; its headings and its card get the points that the metadata have."""
    notebook = copy.deepcopy(source)
    heading, points = None, {}
    for i, cell in enumerate(notebook.cells):
        marks = nbgrader(cell)
        if marks.get("grade"):
            points[heading] = [*points.get(heading, []), marks["points"]]
        elif cell.cell_type == "markdown" and HEADING.search(cell.source):
            heading = i
    by_hand = sum(task.points for task in tasks(source) if task.by_hand)
    total = sum(map(sum, points.values()))
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            continue
        if i in points and (there := POINTS.search(cell.source)):
            each = points[i] if there[2] else [sum(points[i])]
            text = f"{' + '.join(f'{n:g}' for n in each)} point{'' if each == [1] else 's'}"
            cell.source = POINTS.sub(rf"\g<1>{text}", cell.source, count=1)
        parts = f": {total - by_hand:g} by checks, {by_hand:g}"
        cell.source = CARD.sub(
            lambda card, parts=parts: f"{card[1]}{total:g}{parts if card[2] else ''}", cell.source
        )
    return notebook


def _cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        yield cell


def replace(text: str, what: str, by: str | None = None) -> str:
    """Replace each region of a text between the markers BEGIN `what` and END `what`.

    - by: what takes its place, indented as the marker; None: nothing.

    Raises Error where a marker is missing.
    """
    lines, inside = [], False
    for line in text.split("\n"):
        if f"BEGIN {what}" in line:
            if inside:
                raise Error(f"BEGIN {what} stands inside another: END {what} is missing in\n{text}")
            inside, indent = True, line[: len(line) - len(line.lstrip())]
            lines += [indent + stub for stub in by.split("\n")] if by else []
        elif f"END {what}" in line:
            if not inside:
                raise Error(f"BEGIN {what} is missing in\n{text}")
            inside = False
        elif not inside:
            lines.append(line)
    if inside:
        raise Error(f"END {what} is missing in\n{text}")
    return "\n".join(lines)


def checksum(cell: NotebookNode) -> str:
    """Compute the sum by which nbgrader knows whether a cell was changed."""
    marks = nbgrader(cell)
    locked = not marks["solution"] and (marks["grade"] or marks["locked"])
    parts = [cell.source, cell.cell_type, marks["grade"], marks["solution"], locked]
    parts.append(marks["grade_id"])
    if marks["grade"]:
        parts.append(float(marks["points"]))
    return hashlib.md5("".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def points_table(notebooks: dict[str, NotebookNode]) -> str:
    """Return all tasks with their points, as a table in Markdown."""
    lines = ["| task | points | check |", "|---|---|---|"]
    for name, notebook in notebooks.items():
        found, title = tasks(notebook), None
        lines.append(f"| **{name}** | **{sum(task.points for task in found):g}** | |")
        for task in found:
            shown = "" if task.title == title else task.title
            by_hand = ", by hand" if task.by_hand else ""
            lines.append(f"| {shown} | {task.points:g} | `{task.name}`{by_hand} |")
            title = task.title
    return "\n".join(lines) + "\n"


def stale(folder: Path) -> dict[Path, bytes]:
    """Find the files made from FOLDER/source that are not up to date, with what each should have.

    Raises Error where one of them cannot be read.
    """
    notebooks = {name: instructors(path) for name, path in sources(folder).items()}
    texts = {folder / "points.md": points_table(notebooks)}
    for name, notebook in notebooks.items():
        for kind, made in (("release", students(notebook)), ("solutions", solutions(notebook))):
            texts[folder / kind / name / f"{name}.ipynb"] = nbformat.writes(made) + "\n"
    made = {path: text.encode() for path, text in texts.items()}
    return {path: data for path, data in made.items() if _now(path) != data}


def _now(path: Path) -> bytes | None:
    """Return what is in a file, None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise Error(f"cannot read {path}, to write it: {e.strerror}. Move it away") from None


def make(folder: Path) -> list[Path]:
    """Write what is stale, and return the files written."""
    found = stale(folder)
    for path, data in found.items():
        files.write_bytes(path, data)
    return list(found)
