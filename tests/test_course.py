"""The assignments: what is handed out, that each mistake costs just its points and is named, and
the grader's calm.
"""

import ast
import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import psutil
import pytest
import torch
import wrong as wrong_solutions
from nbformat.v4 import new_code_cell, new_notebook, new_output
from small_course import best_wall, cell_of, make
from wrong import Wrong

from ddpp import cli
from ddpp.foundation.errors import Error
from ddpp.pruning import RULES
from ddpp_course import (
    copies,
    enter,
    folders,
    grade,
    instructor,
    judge,
    messages,
    mistakes,
    submissions,
    wall,
)
from ddpp_course.checks import Checks, Mistake, ask, ask_each, close, tensor
from ddpp_course.session import Limits, Session

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "assignments"
NAMES = sorted(copies.sources(COURSE))
WRONG = {name: wrong_solutions.of(name) for name in NAMES}
WALL = best_wall()
TRUST = WALL == wall.NONE  # what must not be confined can still be tested
# Landlock is faster, and says less
STARTS = "cannot start other programs" if WALL.alone else "stopped: "
HIDDEN = "No such file" if WALL.alone else "Permission denied"
LONG = 25  # characters of a line that is somebody's own


def read(kind, name):
    return copies.read(COURSE / kind / name / f"{name}.ipynb")


# What is handed out


def test_the_students_copies_solutions_and_points_are_up_to_date():
    assert [str(path) for path in copies.stale(COURSE)] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_solution_and_no_hidden_check_is_handed_out(name):
    source, handed_out = read("source", name), read("release", name)
    given = "\n".join(cell.source for cell in handed_out.cells)
    secret, open_ = [], []
    for cell in source.cells:
        inside = copies.nbgrader(cell).get("solution") and cell.cell_type == "markdown"
        for line in cell.source.splitlines():
            if "### BEGIN" in line or "### END" in line:
                inside = "BEGIN" in line
            else:
                (secret if inside else open_).append(line.strip())
    secret = {line for line in secret if len(line) >= LONG} - set(open_)
    assert len(secret) > 10
    assert [line for line in secret if line in given] == []
    assert "### BEGIN" not in given
    assert all(not cell.get("outputs") for cell in handed_out.cells)


@pytest.mark.parametrize("name", NAMES)
def test_no_assignment_asks_colab_for_a_gpu(name):
    for kind in ("source", "release", "solutions"):
        metadata = read(kind, name).metadata
        assert "accelerator" not in metadata
        assert "gpuType" not in metadata.get("colab", {})


@pytest.mark.parametrize("name", NAMES)
def test_solutions_have_no_hidden_check_either(name):
    solved = "\n".join(cell.source for cell in read("solutions", name).cells)
    assert "### " not in "\n".join(
        line for line in solved.splitlines() if "HIDDEN" in line or "SOLUTION" in line
    )
    for cell in read("source", name).cells:
        hidden = cell.source.partition("### BEGIN HIDDEN TESTS")[2].splitlines()[1:-1]
        assert not hidden or "\n".join(hidden) not in solved


@pytest.mark.parametrize("kind", ["source", "release", "solutions"])
@pytest.mark.parametrize("name", NAMES)
def test_no_code_cell_is_too_wide(kind, name):
    code = [cell.source for cell in read(kind, name).cells if cell.cell_type == "code"]
    assert [line for source in code for line in source.splitlines() if len(line) > 79] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_assignment_gives_twenty_points(name):
    assert sum(task.points for task in copies.tasks(read("source", name))) == 20


def test_a_marker_that_is_not_closed_is_named():
    with pytest.raises(Error, match="END SOLUTION is missing"):
        copies.replace("### BEGIN SOLUTION\nx = 1", copies.SOLUTION, "stub")
    with pytest.raises(Error, match="stands inside another"):
        copies.replace("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", copies.SOLUTION)
    with pytest.raises(Error, match="BEGIN SOLUTION is missing"):
        copies.replace("### BEGIN SOLUTON\nx = 1\n### END SOLUTION", copies.SOLUTION)


