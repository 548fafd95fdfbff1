"""What lies in a folder of submissions: every file has a rule, none stops the class, and no mark by
hand is lost.
"""

import ast
import csv
import hashlib
import json
import os
import time
from copy import deepcopy
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell
from small_course import best_wall, cell_of, make, solved

from ddpp.foundation.errors import Error
from ddpp_course import copies, grade, instructor, marks, submissions, wall
from ddpp_course.report import Outcome, Report
from ddpp_course.session import Answer, Limits, Session
from ddpp_course.submissions import handed_in, read, safe, text_of

TRUST = best_wall() == wall.NONE  # these need none
ROOT = Path(__file__).parents[1]
ANSWER = "Pruning helps, as the interval is above 0."
TASKS = [
    (
        "double",
        2,
        "def double(x):\n    return 2 * x",
        "if ask(double, 3) != 6:\n    raise Mistake('no double')",
    ),
    ("conclude", 3, ANSWER, None),
]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    setup = "from ddpp_course.checks import Mistake, ask"
    return make(tmp_path_factory.mktemp("course"), "texts", setup, TASKS)


def cell(code):
    return lambda notebook: notebook.cells.insert(2, new_code_cell(code))


def of_cell(**changes):
    def change(notebook):
        cell_of(notebook, "double").metadata["nbgrader"].update(changes)

    return change


def in_check(notebook):
    cell_of(notebook, "double-check").source += "\n\ndef helper(x):\n    return x"


def metadata(**changes):
    return lambda notebook: notebook.metadata.update(changes)


def emoji(notebook):
    cell_of(notebook, "double").source += "  # \ud83d"


def odd_error(code):
    return cell(f"class Odd(Exception):\n    {code}\nraise Odd")


# What once stopped the class, or the report: each is worth its points. Name of the file -> what was
# done to it
ACCIDENTS = {
    "emoji.ipynb": emoji,
    "more in a check.ipynb": in_check,
    "id list.ipynb": of_cell(grade_id=["double"]),
    "points text.ipynb": of_cell(points="many", grade="yes"),
    "assignment list.ipynb": metadata(ddpp={"assignment": ["texts"]}),
    "assignment dict.ipynb": metadata(ddpp={"assignment": {}}),
    "formatter.ipynb": cell(
        "get_ipython().display_formatter.formatters['text/plain'].for_type(dict, lambda d, p, c: "
        "p.text('?'))"
    ),
    "key.ipynb": cell("get_ipython().kernel.session.key = b'mine'"),
    "pipes.ipynb": cell("import os\nos.closerange(40, 300)"),
    "long error.ipynb": cell("raise Exception('x' * 50_000_000)"),
    "lone error.ipynb": cell("raise Exception('\\ud83d')"),
    "error that clears a screen.ipynb": cell("raise Exception('\\x1b[2J\\x1b]0;title\\x07')"),
    "error without words.ipynb": odd_error("def __str__(self): raise KeyError"),
    "error of a number.ipynb": odd_error("def __str__(self): return 3"),
    "error with a page.ipynb": cell("raise Exception('<img src=x>| |\\n\\n# 100 of 100')"),
    "long name of an error.ipynb": cell("raise type('E' * 10_000_000, (Exception,), {})"),
    "warnings.ipynb": cell("import warnings\nwarnings.simplefilter('error')"),
    "no grad.ipynb": cell(
        "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)"
    ),
    "recursion.ipynb": cell("import sys\nsys.setrecursionlimit(60)"),
    "no output.ipynb": cell("import sys\nsys.stdout.close(); sys.stdout = sys.stderr = None"),
    "waits.ipynb": cell("import asyncio\nawait asyncio.sleep(0.01)"),
    "folder.ipynb": cell("import os\nos.chdir('/'); os.environ.clear()"),
    "\udcff\udcfe.ipynb": cell(""),
    "two\nlines.ipynb": cell(""),
}
# of files that are refused, as a name alone needs no process
NAMES = (
    "=1+1.ipynb",
    "@SUM(A1).ipynb",
    ".ipynb",
    ".hidden.ipynb",
    f"{'n' * 246}.ipynb",
    f"{'ü' * 124}.ipynb",
    "CAPITALS.IPYNB",
    "twice.ipynb",
    "TWICE.ipynb",
)
BESIDE = ("emoji.pdf", "key.html", "warnings.png")


