"""What a class hands in for assignment 1, to see how long grading takes: python tests/class_of.py 200 FOLDER."""

import sys
from itertools import cycle, islice
from pathlib import Path

import nbformat
from wrong_assignment1 import WRONG

ASSIGNMENTS = Path(__file__).parents[1] / "assignments"


def hand_in(students: int, folder: Path) -> None:
    """One notebook for each student: the solution, the untouched copy, and each wrong solution, in turn."""
    right = nbformat.read(ASSIGNMENTS / "solutions" / "assignment1" / "assignment1.ipynb", 4)
    untouched = nbformat.read(ASSIGNMENTS / "release" / "assignment1" / "assignment1.ipynb", 4)
    kinds = [right, untouched, *(wrong.apply(nbformat.from_dict(right)) for wrong in WRONG.values())]
    folder.mkdir(parents=True, exist_ok=True)
    for student, notebook in enumerate(islice(cycle(kinds), students), 1):
        nbformat.write(notebook, folder / f"student{student:03}.ipynb")


if __name__ == "__main__":
    hand_in(int(sys.argv[1]), Path(sys.argv[2]))