@pytest.mark.parametrize(
    ("cell", "source", "marker"),
    [
        ("setup", "### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "### BEGIN SOLUTION"),
        ("setup", "x = 0\n# BEGIN HIDDEN TESTS\nx = 1", "# BEGIN HIDDEN TESTS"),
        ("double-check", "x\n### BEGIN HIDEN TESTS\nx = 1", "### BEGIN HIDEN TESTS"),
    ],
)
def test_a_marker_without_effect_is_named_before_it_hands_out_what_it_hides(
    course, tmp_path, cell, source, marker
):
    path = tmp_path / "source" / "numbers" / "numbers.ipynb"
    shutil.copytree(course / "source", tmp_path / "source")
    notebook = copies.read(path)
    cell_of(notebook, cell).source = source
    number = notebook.cells.index(cell_of(notebook, cell)) + 1
    nbformat.write(notebook, path)
    words = f"cell {number} of {path} would be handed out with the marker '{marker}'"
    for reads in (copies.make, instructor.assignments):
        with pytest.raises(Error, match=re.escape(words)):
            reads(tmp_path)
    assert [*everything(tmp_path)] == [path]


# Each mistake costs its points, and is named


@lru_cache(1)
def solved(name):
    """The assignment, its solution's cells by name, what they and the setup leave, and the rules.
    Studies are shortened.
    """
    matplotlib.use("Agg")
    assignment = instructor.Assignment.read(copies.sources(COURSE)[name])
    cells = {
        cell.id: shorten(cell.source)
        for cell in copies.solutions(read("source", name)).cells
        if cell.cell_type == "code"
        and cell.id != "colab-install"
        and cell.source not in assignment.pictures
    }
    space = {"__name__": "__main__"}
    for code in cells.values():
        exec(code, space)
    judge.prepare(shorten(assignment.setup))
    return assignment, cells, space, dict(judge.space), dict(RULES)


def shorten(code):
    return (
        code.replace("steps=15", "steps=2")
        .replace("epochs=30", "epochs=3")
        .replace("[0, 1, 2, 3, 4]", "[0, 1, 2]")
    )


def judged(name, wrong: Wrong):
    """What each check says of a solution with this mistake: task -> (passed, says)."""
    assignment, cells, space, prepared, rules = solved(name)
    source = wrong.apply(copies.solutions(read("source", name)))
    (code,) = [
        cell.source for cell in source.cells if copies.nbgrader(cell).get("grade_id") == wrong.cell
    ]
    again, checks = [shorten(code)], dict(assignment.checks)
    if "study-check" in wrong.fails and wrong.cell != "study":
        again += [cells["register"], cells["study"]]
    # the student's study is made by the wrong function, and agrees with it
    elif wrong.cell == "run-once":
        del checks["study-check"]
    changed = set.union(
        *(found for code in (again[0], again[-1]) for found in submissions.names(code))
    )
    space = dict(space)
    RULES.update(rules)  # the fixture `tables` takes them away again
    judge.space.clear()
    judge.space.update(prepared)
    for code in again:
        with contextlib.suppress(Exception):  # as in the student's notebook
            exec(code, space)
    found = {}
    for task, check in checks.items():
        functions, values = assignment.asks_for(check)
        if changed & {*functions, *values}:  # others cannot have changed
            answer = judge.judge(shorten(check), functions, values, space)
            found[task] = answer["passed"], answer["says"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_mistakes(name):
    assert len(WRONG[name]) >= 6


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name in NAMES for mistake in WRONG[name]]
)
def test_a_mistake_loses_its_points_and_is_named(name, mistake):
    wrong = WRONG[name][mistake]
    found = judged(name, wrong)
    assert {task for task, (passed, _) in found.items() if not passed} == wrong.fails.keys(), found
    for task, words in wrong.fails.items():
        assert re.search(words, found[task][1])