@pytest.fixture(scope="module")
def graded(course, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("class"), tmp_path_factory.mktemp("grades")
    for name, change in ACCIDENTS.items():
        notebook = solved(course)
        change(notebook)
        (folder / name).write_text(json.dumps(notebook))
    for name in NAMES:
        (folder / name).write_bytes(b"{}")
    for name in BESIDE:
        (folder / name).write_bytes(b"%PDF")
    (folder / "scan.pdf").write_bytes(b"%PDF")
    (folder / "nowhere.ipynb").symlink_to("gone")
    (folder / "directory.ipynb").mkdir()
    os.mkfifo(folder / "pipe.ipynb")
    reports = grade.grade_all(folder, course, out, limits=Limits(seconds=60), jobs=2, trust=TRUST)
    return {r.submission: r for r in reports}, folder, out


def graded_as(name, folder):
    return next(s.name for s in handed_in(folder, folder / "out") if s.path.name == name)


@pytest.mark.parametrize("name", ACCIDENTS)
def test_an_accident_costs_nothing_and_stops_nobody(graded, name):
    reports, folder, out = graded
    found = reports[graded_as(name, folder)]
    assert (found.refused, found.points) == ("", 2), found.text()
    _shows_well(out / f"{found.submission}.md")


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_stops_nobody(graded, name):
    reports, folder, out = graded
    found = reports[graded_as(name, folder)]
    assert "hand in the .ipynb file" in found.refused
    _shows_well(out / f"{found.submission}.md")
    rows = csv.DictReader((out / "grades.csv").read_text().splitlines())
    (row,) = [r for r in rows if r["submission"].removeprefix("'") == found.submission]
    assert row["refused"] == found.refused


def _shows_well(path):
    text = path.read_text()
    assert len(text) < 3000
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "<img" not in text
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 1


@pytest.mark.parametrize("html", ["<img src=x>", r"\<img src=x>", r"\\<img src=x>"])
def test_html_in_a_report_stays_text(html):
    text = Report("ann", "texts", [Outcome("c", "C", 0, 2, html)], notes=[html]).text()
    assert "<" not in text and text.count("&lt;img src=x>") == 2


def test_what_a_student_defines_in_the_cell_of_a_check_is_named(graded):
    reports, *_ = graded
    notes = {name: report.notes for name, report in reports.items()}
    assert [name for name, found in notes.items() if "is a check, which" in str(found)] == [
        "more in a check"
    ]
    assert "define `helper` in a cell of its own" in notes["more in a check"][0]


def test_what_is_no_notebook_is_refused_where_there_is_none(graded):
    reports, folder, _ = graded
    refused = {name for name, report in reports.items() if report.refused}
    assert refused == {"scan", *(graded_as(name, folder) for name in NAMES)}
    assert "hand in the .ipynb file" in reports["scan"].refused
    assert reports["emoji"].notes[0] == "not graded, as there is a notebook: emoji.pdf"
    assert len(reports) == len(ACCIDENTS) + len(NAMES) + 1


def test_no_cell_of_the_table_is_a_formula(graded):
    _, _, out = graded
    rows = list(csv.reader((out / "grades.csv").read_text().splitlines()))
    assert not [x for row in rows for x in row if x.startswith(("=", "@", "+", "-"))]
    assert "'=1+1" in {row[0] for row in rows}


def test_which_files_are_graded(tmp_path):
    (tmp_path / "ann_1_assignsubmission_file_").mkdir()
    (tmp_path / "ann_1_assignsubmission_onlinetext_").mkdir()
    (tmp_path / "ben_2_assignsubmission_onlinetext_").mkdir()
    (tmp_path / "cleo").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "out").mkdir()
    names = [
        "ann_1_assignsubmission_file_/old.ipynb",
        "ann_1_assignsubmission_file_/new.ipynb",
        "ann_1_assignsubmission_onlinetext_/onlinetext.html",
        "ben_2_assignsubmission_onlinetext_/onlinetext.html",
        "cleo/work.ipynb",
        "cleo/figure.png",
        "dan.ipynb",
        "dan (1).ipynb",
        "dan (10).ipynb",
        "dan(9).ipynb",
        "eve (2).ipynb",
        ".DS_Store",
        "._dan.ipynb",
        ".ipynb_checkpoints/dan.ipynb",
        "out/dan.md",
    ]
    for i, name in enumerate(names):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (i, i))
    found = {s.name: s for s in handed_in(tmp_path, tmp_path / "out")}
    assert list(found) == [
        "ann_1_assignsubmission_file_/new",
        "ben_2_assignsubmission_onlinetext_/onlinetext",
        "cleo/work",
        "dan",
        "eve (2)",
    ]
    assert found["ann_1_assignsubmission_file_/new"].older == ("old.ipynb",)
    assert found["cleo/work"].beside == ("figure.png",)
    assert found["dan"].path.name == "dan (10).ipynb"
    assert set(found["dan"].older) == {"dan.ipynb", "dan (1).ipynb", "dan(9).ipynb"}
    assert "an older version was not graded: dan.ipynb" in found["dan"].notes


