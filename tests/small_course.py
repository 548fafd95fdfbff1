"""Small courses, each graded in seconds, for the tests of the grader."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ddpp_course import copies

KERNEL = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python"},
}


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
