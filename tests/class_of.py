"""How long a class takes to grade, with the wall and without: python tests/class_of.py STUDENTS
FOLDER ROUNDS.
"""

import os
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import nbformat
import wrong

from ddpp_course import grade

ASSIGNMENTS = Path(__file__).parents[1] / "assignments"


def hand_in(students: int, folder: Path) -> None:
    """One notebook for each student: the solution, the untouched copy, and each wrong solution, in
    turn.
    """
    right = nbformat.read(ASSIGNMENTS / "solutions" / "assignment1" / "assignment1.ipynb", 4)
    untouched = nbformat.read(ASSIGNMENTS / "release" / "assignment1" / "assignment1.ipynb", 4)
    kinds = [
        right,
        untouched,
        *(one.apply(nbformat.from_dict(right)) for one in wrong.of("assignment1").values()),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for student, notebook in enumerate(islice(cycle(kinds), students), 1):
        nbformat.write(notebook, folder / f"student{student:03}.ipynb")


def compare(folder: Path, out: Path, rounds: int) -> None:
    """Grade a class with the wall and without, in turn, and print how long each took."""
    took = {False: [], True: []}
    for number in range(rounds):
        for trust in (False, True):
            place, began = out / f"{number}-{'trusted' if trust else 'walled'}", time.monotonic()
            grade.grade_all(
                folder, ASSIGNMENTS, place, jobs=os.cpu_count(), trust=trust, say=lambda _: None
            )
            took[trust].append(time.monotonic() - began)
            print(f"{place}: {took[trust][-1]:.0f} s", flush=True)
    walled, trusted = (sum(took[trust]) for trust in (False, True))
    each = (walled - trusted) / rounds / len(list(folder.iterdir()))
    print(f"with the wall {walled / trusted:.2f} times as long, {each:+.2f} s for a submission")


if __name__ == "__main__":
    students, place, rounds = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    hand_in(students, place / "submissions")
    compare(place / "submissions", place / "grades", rounds)