def test_a_students_number_in_brackets_is_no_older_version(tmp_path):
    for name in ("hw1", "hw1 (4711)", "hw1 (4712)", "hw1 (473)", "hw1 (2)"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    found = {s.name: s for s in handed_in(tmp_path, tmp_path / "out")}
    assert set(found) == {"hw1", "hw1 (4711)", "hw1 (4712)", "hw1 (473)"}
    assert found["hw1"].older == ("hw1.ipynb",)


# A link may lead to the work of somebody else


@pytest.fixture
def linked(course, tmp_path):
    """Three students' folders, and reports of what is in them."""
    folder = tmp_path / "class"
    for name in ("ann", "ben", "eve"):
        (folder / name).mkdir(parents=True)
    (folder / "ann" / "hw.ipynb").write_text(json.dumps(solved(course)))
    (folder / "ben" / "final.txt").write_text(json.dumps(solved(course)))
    (folder / "ben" / "hw.ipynb").symlink_to("final.txt")
    (folder / "eve" / "ann.ipynb").symlink_to("../ann/hw.ipynb")
    (folder / "eve" / "solution.ipynb").symlink_to(course / "solutions" / "texts" / "texts.ipynb")
    (folder / "top.ipynb").symlink_to("ann/hw.ipynb")
    if ENDLESS.exists():
        (folder / "endless.ipynb").symlink_to(ENDLESS)
    return folder


ENDLESS = Path("/proc/self/pagemap")  # of Linux: it says that it has nothing, and does not end
LINKS = ("eve/ann", "eve/solution", "top", *(["endless"] if ENDLESS.exists() else []))


def test_a_link_to_the_work_of_another_is_not_read(course, tmp_path, linked):
    out = tmp_path / "out"
    grading = lambda: grade.grade_all(
        linked, course, out, limits=Limits(seconds=60), jobs=1, trust=TRUST, say=print
    )
    reports = {r.submission: r for r in grading()}
    assert {name: r.points for name, r in reports.items()} == {
        "ann/hw": 2,
        "ben/hw": 2,
        **dict.fromkeys(LINKS, 0),
    }
    for name in LINKS:
        assert "it is a link to another file: hand in the file itself" in reports[name].refused
        text = (out / f"{name}.md").read_text()
        assert text.count("it is a link to another file: hand in the file itself") == 1
    # nor is it, where a file of its name was graded before
    (linked / "ann" / "hw.ipynb").rename(linked / "ben" / "hw2.ipynb")
    (linked / "ann" / "hw.ipynb").symlink_to("../ben/hw2.ipynb")
    again = {r.submission: r for r in grading()}
    assert (again["ann/hw"].points, again["ben/hw2"].points) == (0, 2)
    assert "it is a link" in again["ann/hw"].refused


def test_a_link_into_the_grades_is_not_passed_over(tmp_path, linked):
    out = tmp_path / "out"
    out.mkdir()
    (out / "ann.json").write_text("{}")
    (linked / "eve" / "grades.ipynb").symlink_to(out / "ann.json")
    found = {s.name: s for s in handed_in(linked, out)}
    assert found["eve/grades"].linked


def test_no_more_of_a_file_is_read_than_a_notebook_has(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "LARGEST", 2_000_000)
    (tmp_path / "large.ipynb").write_bytes(b" " * 3_000_000)
    with pytest.raises(Error, match="the file has 3 MB"):
        read(tmp_path / "large.ipynb")
    if ENDLESS.exists():
        with pytest.raises(Error, match="the file has 2 MB"):
            read(ENDLESS)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([new_code_cell("x;" * 150_000), new_code_cell("x;" * 150_000)], "its code has 600,000"),
        ([{}] * 1_000_000, "more than 2,000,000 brackets, commas and colons: clear the outputs"),
        ([1.5] * 2_000_100, "more than 2,000,000 brackets, commas and colons: clear the outputs"),
        ([new_markdown_cell("", metadata={"x": ["a"] * 600_000})], r"large \(3 MB, 600,0"),
        ([new_markdown_cell("x" * 51_000_000)], r"also without outputs it is too large \(51 MB"),
        # for which Python 3.11 would need more than a second
        ([new_code_cell("x = f'" + "{a}" * 20_000 + "'")], "has too many braces { for its length"),
    ],
)
def test_what_would_take_much_of_the_grader_itself_is_refused(tmp_path, cells, says):
    write(tmp_path / "many.ipynb", cells)
    with pytest.raises(Error, match=says):
        read(tmp_path / "many.ipynb")


def test_outputs_and_attached_pictures_may_be_large(tmp_path):
    picture = {"image/png": "iVBORw0KGgo=" * 5_000_000}
    shown = new_code_cell("x", outputs=[new_output("display_data", data=picture)])
    data = new_code_cell("x = [" + "{'a': 1}, " * 20_000 + "]\ny = 1")
    write(
        tmp_path / "large.ipynb", [shown, new_markdown_cell("", attachments={"a": picture}), data]
    )
    assert [cell.source for cell in read(tmp_path / "large.ipynb").cells] == ["x", "", data.source]


def write(path, cells):
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    path.write_text(json.dumps(notebook))


def test_the_code_of_a_cell_is_read_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        submissions.ast, "parse", lambda code: calls.append(code) or ast.Module([], [])
    )
    code = f"read_once = {time.time()}"
    assert submissions.names(code) == submissions.names(code) == (set(), set())
    assert calls == [code]