@pytest.mark.parametrize("name", NAMES)
def test_the_checkers_solutions_are_those_of_the_assignment(name):
    cells = copies.solutions(read("source", name)).cells
    code = [cell for cell in cells if cell.cell_type == "code" and copies.nbgrader(cell)]
    solved = {copies.nbgrader(c)["grade_id"]: c for c in code if copies.nbgrader(c)["solution"]}
    assert mistakes.solutions(name) == {cell: c.source for cell, c in solved.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_place_of_mistakes_is_in_one_cell_and_compared_in_a_check(name):
    rows = mistakes.read(name)
    assert len({(row.cell, row.place) for row in rows}) == len({row.place for row in rows})
    assert len({(row.place, row.name) for row in rows}) == len(rows)
    code = (ROOT / "ddpp_course" / f"{name}.py").read_text()
    assert all(f'"{row.place}"' in code for row in rows if row.run)


def test_a_change_that_does_not_fit_the_solution_is_an_error():
    row = mistakes.Row("cell", "place", "name", {"x": "y"}, "name", True, {})
    with pytest.raises(ValueError, match="'x' occurs 2 times in cell"):
        row.apply("x + x")


def test_every_message_is_said_and_every_key_has_one():
    """Keys are text in the code, or belong to mistakes; an assignment's are in its own module."""
    trees = {p.stem: ast.parse(p.read_text()) for p in (ROOT / "ddpp_course").glob("*.py")}
    for section, said in messages.texts().items():
        trees_of = [trees[section]] if section in NAMES else [*trees.values()]
        nodes = [node for tree in trees_of for node in ast.walk(tree)]
        used = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        if section in NAMES:
            rows = mistakes.read(section)
            used |= {row.says for row in rows if row.run}
            keys = {key for row in rows for key in row.fails.values()}
            assert {key for key in keys if not key.startswith("any.")} <= said.keys()
        assert said.keys() <= used, section
        assert _said(nodes, section) <= said.keys()


def _said(nodes, section):
    """The keys in calls of an assignment's `here`, or in those of `say` with another section."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    named = [(getattr(c.func, "attr", getattr(c.func, "id", "")), c.args) for c in calls]
    texts = [[getattr(x, "value", None) for x in args] for name, args in named if name == "say"]
    if section not in NAMES:
        return {text[1] for text in texts if text[0] == section and text[1]}
    others = [args for name, args in named if name in ("wrong", "good") and args]
    return {x.value for args in others for x in args[:1] if isinstance(x, ast.Constant)} | {
        text[0] for text in texts if text and isinstance(text[0], str)
    }


# From the file to the report, in real kernels


def one_in_each_cell(name):
    """For each cell of an assignment the first mistake that checks recognise."""
    rows = [row for row in reversed(mistakes.read(name)) if row.run]
    return {row.cell: row for row in rows}.values()


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Every instructor's version, every copy as handed out, and every solution with a mistake in
    each cell, graded as one class.
    """
    folder, out = tmp_path_factory.mktemp("class"), tmp_path_factory.mktemp("grades")
    for kind in ("source", "release", "wrong"):
        (folder / kind).mkdir()
    for name in NAMES:
        for kind in ("source", "release"):
            shutil.copy(COURSE / kind / name / f"{name}.ipynb", folder / kind)
        notebook = read("source", name)
        for row in one_in_each_cell(name):
            Wrong(row.cell, row.change, {}).apply(notebook)
        nbformat.write(notebook, folder / "wrong" / f"{name}.ipynb")
    reports = grade.grade_all(folder, COURSE, out, jobs=2, trust=TRUST)
    return {report.submission: report for report in reports}, out


@pytest.mark.parametrize("name", NAMES)
def test_the_instructors_version_gets_full_points(graded, name):
    report = graded[0][f"source/{name}"]
    assert (report.refused, report.notes) == ("", [])
    assert report.points == report.of, report.text()
    assert report.points + report.by_hand == 20


@pytest.mark.parametrize("name", NAMES)
def test_the_untouched_copy_gets_nothing_and_is_told_what_to_do(graded, name):
    report = graded[0][f"release/{name}"]
    assert (report.refused, report.points, report.notes) == ("", 0, [])
    for outcome in report.outcomes:
        if outcome.points is None:
            assert outcome.says == "nothing was written"
        else:
            assert (
                "not written yet" in outcome.says
                or "is not there" in outcome.says
                or "fill" in outcome.says
            ), outcome
    assert "What to do next" in report.text()


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_recognised_behind_the_wall_where_the_solutions_cannot_be_read(graded, name):
    outcomes = {outcome.task: outcome for outcome in graded[0][f"wrong/{name}"].outcomes}
    expected = [
        (row, task, key) for row in one_in_each_cell(name) for task, key in row.fails.items()
    ]
    assert len(expected) >= 3
    for row, task, key in expected:
        assert outcomes[task].points == 0
        assert re.search(wrong_solutions.pattern(name, key, row.words), outcomes[task].says)


def test_the_reports_are_files_for_people_and_for_programs(graded):
    reports, out = graded
    rows = list(csv.DictReader((out / "grades.csv").read_text().splitlines()))
    assert [row["submission"] for row in rows] == list(reports)
    for row in rows:
        report = reports[row["submission"]]
        kept = json.loads((out / f"{report.submission}.json").read_text())
        assert float(row["points"]) == kept["points"] == report.points
        assert (
            f"**{report.points:g} of {report.of:g} points**"
            in (out / f"{report.submission}.md").read_text()
        )


# Submissions that students really hand in: a small course, so that each takes seconds


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    double = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
    check = (
        "if ask(double, 3) != 6:\n    raise Mistake('3 does not become 6')\n"
        "### BEGIN HIDDEN TESTS\nassert ask(double, 4) == 8, 'learned by heart'\n### END HIDDEN "
        "TESTS"
    )
    half = "def half(x):\n    ### BEGIN SOLUTION\n    return x / 2\n    ### END SOLUTION"
    other = "if ask(half, 6) != 3:\n    raise Mistake('6 does not become 3')"
    setup = "import ddpp\nfrom ddpp_course.checks import Mistake, ask"
    tasks = [("double", 2, double, check), ("half", 1, half, other)]
    return make(tmp_path_factory.mktemp("course"), "numbers", setup, tasks)


def added(code, at=2):
    return lambda notebook, course: notebook.cells.insert(at, new_code_cell(code))


def deleted(notebook, course):
    notebook.cells.remove(cell_of(notebook, "double"))


def doubled(notebook, course):
    notebook.cells.insert(
        6, cell_of(copies.read(course / "release" / "numbers" / "numbers.ipynb"), "double")
    )


def edited(notebook, course):
    cell_of(notebook, "double").source = "def double(x):\n    return 7"
    cell_of(notebook, "double-check").source = "pass"


def misspelled(notebook, course):
    cell_of(notebook, "double").source = "def double(x)\n    return 2 * x"


def stored(notebook, course):
    cell_of(notebook, "double").outputs = [
        new_output("stream", name="stdout", text="y" * 100_000_000)
    ]


def bare(notebook, course):
    notebook.metadata = {}
    for cell in notebook.cells:
        cell.metadata = {}


def heart(notebook, course):
    cell_of(notebook, "double").source = "def double(x):\n    return 6"


def shuffled(notebook, course):
    notebook.cells.append(notebook.cells.pop(3))


def reading(notebook, course):
    cell_of(
        notebook, "double"
    ).source = f"print(open('{course}/source/numbers/numbers.ipynb').read())"


def overwriting(notebook, course):
    code = (
        "import ddpp_course.checks as c, ddpp_course.judge as j\nc.ask = lambda *_, **__: 6\n"
        "j._run = lambda *_: (True, '')\nj.judge = lambda *_: {'passed': True, 'says': ''}\n"
        "def ask(*_): return 6\ndef double(x): return 7"
    )
    cell_of(notebook, "double").source = code


# name -> what is done to the solved notebook, its points of 3, and words of its report
HANDED_IN = {
    "solved": (lambda notebook, course: None, 3, "3 of 3"),
    "deleted": (deleted, 1, "`double` is not there"),
    "doubled": (doubled, 3, "3 of 3"),
    "edited check": (edited, 1, "3 does not become 6"),
    "by heart": (heart, 1, "learned by heart"),
    "other order": (shuffled, 3, "3 of 3"),
    "metadata lost": (bare, 3, "3 of 3"),
    "syntax error": (misspelled, 1, "SyntaxError"),
    "endless loop": (added("while True: pass"), 3, "is there a loop without end?"),
    "stubborn loop": (
        added("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"),
        3,
        "could not be interrupted",
    ),
    "fifty gigabytes": (
        added("x = bytearray(50 * 10**9)\nfor i in range(0, len(x), 4096): x[i] = 1"),
        3,
        "MemoryError",
    ),
    "long output": (added("for _ in range(100): print('x' * 10**6)"), 3, "3 of 3"),
    "output stored": (stored, 3, "3 of 3"),
    "overwritten checks": (overwriting, 1, "3 does not become 6"),
    "reads the solution": (reading, 1, HIDDEN),
    "looks at others": (added("import os; os.listdir('{folder}')"), 3, HIDDEN),
    "starts programs": (added("!ls"), 3, STARTS),
    "writes elsewhere": (added("open('{folder}/mine', 'w')"), 3, HIDDEN),
    "kills the grader": (added("import os; os.kill(os.getppid(), 9)"), 3, "cannot send signals"),
    "leaves": (added("import os; os._exit(0)"), 3, "it ended its process"),
    "breaks imports": (added("import sys\nsys.modules['ddpp'] = None"), 3, "3 of 3"),
    "says exit": (added("exit()"), 3, "3 of 3"),
    "asks": (added("input('your name?')"), 3, "EOFError"),
}
REACHING = ("reads the solution", "looks at others", "writes elsewhere")
if TRUST:  # nothing would stop these
    HANDED_IN = {name: case for name, case in HANDED_IN.items() if name not in REACHING}
REFUSED = {
    "essay.ipynb": b"Dear professor,",
    "empty.ipynb": b"",
    "scan.pdf": b"%PDF-1.4",
    "bytes.ipynb": b"\x00\xff" * 1000,
    "deep.ipynb": b"[" * 100_000,
    "list.ipynb": b"[1, 2]",
    "odd.ipynb": json.dumps({"nbformat": 4, "metadata": [], "cells": [{"source": 1}]}).encode(),
    "other.ipynb": nbformat.writes(new_notebook()).encode(),
}


@pytest.fixture(scope="module")
def handed_in(course, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("handed in"), tmp_path_factory.mktemp("reports")
    for name, (change, *_) in HANDED_IN.items():
        notebook = copies.read(course / "solutions" / "numbers" / "numbers.ipynb")
        change(notebook, course)
        # unchecked, as cells were doubled
        text = json.dumps(notebook).replace("{folder}", str(folder))
        (folder / f"{name}.ipynb").write_text(text)
    for name, content in REFUSED.items():
        (folder / name).write_bytes(content)
    reports = grade.grade_all(folder, course, out, limits=Limits(seconds=8), jobs=2, trust=TRUST)
    return {report.submission: report for report in reports}, folder, out


@pytest.mark.parametrize("name", HANDED_IN)
def test_what_students_hand_in_is_graded(handed_in, name):
    report = handed_in[0][name]
    _, points, words = HANDED_IN[name]
    assert report.refused == ""
    assert report.points == points, report.text()
    assert words in report.text()
    assert "Traceback" not in report.text()


def test_a_submission_that_uses_up_its_time_gets_nothing(course, tmp_path):
    notebook = copies.read(course / "solutions" / "numbers" / "numbers.ipynb")
    notebook.cells += [new_code_cell("while True: pass") for _ in range(6)]
    nbformat.write(notebook, tmp_path / "late.ipynb")
    report = grade.grade(tmp_path / "late.ipynb", course, limits=Limits(seconds=1), trust=TRUST)
    assert (report.refused, report.points) == ("", 0), report.text()
    assert "stopped after 5 s in all" in report.text()
    assert "Traceback" not in report.text()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_graded_is_refused_with_a_sentence(handed_in, name):
    report = handed_in[0][Path(name).stem]
    assert "hand in" in report.refused
    assert report.points == 0


def test_no_kernel_outlives_its_grading(handed_in):
    ends = time.monotonic() + 5  # that another test has just ended may still be there
    while (left := kernels()) and time.monotonic() < ends:
        time.sleep(0.1)
    assert left == []


def kernels(program=enter.__file__):
    """The processes of this program that this one started, or whose parent does not grade."""
    mine, found = psutil.Process().children(recursive=True), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended, or is somebody else's
            if program not in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            parent = process.parent()  # of an orphan the first process, or the user's
            above = parent.cmdline() if parent else []
            graded = program in above or "python" in "".join(above[:1])
            found += [process] if process in mine or not graded else []
    return found


def test_a_kernel_that_nobody_grades_with_is_found(tmp_path):
    program = str(tmp_path / "enter.py")
    command = [sys.executable, "-c", "import time; time.sleep(60)", program]
    start = f"{shlex.join(command)} >/dev/null 2>&1 & echo $!"
    started = subprocess.run(start, shell=True, check=True, capture_output=True, text=True)
    orphan = psutil.Process(int(started.stdout))
    with subprocess.Popen(command) as child:
        found = kernels(program)
        child.kill()
        orphan.kill()
    assert {process.pid for process in found} == {orphan.pid, child.pid}


def test_a_class_that_is_graded_is_not_graded_again_but_for_what_is_new(handed_in, course):
    reports, folder, out = handed_in
    (folder / "solved.ipynb").write_text((folder / "by heart.ipynb").read_text())
    (out / "doubled.json").write_text("damaged")
    said = []
    again = grade.grade_all(
        folder, course, out, limits=Limits(seconds=8), jobs=2, say=said.append, trust=TRUST
    )
    assert said[1] == f"{len(reports) - 2 - len(REFUSED)} of {len(reports)} are graded already"
    points = {report.submission: report.points for report in again}
    assert (points["solved"], points["doubled"], points["other order"]) == (1, 3, 3)


def test_ctrl_c_stops_a_class_at_once_and_the_next_call_goes_on(course, tmp_path):
    folder, out = tmp_path / "class", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        shutil.copy(course / "solutions" / "numbers" / "numbers.ipynb", folder / f"{i}.ipynb")
    command = [
        sys.executable,
        "-m",
        "ddpp",
        "grade",
        str(folder),
        "--assignments",
        str(course),
        "--out",
        str(out),
    ]
    command += ["--jobs", "1", *(["--trust-submissions"] if TRUST else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (out / "0.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # the second is on its way
    process.send_signal(signal.SIGINT)
    assert "to resume" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert not (out / "2.json").exists()
    said = []
    reports = grade.grade_all(
        folder, course, out, jobs=2, say=said.append, limits=Limits(memory=4.0), trust=TRUST
    )
    assert [report.points for report in reports] == [3, 3, 3]
    assert "graded already" in said[1]


def test_the_command_says_what_is_missing(course, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = course / "release" / "numbers" / "numbers.ipynb"
    trust = ["--trust-submissions"] if TRUST else []
    assert cli.main(["grade", str(path), "--assignments", str(course), *trust]) == 3
    assert "**0 of 3 points**" in capsys.readouterr().out
    assert cli.main(["grade", "nothing.ipynb", "--assignments", str(course)]) == 1
    assert "there is no nothing.ipynb" in capsys.readouterr().err
    assert cli.main(["grade", str(path)]) == 1
    assert "no assignments in assignments" in capsys.readouterr().err
    assert cli.main(["assign", str(course)]) == 0
    assert "up to date" in capsys.readouterr().out


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--assignment", "number", "unknown --assignment 'number': did you mean 'numbers'?"),
        ("--assignment", "", "a word of this command is empty text"),
        ("--jobs", "-1", "--jobs -1: at least 1"),
        ("--jobs", "0", "--jobs 0: at least 1"),
        ("--seconds", "-5", "--seconds -5: a number above 0"),
        ("--seconds", "0", "--seconds 0: a number above 0"),
        ("--seconds", "nan", "--seconds nan: a number above 0"),
        ("--seconds", "inf", "--seconds inf: a number above 0"),
        ("--memory", "-1", "--memory -1: GB for a submission, from 1"),
        ("--memory", "0", "--memory 0: GB for a submission, from 1"),
        ("--memory", "0.9", "--memory 0.9: GB for a submission, from 1 to 1,000,000"),
        ("--memory", "1e7", "--memory 1e+07: GB for a submission, from 1"),
        ("--memory", "nan", "--memory nan: GB for a submission, from 1"),
        ("--memory", "inf", "--memory inf: GB for a submission, from 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_before_anything_is_written(
    option, value, says, course, tmp_path, capsys
):
    folder, out = tmp_path / "class", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (out / "grades.csv").write_text("of last week")
    (folder / "ann.txt").write_text("Dear professor,")
    before = everything(tmp_path)
    command = ["grade", str(folder), "--assignments", str(course), "--out", str(out)]
    assert cli.main([*command, f"{option}={value}"]) == 1
    assert says in capsys.readouterr().err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("out", [".", "class", "class/../class"])
def test_grades_around_the_submissions_are_refused(course, tmp_path, capsys, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "class").mkdir()
    shutil.copy(course / "release" / "numbers" / "numbers.ipynb", tmp_path / "class")
    before = everything(tmp_path)
    assert cli.main(["grade", "class", "--assignments", str(course), "--out", out]) == 1
    assert f"choose another --out than {Path(out)}: it contains" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_two_cells_with_one_grade_id_are_named(course, tmp_path):
    path = tmp_path / "source" / "numbers" / "numbers.ipynb"
    shutil.copytree(course / "source", tmp_path / "source")
    notebook = copies.read(path)
    check = cell_of(notebook, "double-check")
    notebook.cells.append(new_code_cell("ask(double, 1)", metadata=check.metadata))
    nbformat.write(notebook, path)
    words = (
        "two cells of .*numbers.ipynb have the grade_id 'double-check': give one of them another"
    )
    with pytest.raises(Error, match=words):
        copies.make(tmp_path)
    assert [*everything(tmp_path)] == [path]
    with pytest.raises(Error, match=words):
        instructor.assignments(tmp_path)


@pytest.mark.parametrize(
    ("cell", "changes", "says"),
    [
        ("double", {"grade_id": 3}, "has no grade_id, or one that is no text"),
        ("double", {"grade_id": ""}, "has no grade_id"),
        ("double", {"solution": "yes"}, "('double') has the solution 'yes', not true or false"),
        ("setup", {"locked": None}, "('setup') has the locked None, not true or false"),
        ("double-check", {"points": "2"}, "('double-check') has the points '2', which are no"),
        ("double-check", {"points": None}, "has the points None"),
        ("double-check", {"cell_type": "markdown"}, "is a text that is graded, but nobody writes"),
        ("double-check", {"cell_type": "raw"}, "neither code nor Markdown"),
        ("double", {"source": "x = '\ud83d'"}, "is not a Jupyter notebook"),
    ],
)
def test_metadata_that_make_no_sense_are_named_with_their_cell(
    course, tmp_path, cell, changes, says, capsys
):
    path = tmp_path / "source" / "numbers" / "numbers.ipynb"
    shutil.copytree(course / "source", tmp_path / "source")
    notebook = json.loads(path.read_text())
    (changed,) = [
        c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == cell
    ]
    if changes.get("cell_type"):
        del changed["outputs"], changed["execution_count"]
    own = changed if {"cell_type", "source"} & changes.keys() else changed["metadata"]["nbgrader"]
    own.update(changes)
    path.write_text(json.dumps(notebook))
    assert cli.main(["assign", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert says in said and str(path) in said
    assert [*everything(tmp_path)] == [path]


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"seconds": 0}, "the seconds 0: write a number above 0"),
        ({"seconds": -1}, "the seconds -1"),
        ({"seconds": float("inf")}, "the seconds inf"),
        ({"seconds": float("nan")}, "the seconds nan"),
        ({"seconds": "300"}, "the seconds '300'"),
        ({"seconds": True}, "the seconds True"),
        ({"seconds": None}, "the seconds None"),
        (None, "the ddpp None: write an object"),
        ("numbers", "the ddpp 'numbers'"),
    ],
)
def test_a_limit_in_the_metadata_that_makes_no_sense_is_named(
    course, tmp_path, own, says, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "source" / "numbers" / "numbers.ipynb"
    shutil.copytree(course / "source", tmp_path / "source")
    notebook = json.loads(path.read_text())
    notebook["metadata"]["ddpp"] = own
    path.write_text(json.dumps(notebook))
    (tmp_path / "in").mkdir()
    before = everything(tmp_path)
    assert cli.main(["grade", "in", "--assignments", "."]) == 1
    said = capsys.readouterr().err
    assert says in said and "the metadata of source/numbers/numbers.ipynb have" in said
    assert everything(tmp_path) == before


def test_assign_says_what_stands_in_its_way(course, tmp_path, capsys, monkeypatch):
    shutil.copytree(course / "source", tmp_path / "source")
    (tmp_path / "release").write_text("mine")
    assert cli.main(["assign", str(tmp_path)]) == 1
    assert "release/numbers/numbers.ipynb, to write it: Not a dir" in capsys.readouterr().err
    (tmp_path / "release").unlink()
    (tmp_path / "points.md").write_bytes(b"\xff")
    assert cli.main(["assign", str(tmp_path)]) == 0
    monkeypatch.delattr("ddpp_course.copies")
    monkeypatch.delitem(sys.modules, "ddpp_course.copies")
    monkeypatch.setitem(sys.modules, "nbformat", None)
    assert cli.main(["assign", str(tmp_path)]) == 1
    assert "needs the package nbformat: pip install 'ddpp[course]'" in capsys.readouterr().err


def test_a_limit_of_the_system_that_is_lower_stays():
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(enter.__file__).parent)!r})
import enter
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
enter.limit(4 * 10**9, False)
print(resource.getrlimit(resource.RLIMIT_FSIZE))
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1000000, 1000000)\n", done.stderr


# What a right solution may use


@pytest.fixture
def asked():
    """A function that says what a check of `double` finds, where the submission has this cell."""
    session = Session(Limits(seconds=60), WALL)
    setup = "import torch\nfrom ddpp_course.checks import Mistake, ask"

    def asks(cell, value="ask(double, 3)"):
        assert session.run(cell, 60).error == ""
        check = f"if {value} != 6:\n    raise Mistake('3 does not become 6')"
        answer = session.check(check, ["double"], [], 60)
        return answer.passed, answer.error or answer.says

    try:
        assert session.setup(setup, 60).error == ""
        assert session.run(setup, 60).error == ""
        yield asks
    finally:
        session.close()


def test_a_right_function_may_use_the_optimizers_of_torch(asked):
    step = (
        "def double(x):\n    p = torch.zeros(1, requires_grad=True)\n"
        "    optimizer = torch.optim.SGD([p], 2 * x)\n    p.sum().backward()\n"
        "    optimizer.step()\n    return -p.item()"
    )
    assert asked(step) == (True, "")


def test_a_right_function_may_use_the_gradients_of_torch_func(asked):
    slope = (
        "def double(x):\n    return torch.func.grad(torch.square)(torch.tensor(float(x))).item()"
    )
    assert asked(slope) == (True, "")


def test_a_right_function_may_log_what_it_does(asked):
    logs = "import logging\ndef double(x):\n    logging.warning('%s', x)\n    return 2 * x"
    assert asked(logs) == (True, "")


@pytest.mark.parametrize("decorator", ["no_grad", "inference_mode"])
def test_a_right_function_may_be_decorated(asked, decorator):
    function = "def double(x):\n    return (2 * torch.tensor(float(x))).item()"
    assert asked(f"@torch.{decorator}()\n{function}") == (True, "")


def test_a_switch_to_find_errors_does_not_count_as_one(asked):
    slope = (
        "torch.autograd.set_detect_anomaly(True)\ndef double(x):\n"
        "    p = torch.tensor(float(x), requires_grad=True)\n    (p * p).backward()\n"
        "    return p.grad.item()"
    )
    assert asked(slope) == (True, "")


# What checks say of anything


def test_what_can_go_wrong_in_any_task_is_said_in_words():
    def unwritten(x):
        raise NotImplementedError

    def stops(x):
        y = 1
        return y / 0

    def changes(x):
        x += 1
        return x

    def switches(x):
        x.requires_grad_()
        return x.detach().clone()

    for function, words in (
        (unwritten, "not written yet"),
        (stops, "in its line 3 with ZeroDivisionError"),
        (changes, "changes one of its arguments in place"),
        (lambda x: None, "returns nothing"),
        (3, "a function was expected here, not 3"),
    ):
        with pytest.raises(Mistake, match=words):
            ask(function, torch.ones(2))
    for value, words in (
        (1.0, "a tensor, not 1.0"),
        (torch.ones(3), r"shape \(2,\)"),
        (torch.tensor([1, torch.nan]), "NaN"),
    ):
        with pytest.raises(Mistake, match=words):
            tensor(value, (2,), "f")


def test_many_answers_are_those_of_single_questions():
    buffer = torch.zeros(2, requires_grad=True)

    def fills(x):
        with torch.no_grad():
            return [buffer.copy_(x), 7]

    calls = [(torch.full((2,), float(i)),) for i in range(3)]
    answers = ask_each(fills, calls)
    for (filled, number), (x,) in zip(answers, calls, strict=True):
        assert close(filled, x) and number == 7 and not filled.requires_grad

    def stops(i):
        return 1 / (2 - i)

    with pytest.raises(Mistake, match=r"line 2 with ZeroDivisionError.*called with 2\)"):
        ask_each(stops, [(i,) for i in range(5)])
    with pytest.raises(Mistake, match="changes one of its arguments in place"):
        ask_each(lambda x: x.add_(x), calls)
    with pytest.raises(Mistake, match="returns nothing"):
        ask_each(lambda i: i or None, [(1,), (0,), (2,)])


def test_an_answer_is_compared_with_those_of_the_solution_with_mistakes():
    here, images, labels = Checks("assignment1"), torch.eye(5), torch.tensor([1, 1, 2, 3, 4])
    words = {"hits": 4, "n": 5, "percent": 80.0}

    def compare(value, batch):
        run = lambda s: s.accuracy(torch.nn.Identity(), images, labels, batch)
        return here.compare(
            "accuracy", value, 80.0, run, "accuracy_otherwise", **words, found=value
        )

    assert compare(80.0, 2) is None
    for value, batch, says in (
        (0.8, 2, "share between 0 and 1"),
        (20.0, 2, "share of errors"),
        (0.7, 2, "4 of 5 images .* you have 0.70"),
        (0.8, "two", "4 of 5 images"),  # with this batch every mistake stops with an error
    ):
        with pytest.raises(Mistake, match=says):
            compare(value, batch)


def test_what_an_error_says_is_cut_short():
    def tells(x):
        raise type("E" * 10**6, (Exception,), {})("x" * 50_000_000)

    def cannot_tell(x):
        raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})

    for function, words in ((tells, "stopped in its line 2 with EEE"), (cannot_tell, "with Odd")):
        with pytest.raises(Mistake, match=words) as caught:
            ask(function, 1)
        assert len(str(caught.value)) < 500


