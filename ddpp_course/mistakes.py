"""The mistakes that checks recognise, each written once: as a change to the solution's text.

The file solutions/NAME.toml belongs to the assignment NAME. For each cell that students write it
has the solution, and then the mistakes:

    [whiten]                # grade_id of the cell
    solution = '''...'''    # what the instructor's notebook has there
    checks = {unwhiten = ["unwhiten-check"]}  # only where a place is not checked by PLACE-check

    [whiten.unwhiten.no_mean]  # cell, place in a check, name
    " + mean" = ""             # text of the solution, and what a student has instead

The name of a mistake is the key of its message, in the section NAME of messages.toml. What follows
a colon in it tells two mistakes with one message apart. A check compares a wrong answer with the
mistakes of its place, in order. A mistake with `says` is not run by checks, which see it by
themselves and say that message. It is here for the tests. `fails` names the checks that it fails,
if they are not the checks of its place, or maps each of them to a message. `words` are the words in
the message.

A submission that is graded cannot read these files. The grader sends their texts to its process
before the first line of the submission runs, and only the functions made of them stay there.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace

FOLDER = Path(__file__).with_name("solutions")
FAR = 10**6  # lines before a solution, so that its code equals nobody else's

given: dict[str, str] = {}  # the files' texts, where the files cannot be read
codes: set[CodeType] = set()  # of the functions with mistakes, which no submission may call


@dataclass(frozen=True)
class Row:
    """A mistake as a file has it."""

    cell: str
    place: str
    name: str
    change: dict[str, str]
    says: str  # key of the message
    run: bool  # by the checks, to recognise it
    fails: dict[str, str]  # check -> key of its message
    words: dict = field(default_factory=dict)

    def apply(self, solution: str) -> str:
        """Return the text of the solution with this mistake in it."""
        for old, new in self.change.items():
            if solution.count(old) != 1:
                raise ValueError(f"{old!r} occurs {solution.count(old)} times in {self.cell}")
            solution = solution.replace(old, new)
        return solution


def texts() -> dict[str, str]:
    """Read the texts of all files, by the name of their assignment."""
    return {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.toml")}


def solutions(name: str) -> dict[str, str]:
    """Read the text of each cell's solution."""
    return {cell: part["solution"].strip() for cell, part in _cells(name).items()}


def read(name: str) -> list[Row]:
    """Read all mistakes of an assignment, in their order."""
    return [m for cell, part in _cells(name).items() for m in _of_cell(cell, part)]


def ready(name: str) -> dict[str, list[tuple[str, SimpleNamespace]]]:
    """Return, for each place, the mistakes that checks run: message, and functions that have it.

    The functions are made here, and not when they are needed: a submission could watch that. The
    result is empty where the solutions are hidden, as in a submission's own copy of the checks.
    """
    try:
        setup = _file(name)["setup"]
    except OSError:
        return {}
    solved, made = solutions(name), {}
    for row in read(name):
        if row.run:
            functions = _execute(setup, row.apply(solved[row.cell]))
            made.setdefault(row.place, []).append((row.says, functions))
    return made


def _execute(setup: str, text: str) -> SimpleNamespace:
    """Run a text, and return what it defines."""
    space = {"__name__": __name__}
    exec(setup, space)
    tree = ast.increment_lineno(ast.parse(text), FAR)
    exec(compile(tree, "<mistake>", "exec"), space)
    functions = [value for value in space.values() if isinstance(value, FunctionType)]
    codes.update(f.__code__ for f in functions if f.__globals__ is space)
    return SimpleNamespace(**space)


def _file(name: str) -> dict:
    text = given.get(name) or (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _cells(name: str) -> dict[str, dict]:
    return {cell: part for cell, part in _file(name).items() if isinstance(part, dict)}


def _of_cell(cell: str, part: dict) -> Iterator[Row]:
    for place, mistakes in part.items():
        if place in ("solution", "checks"):
            continue
        checks = part.get("checks", {}).get(place, [f"{place}-check"])
        for name, values in mistakes.items():
            change = dict(values)
            run = "says" not in change
            says: str = change.pop("says", name.partition(":")[0])
            fails = change.pop("fails", checks)
            if not isinstance(fails, dict):
                fails = dict.fromkeys(fails, says)
            words = change.pop("words", {})
            yield Row(cell, place, name, change, says, run, fails, words)