# Names


def test_a_folder_never_takes_the_name_of_a_report_or_a_table(tmp_path):
    made = [safe(name, folder=True) for name in ("ann.md", "GRADES.CSV", "a.json", "before", "x")]
    assert [name.partition("~")[0] for name in made] == [
        "ann.md",
        "GRADES.CSV",
        "a.json",
        "before",
        "x",
    ]
    assert ["~" in name for name in made] == [True, True, True, True, False]
    assert safe("ann.md") == "ann.md"
    for place in ("ann.md", "grades.csv", "before"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "hw.ipynb").write_text("{}")
    (tmp_path / "ann.ipynb").write_text("{}")
    found = handed_in(tmp_path, tmp_path / "out")
    for s in found:
        Report(s.name, "texts", outcomes(2.0), sha256="a").write(tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.json"))) == len(found) == 4
    assert marks.write([report_of("ann")], tmp_path / "out") == []


@pytest.mark.parametrize("taken", ["grades.csv", "before", "by_hand.new.csv", "by_hand.csv"])
def test_what_has_the_name_of_a_table_is_named_and_stays(tmp_path, taken):
    if taken == "before":
        (tmp_path / taken).write_text("notes")
        marks.write([report_of("ann")], tmp_path)
        says = "there is a file of this name. Move it away"
    else:
        (tmp_path / taken).mkdir()
        says = "cannot"
    reports = [report_of("ann"), report_of("ben")]
    if taken == "by_hand.new.csv":
        assert marks.write(reports, tmp_path) == []
        reports.append(report_of("cleo"))
    with pytest.raises(Error, match=says):
        marks.write(reports, tmp_path)
    assert (tmp_path / taken).exists()


def test_names_that_differ_in_case_are_the_same_from_every_folder(tmp_path, monkeypatch):
    (tmp_path / "class").mkdir()
    for name in ("ann", "Ann", "ann "):
        (tmp_path / "class" / f"{name}.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    called = [Path("class"), Path("../") / tmp_path.name / "class", tmp_path / "class"]
    ways = [[s.name for s in handed_in(folder, tmp_path / "out")] for folder in called]
    assert ways[0] == ways[1] == ways[2]
    assert len(set(ways[0])) == 3 and all("~" in name for name in ways[0])


def test_no_file_takes_the_name_that_the_grader_gives_to_another(tmp_path):
    """The marks of 4711_x and 4711_X can be foreseen, also one after another."""
    folder = tmp_path / "class"
    folder.mkdir()
    made = ["4711_x", "4711_X"]
    for _ in range(3):
        for name in made:
            (folder / f"{name}.ipynb").write_text("{}")
        found = handed_in(folder, tmp_path / "out")
        assert len(found) == len(made)
        assert len({s.name.lower() for s in found}) == len(made)
        made += [s.name for s in found if s.name not in made]


def test_names_stay_apart_where_two_marks_are_equal_by_chance(tmp_path, monkeypatch):
    digest = hashlib.sha256
    monkeypatch.setattr("hashlib.sha256", lambda raw: digest(raw if b"\0" in raw else b""))
    for name in ("ann", "Ann", "ANN"):
        (tmp_path / f"{name}.ipynb").write_text("{}")
    names = [s.name for s in handed_in(tmp_path, tmp_path / "out")]
    assert len({name.lower() for name in names}) == 3


def test_names_of_reports_are_safe_and_apart():
    names = [
        "ann",
        ".ann",
        "=1",
        "a\nb",
        "a\x00b",
        "\udcff",
        "\udcfe",
        "x" * 252,
        "ü" * 126,
        "x" * 251 + "y",
    ]
    made = [safe(name) for name in names]
    assert made[0] == "ann"
    assert len(set(made)) == len(names)
    for name in made:
        assert len(f"{name}.json.4194304.part".encode()) < 255  # the largest number of a process
        assert name.isprintable()
        assert not name.startswith(".")


def test_a_submission_that_stops_the_grader_itself_is_one_row(course, tmp_path, monkeypatch):
    folder, out = tmp_path / "class", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.ipynb").write_text(json.dumps(solved(course)))
    whole = grade.read
    monkeypatch.setattr(grade, "read", lambda path: 1 / 0 if path.stem == "a" else whole(path))
    (out / "b.json").mkdir(parents=True)  # its report cannot be written
    reports = grade.grade_all(folder, course, out, limits=Limits(seconds=60), trust=TRUST)
    assert "ZeroDivisionError" in reports[0].refused
    assert "could not be written" in reports[1].refused
    rows = list(csv.DictReader((out / "grades.csv").read_text().splitlines()))
    assert [row["refused"][:20] for row in rows] == ["it stopped the grade", "its report could not"]


def test_a_report_for_another_assignment_than_the_notebook_is_does_not_last(tmp_path):
    setup = "from ddpp_course.checks import Mistake, ask"
    both = make(tmp_path / "course", "texts", setup, TASKS)
    make(tmp_path / "other", "other", setup, [("other", *TASKS[0][1:])])
    (tmp_path / "other" / "source" / "other").rename(both / "source" / "other")
    folder = tmp_path / "class"
    folder.mkdir()
    notebook = solved(both)
    (folder / "ann.ipynb").write_text(json.dumps(notebook))
    graded = lambda name: grade.grade_all(
        folder, both, tmp_path / "out", name=name, limits=Limits(seconds=60), trust=TRUST
    )
    assert "it is texts, not other: was the wrong notebook" in graded("other")[0].refused
    del notebook.metadata["ddpp"]  # as an editor may do
    (folder / "ann.ipynb").write_text(json.dumps(notebook))
    assert [graded(name)[0].assignment for name in ("other", None)] == ["other", "texts"]


def test_a_magic_in_a_solution_hides_no_name_and_what_is_no_python_is_named(tmp_path):
    def with_cells(number, answer, check):
        tasks = [(*TASKS[0][:2], answer, check), ("half", 1, "def half(x): ...\nh = 1", "half, h")]
        return instructor.assignments(make(tmp_path / number, "texts", "", tasks))["texts"]

    answer, check = TASKS[0][2:]
    with_magics = with_cells("1", f"%%time\n%matplotlib inline\n!ls\n{answer}", check)
    assert (with_magics.functions, with_magics.values) == ({"double", "half"}, {"h"})
    with pytest.raises(Error, match=r"the cell 'double' of .* is no Python: expected ':'"):
        with_cells("2", "def double(x)", check)
    with pytest.raises(Error, match=r"the cell 'double-check' of .* is no Python: invalid syntax"):
        with_cells("3", answer, f"%time\n{check}")


def test_a_process_that_dies_during_the_setup_costs_no_more_than_its_submission(
    course, tmp_path, monkeypatch
):
    folder, setup = tmp_path / "class", Session.setup
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.ipynb").write_text(json.dumps(solved(course)))
    dies = [True, False, False, True, True]  # a process each: a's, a's again, b's, and c's two
    given = []

    def fails(session, code, seconds):
        given.append(seconds)
        return Answer("died", alive=False) if dies.pop(0) else setup(session, code, seconds)

    monkeypatch.setattr(Session, "setup", fails)
    run = lambda: grade.grade_all(folder, course, tmp_path / "out", limits=Limits(9), trust=TRUST)
    assert [report.points for report in run()] == [2, 2, 0]
    assert given == [120] * 5
    dies += [True, True]
    (folder / "a.ipynb").unlink()
    (folder / "b.ipynb").unlink()
    with pytest.raises(Error, match="the setup of texts fails"):
        run()


# Texts, which a person grades


def test_a_text_is_found_where_it_stands(course):
    given = instructor.assignments(course)["texts"].given
    says = lambda notebook: text_of("conclude", notebook, given)
    release = lambda: copies.read(course / "release" / "texts" / "texts.ipynb")
    assert says(solved(course)) == "to be graded by hand"
    assert says(release()) == "nothing was written"
    below = release()
    below.cells += [new_code_cell("1"), new_markdown_cell(ANSWER), new_raw_cell("and more")]
    assert (
        says(below)
        == "to be graded by hand: the text is not in its own cell but below it, in cell 9, 10"
    )
    above = release()
    above.cells.insert(0, new_markdown_cell(ANSWER))
    assert says(above) == "nothing was written in its own cell; there is other text in cell 1"
    bare = solved(course)
    for one in bare.cells:
        one.metadata = {}
    assert says(bare) == "nothing was written in its own cell; there is other text in cell 7"
    more = solved(course)
    more.cells.append(new_markdown_cell("PS"))
    assert says(more).startswith("to be graded by hand (there is more in cell")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (f'"""{ANSWER}"""', "there is other text in cell 8"),
        (f"# {ANSWER}", "there is other text in cell 8"),
        ("Pruning helps a lot", "there is other text in cell 8"),
        ("x = 'label'  # one", "nothing was written"),
        ("for x in range(10):\n    print(x if x else 0)", "nothing was written"),
        ("", "nothing was written"),
    ],
)
def test_a_text_in_a_cell_for_code_is_named(course, code, says):
    given = instructor.assignments(course)["texts"].given
    notebook = copies.read(course / "release" / "texts" / "texts.ipynb")
    notebook.cells.append(new_code_cell(code))
    assert text_of("conclude", notebook, given).endswith(says)