def test_an_answer_of_ddpp_does_not_count():
    from ddpp import keep_mask, pruning

    with pytest.raises(Mistake, match="the task is to write it yourself"):
        ask(lambda s, t: keep_mask(s, t, 0.1), torch.ones(2), torch.ones(2), forbid=(pruning,))


def test_a_check_that_lets_anything_pass_gives_nothing():
    judge.prepare("x = 1")
    answer = judge.judge("assert True", ["f"], [], {"f": abs})
    assert answer == {
        "passed": False,
        "says": "this notebook changed the checks: leave them as they are",
    }


def test_limits_are_part_of_what_a_report_is_worth(course):
    assignment = instructor.assignments(course)["numbers"]
    path = course / "source" / "numbers" / "numbers.ipynb"
    assert grade.digests(path, assignment, Limits(8)) != grade.digests(path, assignment, Limits(9))


# What a submission may try while it is asked

NAMED = (  # code that claims to be torch's
    "import importlib._bootstrap_external as load, marshal, torch\n"
    "    name = torch.__file__.encode()\n"
    "    data = marshal.dumps(compile('1', 'x' * len(name), 'exec'))\n"
    "    data = data.replace(b'x' * len(name), name)\n    "
)
LOOKS = {
    "by IPython": "from IPython.utils.frame import extract_module_locals as f\n    return f(1)",
    "by what calls anything": (
        "from torch.utils import _pytree\n    import sys\n    return _pytree.tree_map("
        "sys._getframe, 2)"
    ),
    "by code with another name": f"{NAMED}return marshal.loads(data)",
    "by importlib": f"{NAMED}return load._compile_bytecode(data, bytecode_path=torch.__file__)",
    "by a compiler that passes names on": (
        "import codeop, torch\n    return codeop.Compile()('x = 1', torch.__file__, 'exec')"
    ),
    "by marshal's files": "import io, marshal\n    return marshal.load(io.BytesIO(b'N'))",
}