def test_a_text_in_the_cell_of_another_answer_is_named(tmp_path):
    both = make(tmp_path, "two", "", [*TASKS, ("limits", 3, "Few seeds.", None)])
    given = instructor.assignments(both)["two"].given
    notebook = copies.read(both / "release" / "two" / "two.ipynb")
    assert text_of("limits", notebook, given) == "nothing was written"
    cell_of(notebook, "conclude").source = f"{ANSWER} But there are few seeds."
    assert text_of("conclude", notebook, given) == "to be graded by hand"
    assert text_of("limits", notebook, given).endswith("there is other text in cell 7")
    code = cell_of(notebook, "double")
    code.source = f"def double(x):\n    # {ANSWER}\n    return 2 * x"
    assert text_of("limits", notebook, given).endswith("there is other text in cell 4, 7")


def test_a_text_is_found_at_once_among_thousands_of_copies(course):
    given = instructor.assignments(course)["texts"].given
    notebook = copies.read(course / "release" / "texts" / "texts.ipynb")
    notebook.cells += [deepcopy(cell_of(notebook, "conclude")) for _ in range(8000)]
    began = time.process_time()
    assert text_of("conclude", notebook, given) == "nothing was written"
    assert time.process_time() - began < 1.5


def outcomes(points=2.0):
    return [
        Outcome("check", "Doubling", points, 2, "fine"),
        Outcome("conclude", "Text", None, 3, "by hand"),
    ]