def test_no_way_to_the_frames_of_a_check_is_open(asked):
    for name, code in LOOKS.items():
        passed, says = asked(f"def double(x):\n    {code}")
        assert not passed, name
        assert "cannot look into" in says, (name, says)
    late = "import collections, plistlib, tabnanny\n    return 2 * collections.namedtuple('P', 'x')"
    assert asked(f"def double(x):\n    {late}(x).x") == (True, "")


def test_a_kernel_or_a_hook_of_torch_that_was_replaced_gives_nothing(asked):
    hook = "torch.nn.modules.module.register_module_forward_hook(lambda *_: None)"
    assert asked(f"{hook}\ndef double(x):\n    return 2 * x") == (True, "")  # it was removed
    assert "hooks of all modules" in asked(f"def double(x):\n    {hook}\n    return 2 * x")[1]
    passed, says = asked(
        "library = torch.library.Library('aten', 'IMPL')\n"
        "library.impl('le.Tensor', lambda a, b: True, 'CPU')\ndef double(x):\n    return 2 * x"
    )
    assert (passed, says[:17]) == (False, "`aten::le.Tensor`")


def test_a_number_that_is_computed_when_it_is_compared_is_none(asked):
    for base in ("", "(torch.nn.Module)"):
        lazy = f"class Later{base}:\n    def __float__(self):\n        return 6.0\n"
        cell = f"{lazy}def double(x):\n    return Later()"
        passed, says = asked(cell, "float(ask(double, 3))")
        assert (passed, "return a tensor, a number or a list" in says) == (False, True), says