def report_of(name, points=2.0):
    return Report(name, "texts", outcomes(points), sha256=name * 64)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_marks_by_hand_are_never_written_again(tmp_path):
    ann, ben = report_of("ann"), report_of("=ben")
    assert marks.write([ann, ben], tmp_path) == []
    hand = tmp_path / "by_hand.csv"
    rows = rows_of(hand)
    assert [(row["submission"], row["task"], row["of"]) for row in rows] == [
        ("ann", "conclude", "3"),
        ("'=ben", "conclude", "3"),
    ]
    assert [row["total"] for row in rows_of(tmp_path / "grades.csv")] == ["", ""]
    text = hand.read_text().replace(",", ";").replace("conclude;Text;;", "conclude;Text;2,5;", 1)
    hand.write_bytes(text.encode("utf-8-sig"))  # as a spreadsheet saves it elsewhere
    written = hand.read_bytes(), hand.stat().st_mtime_ns
    said = marks.write([ann, ben, report_of("cleo")], tmp_path)
    assert (hand.read_bytes(), hand.stat().st_mtime_ns) == written
    assert said == [
        f"{hand} has no line for cleo: copy the lines from {tmp_path / 'by_hand.new.csv'}"
    ]
    assert [row["submission"] for row in rows_of(tmp_path / "by_hand.new.csv")] == ["cleo"]
    assert [row["total"] for row in rows_of(tmp_path / "grades.csv")] == ["4.5", "", ""]
    assert rows_of(tmp_path / "grades.csv")[0]["conclude"] == "2.5"

    new = tmp_path / "by_hand.new.csv"
    for names, left in ((["ann", "=ben", "cleo", "dan"], ["cleo", "dan"]), (["ann", "=ben"], [])):
        filled = new.read_text().replace("Text,,", "Text,1,", 1)
        new.write_text(filled)
        marks.write([report_of(name) for name in names], tmp_path)
        assert (rows_of(new) if new.exists() else []) == [] or {
            row["submission"] for row in rows_of(new)
        } == {*left}
        assert filled in {path.read_text() for path in (tmp_path / "before").glob("by_hand.new.*")}


def test_a_mark_by_hand_that_cannot_be_meant_is_named(tmp_path):
    marks.write([report_of("ann")], tmp_path)
    hand = tmp_path / "by_hand.csv"
    (row,) = rows_of(hand)
    lines = [row | {"points": points} for points in ("7", "two", "nan", "-1", "1", "2")]
    lines.append(row | {"submission": "nobody", "points": "1"})
    with hand.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerows(lines)
    said = marks.write([report_of("ann")], tmp_path)
    assert [sentence.split(": ")[1][:7] for sentence in said] == [
        "line 2 ",
        "line 3 ",
        "line 4 ",
        "line 5 ",
        "line 7 ",
        "line 8 ",
    ]
    assert rows_of(tmp_path / "grades.csv")[0]["total"] == "3.0"
    hand.write_text("a,b\n1,2\n")
    with pytest.raises(Error, match="lacks one of the columns"):
        marks.write([report_of("ann")], tmp_path)
    assert hand.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("name", ["ann lee ", " ann", "'=ann", "=ann "])
def test_a_mark_reaches_a_name_with_spaces_at_its_ends(tmp_path, name):
    one = Report(name, "texts", outcomes(), sha256="a" * 64)
    marks.write([one], tmp_path)
    hand = tmp_path / "by_hand.csv"
    hand.write_text(hand.read_text().replace("Text,,", "Text,3,"))
    assert marks.write([one], tmp_path) == []
    assert rows_of(tmp_path / "grades.csv")[0]["total"] == "5.0"
    assert "3 of 3" in (tmp_path / f"{name}.md").read_text()


def test_a_mark_reaches_a_number_whose_zeros_a_spreadsheet_took(tmp_path):
    reports = [report_of(name) for name in ("04711", "004712", "04712")]
    marks.write(reports, tmp_path)
    hand = tmp_path / "by_hand.csv"
    saved = hand.read_text().replace("Text,,", "Text,3,").replace("\n0", "\n").replace("\n0", "\n")
    hand.write_text(saved)
    said = marks.write(reports, tmp_path)
    totals = {row["submission"]: row["total"] for row in rows_of(tmp_path / "grades.csv")}
    assert totals == {"04711": "5.0", "004712": "", "04712": ""}  # 4712 may be either
    assert [sentence.partition(": ")[2][:36] for sentence in said[:2]] == [
        "line 3 is of no submission that is g",
        "line 4 is of no submission that is g",
    ]
    assert "04711" not in said[2]


def test_older_versions_that_are_left_out_are_named(tmp_path):
    one = report_of("ann")
    one.notes = ["an older version was not graded: ann.ipynb", "cell 2 stopped: x"]
    assert marks.write([one], tmp_path) == ["older versions, not graded: ann.ipynb (ann)"]


def test_a_mark_of_an_older_version_is_named(tmp_path):
    marks.write([report_of("ann")], tmp_path)
    hand = tmp_path / "by_hand.csv"
    hand.write_text(hand.read_text().replace("Text,,", "Text,2,"))
    changed = report_of("ann")
    changed.sha256 = "f" * 64
    (said,) = marks.write([changed], tmp_path)
    assert "another version of the file" in said
    assert rows_of(tmp_path / "grades.csv")[0]["total"] == "4.0"


def test_a_grade_that_is_replaced_is_kept(tmp_path):
    report_of("ann").write(tmp_path)
    marks.write([report_of("ann")], tmp_path)
    again = report_of("ann")
    again.seconds = 9.0
    again.write(tmp_path)
    marks.write([again], tmp_path)
    assert not (tmp_path / "before").exists()
    for points in (1.0, 0.0):
        time.sleep(0.01)
        report_of("ann", points).write(tmp_path)
        marks.write([report_of("ann", points)], tmp_path)
    kept = sorted(path.name.split(".")[0] + path.suffix for path in (tmp_path / "before").iterdir())
    assert kept == ["ann.json", "ann.json", "ann.md", "ann.md", "grades.csv", "grades.csv"]
    points = {
        json.loads(path.read_text())["points"] for path in (tmp_path / "before").glob("ann*.json")
    }
    assert points == {2.0, 1.0}


@pytest.mark.parametrize("again", ["a class", "one"])
def test_a_report_with_marks_is_kept_where_it_is_graded_again(tmp_path, again):
    one, path = report_of("ann"), tmp_path / "ann.md"
    one.write(tmp_path)
    marks.write([one], tmp_path)
    hand = tmp_path / "by_hand.csv"
    without = hand.read_text()
    hand.write_text(without.replace("Text,,", "Text,3,"))
    marks.write([one], tmp_path)
    path.write_text(marked := path.read_text() + "\nWell done.\n")
    one.graded_with = "other limits"
    one.write(tmp_path)
    assert path.read_text() == marked
    if again == "a class":
        hand.write_text(without.replace("Text,,", "Text,1,"))
        marks.write([one], tmp_path)
        assert "| **total** | **3 of 5** |" in path.read_text()
        kept = [kept.read_text() for kept in (tmp_path / "before").glob("ann.*.md")]
        assert marked in kept
    path.unlink()
    one.write(tmp_path)
    assert path.read_text() == one.text()


def test_a_report_says_what_confines_a_submission_now(tmp_path):
    one = report_of("ann")
    one.write(tmp_path)
    one.wall = "Nothing confined it."
    one.write(tmp_path)
    assert "Nothing confined it." in (tmp_path / "ann.md").read_text()


@pytest.mark.parametrize("task", ["total", "points", "of", "notes", "name", "number", "days_late"])
def test_a_task_with_the_name_of_a_column_has_a_column_of_its_own(tmp_path, task):
    each = [Outcome(task, "A", 1.0, 2, "fine"), Outcome("check", "B", 2.0, 8, "fine")]
    marks.write([Report("ann", "texts", each)], tmp_path)
    columns = (tmp_path / "grades.csv").read_text().splitlines()[0].split(",")
    assert len(columns) == len({*columns})
    (row,) = rows_of(tmp_path / "grades.csv")
    assert (row["total"], row["points"], row["of"], row["notes"]) == ("3.0", "3.0", "10", "0")
    assert (row[f"texts {task}"], row["check"]) == ("1.0", "2.0")


def test_points_that_change_in_the_metadata_change_the_headings_of_the_copies(course):
    (path,) = course.glob("source/*/*.ipynb")
    source = copies.read(path)
    cell_of(source, "conclude").metadata["nbgrader"]["points"] = 1
    source.cells[0].source += "\n\n| **Points** | 20: 9 by checks, 11 for what you write |"
    for made in (copies.students(source), copies.solutions(source)):
        texts = [cell.source for cell in made.cells if cell.cell_type == "markdown"]
        assert "## Task: double (2 points)" in texts
        assert "## Task: conclude (1 point)" in texts
        assert "| **Points** | 3: 2 by checks, 1 for what you write |" in texts[0]