@pytest.mark.filterwarnings("ignore")
def test_numbers_are_compared_without_the_kernels_of_torch():
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("le.Tensor", lambda a, _: torch.tensor(True), "CPU")
        assert not close(torch.zeros(2), torch.ones(2))
    assert close(torch.ones(2), torch.ones(2) + 1e-6)
    for value in (torch.ones(3), torch.tensor([1, torch.nan]), [1.0]):
        assert not close(value, torch.ones(2))


# How grading ends


def test_what_a_killed_grader_left_behind_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {name: tmp_path / f"{folders.FOLDER}{name}" for name in ("left", "used", "new")}
    names["other"] = tmp_path / "ddpp-x"
    for name, folder in names.items():
        folder.mkdir()
        (folder / "file").touch()
        os.utime(folder, None if name == "new" else (1e9, 1e9))
    (tmp_path / f"{folders.FOLDER}link").symlink_to(names["other"])
    lock = folders.lock(str(names["used"]))
    folders.sweep()
    os.close(lock)
    assert [name for name, folder in names.items() if (folder / "file").exists()] == [
        *("used", "new", "other")
    ]


def test_a_grader_that_is_told_to_end_ends_what_submissions_started(course, tmp_path):
    (folder := tmp_path / "tmp").mkdir()
    seconds = f"98{os.getpid()}"
    notebook = copies.read(course / "solutions" / "numbers" / "numbers.ipynb")
    starts = "import multiprocessing.util as u, time\nu.spawnv_passfds(b'/bin/sleep', [b'sleep', "
    notebook.cells.append(new_code_cell(f"{starts}b'{seconds}'], [])\ntime.sleep(99)"))
    (tmp_path / "ann.ipynb").write_text(json.dumps(notebook))
    # behind Landlock, where a process does not end with its parent
    code = (
        "import sys\nfrom ddpp import cli\nfrom ddpp_course import enter, wall\n"
        "wall.best = lambda: wall.LANDLOCK if enter.landlock() else wall.NONE\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = [
        "grade",
        str(tmp_path / "ann.ipynb"),
        "--assignments",
        str(course),
        "--out",
        str(tmp_path),
    ]
    grader = subprocess.Popen(
        [sys.executable, "-c", code, *words], env=os.environ | {"TMPDIR": str(folder)}
    )

    def sleeper():
        every = psutil.process_iter(["cmdline"])
        return next((p for p in every if p.info["cmdline"] == ["sleep", seconds]), None)

    try:
        while not (found := sleeper()):
            assert grader.poll() is None
            time.sleep(0.2)
        grader.terminate()
        assert grader.wait(60) == 130
        with contextlib.suppress(psutil.NoSuchProcess):
            end = time.monotonic() + 30
            while found.is_running() and found.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < end
                time.sleep(0.1)
        assert [*folder.iterdir()] == []
    finally:
        grader.kill()
        for process in filter(None, [sleeper()]):
            process.kill()


def test_what_honest_notebooks_do_costs_nothing(asked):
    vmapped = "return torch.vmap(lambda y: 2 * y)(torch.full((1,), float(x))).item()"
    assert asked(f"def double(x):\n    {vmapped}") == (True, "")
    styled = "pandas.DataFrame({'x': [x]}).style._repr_html_()"
    cell = f"%matplotlib inline\nimport pandas\ndef double(x):\n    {styled}\n    return 2 * x"
    assert asked(cell) == (True, "")


def test_numbers_in_all_forms_are_compared():
    six = torch.tensor(6.0, requires_grad=True)
    for value in (six, [six], torch.tensor([6 + 0j]), np.int64(6), [6], Fraction(6)):
        right = [6.0] if isinstance(value, list) or getattr(value, "ndim", 0) else 6.0
        assert close(value, right), value
    assert not close("6.0", 6.0) and not close(float("nan"), 6.0)