def test_points_of_several_checks_stay_apart_in_the_heading():
    path = copies.sources(ROOT / "assignments")["assignment2"]
    source = copies.read(path)
    cell_of(source, "batches-check").metadata["nbgrader"]["points"] = 5
    texts = "\n".join(c.source for c in copies.students(source).cells if c.cell_type == "markdown")
    assert "## Task 2: A teacher and its snapshots (2 + 5 points, about 20 minutes)" in texts
    assert "| **Points** | 23 |" in texts


# What cannot be read, and what is changed by hand


def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "ann").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "ben.ipynb").write_text("{}")
    scan = os.scandir

    def denied(path):  # as for anybody but root
        if Path(path).name in ("ann", ".hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    says = "cannot read the folder .*ann: Permission denied. Make it readable, or move it away"
    with pytest.raises(Error, match=says):
        handed_in(tmp_path, tmp_path / "out")


def test_a_file_that_cannot_be_looked_at_is_refused_alone(course, tmp_path, monkeypatch):
    folder, look = tmp_path / "class", Path.stat
    place = folder / "ann_1_assignsubmission_file_"
    place.mkdir(parents=True)
    for name in ("ann_1_assignsubmission_file_/hw", "ben"):
        (folder / f"{name}.ipynb").write_text(json.dumps(solved(course)))

    def denied(path, **words):
        if path.name == "hw.ipynb":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **words)

    monkeypatch.setattr(Path, "stat", denied)
    monkeypatch.setattr(grade.Grader, "fill", lambda self, one, result: read(one.path))
    reports = grade.grade_all(folder, course, tmp_path / "out", trust=TRUST)
    says = {"ann_1_assignsubmission_file_/hw": "it cannot be read (Permission denied)", "ben": ""}
    assert {one.submission: one.refused for one in reports} == says


def test_the_times_of_files_are_read_before_a_submission_can_change_them(
    course, tmp_path, monkeypatch
):
    folder, given = tmp_path / "class", {}
    folder.mkdir()
    (folder / "ann.ipynb").write_text("{}")
    os.utime(folder / "ann.ipynb", (1e9, 1e9))
    monkeypatch.setattr(grade.Grader, "fill", lambda self, one, _: os.utime(one.path, (0, 0)))
    monkeypatch.setattr(
        marks, "write", lambda reports, out, rules, times, name: given.update(times) or []
    )
    grade.grade_all(folder, course, tmp_path / "out", trust=TRUST)
    assert given == {"ann": 1e9}


def test_of_moodles_files_with_equal_times_the_report_asks_for_the_last(tmp_path):
    place = tmp_path / "ann_1_assignsubmission_file_"
    place.mkdir()
    for name, at in (("a", 1), ("b", 2), ("c", 2)):
        (place / f"{name}.ipynb").write_text("{}")
        os.utime(place / f"{name}.ipynb", (at, at))
    (one,) = handed_in(tmp_path, tmp_path / "out")
    assert one.older == ("a.ipynb", "b.ipynb, which has the same time: which is the last?")


def test_what_was_changed_by_hand_is_named_where_it_is_replaced(tmp_path):
    one = report_of("ann")
    assert [*one.write(tmp_path), *marks.write([one], tmp_path)] == []
    hand = tmp_path / "by_hand.csv"
    hand.write_text(hand.read_text().replace("Text,,", "Text,3,"))
    assert marks.write([one], tmp_path) == []  # what it replaces is its own
    for name in ("grades.csv", "ann.md"):
        (tmp_path / name).write_text("mine")
    said = marks.write([one], tmp_path)
    for sentence, name in zip(said, ("grades.csv", "ann.md"), strict=True):
        begin, _, rest = sentence.partition(", which is written anew: your version is ")
        kept, _, end = rest.partition(". Put")
        assert (begin, Path(kept).read_text()) == (f"you changed {tmp_path / name}", "mine")
        assert end == " points for texts, and comments, into by_hand.csv"
    assert marks.write([one], tmp_path) == []
    (tmp_path / "ann.md").write_text("mine")
    (said,) = report_of("ann", 1.0).write(tmp_path)  # it was graded again
    assert "ann.md, which is written anew" in said
    # what was written by an earlier version, without a note, is nobody's change
    (tmp_path / ".written").unlink()
    assert report_of("ann", 0.0).write(tmp_path) == []


def test_a_setup_without_memory_names_the_option(course, tmp_path, monkeypatch):
    (tmp_path / "ann.ipynb").write_text(json.dumps(solved(course)))
    monkeypatch.setattr(Session, "setup", lambda *_: Answer("MemoryError"))
    with pytest.raises(Error, match="the setup of texts fails: MemoryError: raise --memory"):
        grade.grade(tmp_path / "ann.ipynb", course, trust=TRUST)
