"""The class: who handed in nothing, what came late, what counts, and the tables for platforms."""

import csv
import os
import time
import unicodedata
from copy import deepcopy
from datetime import datetime

import nbformat
import pytest
from small_course import best_wall, make, solved

from ddpp import cli
from ddpp.foundation.errors import Error
from ddpp_course import marks, wall
from ddpp_course.grade import Grader
from ddpp_course.owners import owners
from ddpp_course.report import Outcome, Report
from ddpp_course.roster import Student, moment, read
from ddpp_course.rules import Rules

TRUST = ["--trust-submissions"] if best_wall() == wall.NONE else []  # these need no wall
CHECK = "if ask(double, 3) != 6:\n    raise Mistake('no double')"
TASKS = [
    ("double", 2, "def double(x):\n    return 2 * x", CHECK),
    ("conclude", 2, "Pruning helps.", None),
]
OWN = "number,name\n4711,Ann Lee\n4712,Ben Noe\n4713,Cleo Ray\n"
DUE = "2026-12-01T23:59"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    setup = "from ddpp_course.checks import Mistake, ask"
    return make(tmp_path_factory.mktemp("course"), "texts", setup, TASKS)


def hand_in(course, path, right=True, at="2026-12-01T12:00"):
    notebook = solved(course)
    if not right:
        notebook.cells = [c for c in notebook.cells if "def double" not in c.source]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    when = datetime.fromisoformat(at).timestamp()
    os.utime(path, (when, when))


@pytest.fixture(scope="module")
def graded():
    """What became of each content of a file: here the tables are tested, not the kernels."""
    return {}


@pytest.fixture
def grade(course, graded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_it = Grader.fill

    def once(grader, submission, result):
        content = submission.path.read_bytes()
        if content not in graded:
            first = Report(submission.name)
            run_it(grader, submission, first)
            graded[content] = first
        same = ("assignment", "outcomes", "wall", "sha256", "graded_with")
        vars(result).update({name: deepcopy(getattr(graded[content], name)) for name in same})
        result.notes = [*result.notes, *graded[content].notes]

    monkeypatch.setattr(Grader, "fill", once)

    def run(*words):
        words = ["grade", "in", "--assignments", str(course), "--jobs", "2", *TRUST, *words]
        code = cli.main(words)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def give(path, points):
    rows = rows_of(path)
    for row in rows:
        row["points"] = points.get(row["submission"], "")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_class_with_a_roster_and_a_deadline(course, grade, tmp_path):
    (tmp_path / "roster.csv").write_text(OWN)
    hand_in(course, tmp_path / "in" / "hw_4711.ipynb")
    hand_in(course, tmp_path / "in" / "ben noe.ipynb", at="2026-12-03T00:30")
    hand_in(course, tmp_path / "in" / "who.ipynb")
    words = ["--roster", "roster.csv", "--due", DUE, "--late", "10"]
    _, said = grade(*words)
    assert "who is of nobody in the roster" in said
    rows = {row["name"]: row for row in rows_of(tmp_path / "grades" / "grades.csv")}
    assert rows["Ann Lee"]["number"] == "4711"
    assert (rows["Ann Lee"]["counts"], rows["Ann Lee"]["days_late"]) == ("yes", "0")
    assert rows["Ann Lee"]["handed_in"].startswith("2026-12-01T12:00")
    assert rows["Cleo Ray"]["refused"] == "nothing was handed in"
    assert rows["Cleo Ray"]["total"] == rows["Ben Noe"]["total"] == ""  # a text is not marked yet
    assert (rows["Ben Noe"]["days_late"], rows["Ben Noe"]["deducted"]) == ("2", "0.8")
    assert rows[""]["submission"] == "who"

    give(tmp_path / "grades" / "by_hand.csv", {"ben noe": "1.5", "hw_4711": "2"})
    for _ in range(2):  # marks by hand survive each call
        _, said = grade(*words)
        rows = {row["name"]: row for row in rows_of(tmp_path / "grades" / "grades.csv")}
        assert (rows["Ann Lee"]["total"], rows["Ben Noe"]["total"]) == ("4.0", "2.7")
    report = (tmp_path / "grades" / "ben noe.md").read_text()
    assert report.startswith("# Ben Noe: ben noe\n")
    for line in (
        "| by checks | 2 of 2 |",
        "| by hand | 1.5 of 2 |",
        "| handed in | 2026-12-03 00:30, days late: 2 |",
        "| deducted | 0.8 |",
        "| **total** | **2.7 of 4** |",
        "| ◐ | Task: conclude (`conclude`) | 1.5 of 2 | graded by hand |",
    ):
        assert line in report.splitlines()
    before = [path.read_text() for path in (tmp_path / "grades" / "before").glob("ben noe.*.md")]
    assert ["follows when all texts are marked" in text for text in before] == [True]
    extended = OWN.replace("name\n", "name,due\n").replace("Ben Noe", "Ben Noe,2026-12-04T12:00")
    (tmp_path / "roster.csv").write_text(extended)
    grade(*words)
    rows = {row["name"]: row for row in rows_of(tmp_path / "grades" / "grades.csv")}
    assert (rows["Ben Noe"]["days_late"], rows["Ben Noe"]["total"]) == ("0", "3.5")


def test_a_file_that_is_refused_is_not_nothing():
    rows = [
        {"submission": "4711", "assignment": "a", "refused": "", "total": 1, "points": 1},
        {"submission": "4712", "assignment": "", "refused": "no notebook", "total": None},
    ]
    students = [Student("4711", "Ann Lee"), Student("4712", "Ben Noe")]
    Rules(students).apply(rows, {}, ["a", "b"])
    assert [(row["number"], row["assignment"], row["refused"]) for row in rows[2:]] == [
        ("4712", "a", "nothing but 4712, which was refused"),
        ("4711", "b", "nothing was handed in"),
        ("4712", "b", "nothing but 4712, which was refused"),
    ]
    alone = rows[:2]
    Rules(students).apply(alone, {}, ["a"])
    assert len(alone) == 2


@pytest.mark.parametrize(
    ("keep", "counts"), [("last", "4711"), ("in-time", "4711 (0)"), ("best", "ann lee")]
)
def test_which_of_several_submissions_counts(course, grade, tmp_path, keep, counts):
    (tmp_path / "roster.csv").write_text(OWN)
    hand_in(course, tmp_path / "in" / "ann lee.ipynb", at="2026-12-01T11:00")
    hand_in(course, tmp_path / "in" / "4711.ipynb", right=False)
    hand_in(course, tmp_path / "in" / "4711 (1).ipynb", right=False, at="2026-12-02T13:00")
    grade("--roster", "roster.csv", "--due", DUE, "--keep", keep)
    rows = [row for row in rows_of(tmp_path / "grades" / "grades.csv") if row["number"] == "4711"]
    (yes,) = [row for row in rows if row["counts"] == "yes"]
    assert yes["submission"] == counts
    assert yes["points"] == ("2" if keep == "best" else "0")
    assert yes["days_late"] == ("1" if keep == "last" else "0")
    other = [row["submission"] for row in rows if row["counts"] == "no"]
    says = [(tmp_path / "grades" / f"{name}.md").read_text() for name in (counts, *other)]
    assert ["Another file" in text for text in says] == [False, *(True for _ in other)]
    assert len(rows) == (2 if keep == "last" else 3)  # of numbered files the last alone is graded


def test_where_nothing_was_in_time_the_last_counts(course, grade, tmp_path):
    (tmp_path / "roster.csv").write_text(OWN)
    for name, day in (("4711", "02"), ("ann lee", "03")):
        hand_in(course, tmp_path / "in" / f"{name}.ipynb", at=f"2026-12-{day}T12:00")
    grade("--roster", "roster.csv", "--due", DUE, "--keep", "in-time")
    rows = rows_of(tmp_path / "grades" / "grades.csv")
    assert {r["submission"]: r["counts"] for r in rows if r["submission"]} == {
        "4711": "no",
        "ann lee": "yes",
    }


def test_a_deadline_lasts_to_the_end_of_its_minute_or_of_its_day():
    local = lambda text: datetime.fromisoformat(text).astimezone()
    end = local("2026-12-01T23:59:59.999999")
    assert moment("2026-12-01T23:59") == moment("2026-12-01") == moment("20261201") == end
    assert moment("2026-12-01 08:00:30") == local("2026-12-01T08:00:30")
    assert moment("2026-12-01T00:00") == local("2026-12-01T00:00:59.999999")
    assert moment("2026-12-01T23:59+01:00").timestamp() == moment("2026-12-01T22:59Z").timestamp()


@pytest.fixture
def days_late(monkeypatch):
    """How many days after a deadline a time is, in a place with summer time."""
    # the rule itself: where the system has no time zones, a name would be UTC
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    assert time.tzname == ("CET", "CEST")

    def days(due, at):
        row = {"submission": "ann", "of": 20, "by_hand_of": 0, "total": 20.0, "refused": ""}
        written = datetime.fromisoformat(at).timestamp()
        Rules(due=moment(due), late=10).apply([row], {"ann": written}, [])
        return row["days_late"]

    yield days
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("due", "at", "days"),
    [
        ("2026-12-01T23:59", "2026-12-01T23:59:59.5", 0),
        ("2026-12-01T23:59", "2026-12-02T00:00", 1),
        ("2026-12-01T23:59", "2026-12-02T23:59:59", 1),
        ("2026-12-01T23:59", "2026-12-03T00:00", 2),
        ("2026-10-24T23:59", "2026-10-25T23:30", 1),  # a day of 25 hours
        ("2026-10-24T23:59", "2026-10-26T00:00", 2),
        ("2026-03-28T23:59", "2026-03-29T23:59", 1),  # a day of 23 hours
        ("2026-03-28T23:59", "2026-03-30T00:00", 2),
        ("2026-10-25T02:30+02:00", "2026-10-25T02:10+01:00", 1),  # the clock was set back between
        ("2026-12-01T23:59+00:00", "2026-12-02T23:30+00:00", 1),
    ],
)
def test_a_day_is_one_of_the_calendar_and_a_minute_is_whole(days_late, due, at, days):
    assert days_late(due, at) == days


BOB, ANN, ELEVEN = Student("1", "Bob Stone"), Student("2", "Ann Lee"), Student("4711", "X Yz")


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("ann lee (1)", [ANN]),
        ("ann lee(1)", [ANN]),
        ("ann lee (1)~0123abcd", [ANN]),
        ("ann lee~00004711", [ANN]),
        ("assignment (1)/ann lee", []),
        ("hw1 (4711)", [ELEVEN]),
        ("hw1-4711", [ELEVEN]),
        ("4711-hw1", [ELEVEN]),
        ("hw_2026-02-01_4711", [ELEVEN]),
        ("ann lee", [ANN]),
        ("2 ann lee", [ANN]),
        ("ann lee_2_1", [ANN]),
        ("hw 1", [BOB]),
        # number and name are of two
        ("ann lee_assignment_1", [BOB, ANN]),
        ("hw 1 ann lee", [BOB, ANN]),
        ("assignment 1/ann lee", [BOB, ANN]),
        ("ann_lee_1", [BOB, ANN]),
        ("1 2", [BOB, ANN]),
        # the platform's own numbers are of nobody here
        ("annlee_4711_5013_hw", [ANN]),
        ("annlee_LATE_5013_4711_hw-1", [ANN]),
        ("Ann Lee_1_assignsubmission_file_/hw", [ANN]),
        ("whoever_17_5013_hw_4711", [ELEVEN]),
    ],
)
def test_a_number_in_brackets_is_a_browsers_and_not_a_students(name, of):
    assert owners(name, [BOB, ANN, ELEVEN]) == of


def test_an_account_with_the_name_of_another_student_may_be_of_both():
    """So it is where the account of the roster is no account of the platform that made the file."""
    ann, bob = Student("1", "Lee, Ann", account="12"), Student("2", "Bob Stone", account="13")
    find = lambda name: owners(name, [ann, bob])
    assert find("leeann_12_5013_hw") == find("Ann Lee_12_assignsubmission_file_/hw") == [ann]
    assert (
        find("bobstone_12_5013_hw") == find("Bob Stone_12_assignsubmission_file_/x") == [ann, bob]
    )
    assert find("anns new name_12_5013_hw") == [ann]


def test_a_number_with_hyphens_is_one_word():
    students = [Student("12-345", "A B"), Student("12", "C D")]
    assert owners("hw_12-345", students) == owners("hw-12-345", students) == students[:1]
    assert owners("hw-12", students) == students[1:]
    assert owners("12-345_hw-12", students) == students


@pytest.mark.parametrize("number", ["a.lee", "lee@x.org", "a_lee", "12 345"])
@pytest.mark.parametrize("name", ["{}", "hw_{}", "hw1-{} final", "{}_1"])
def test_a_number_with_other_characters_is_found_whole(number, name):
    students = [Student(number, "E F"), Student("lee", "G H"), Student("345", "I J")]
    assert owners(name.format(number), students) == students[:1]
    assert students[0] not in owners(name.format(f"b{number}"), students)
    assert students[0] not in owners(name.format(f"{number}s"), students)


@pytest.mark.parametrize(
    "name",
    [
        "4711_4712_1_hw",
        "4711_LATE_4712_1_hw",
        "4711_hw-4712",
        "group_4711_1_4712",
        "ann lee_bob stone",
        "ann lee/bob stone",
        "ann lee_hw_bob_stone",
        "annlee_12_5013_bob stone",
        "4711_ann lee_bob stone",
    ],
)
def test_a_file_of_two_students_is_given_to_neither(name):
    ann, bob = Student("4711", "Ann Lee"), Student("4712", "Bob Stone")
    assert {one.name for one in owners(name, [ann, bob])} == {"Ann Lee", "Bob Stone"}
    row = {"submission": name, "assignment": "a", "refused": "", "total": 18, "points": 18}
    rows = [row]
    (said,) = Rules([ann, bob], zeros=True).apply(rows, {}, ["a"])
    assert "so it is given to nobody" in said
    assert {row["name"]: row["total"] for row in rows[1:]} == {"Ann Lee": None, "Bob Stone": None}


@pytest.mark.parametrize("name", ["maria ray lopez_hw", "4712 maria ray lopez"])
def test_a_name_that_begins_as_another_is_of_one(name):
    students = [Student("4711", "Maria Ray"), Student("4712", "Maria Ray Lopez")]
    assert owners(name, students) == students[1:]


@pytest.mark.parametrize("name", ["hw_4711_2_final", "a1_4711_2026_12_01"])
def test_a_number_where_canvas_has_its_own_is_named(name):
    row = {"submission": name, "assignment": "a", "refused": "", "total": 1, "points": 1}
    (said,) = Rules([BOB, ELEVEN]).apply([row], {}, [])
    assert said == (
        f"{name} is of nobody in the roster, as 4711 may be from Canvas: put the student's number "
        "at the beginning of its name"
    )
    assert owners(f"4711_{name}", [BOB, ELEVEN]) == [ELEVEN]
    row["submission"] = "hw_5012_5013_final"
    assert Rules([BOB, ELEVEN]).apply([row], {}, []) == [
        "hw_5012_5013_final is of nobody in the roster"
    ]


@pytest.mark.parametrize("name", ["bob_assignment_1", "hw 1/bob", "assignment-1-bob"])
def test_the_number_of_an_assignment_does_not_outweigh_a_first_name(name):
    students = [Student("1", "Ann Lee"), Student("2", "Bob Stone")]
    assert {one.name for one in owners(name, students)} == {"Ann Lee", "Bob Stone"}
    assert owners(name.replace("bob", "ann"), students) == students[:1]
    assert owners("bob-2", students) == students[1:]


def test_a_file_whose_number_and_name_are_of_two_is_given_to_nobody():
    row = {"submission": "hw 1 ann lee", "assignment": "a", "refused": "", "total": 1, "points": 1}
    (said,) = Rules([BOB, ANN]).apply([row], {}, [])
    assert said == (
        "hw 1 ann lee may be of 1 (Bob Stone), 2 (Ann Lee), so it is given to nobody: put the "
        "student's number, and no other, into its name"
    )
    assert not {"number", "name", "counts"} & row.keys()


@pytest.mark.parametrize("ways", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_letters_with_accents_match_however_a_computer_writes_them(tmp_path, ways):
    in_roster, in_file = (unicodedata.normalize(way, "José Peña") for way in ways)
    (tmp_path / "roster.csv").write_text(f"number,name\nä1,{in_roster}\n")
    students = read(tmp_path / "roster.csv")
    assert owners(in_file, students) == students
    assert owners(unicodedata.normalize("NFD", "hw_Ä1"), students) == students


@pytest.mark.parametrize(
    ("names", "day", "says"),
    [
        (("a", "b", "c"), "03", "all 3 files were written after the deadline"),
        (
            ("leeann_LATE_12_5013_x", "b", "c"),
            "01",
            "late by the name that Canvas gave, in time by the time of the file: "
            "leeann_LATE_12_5013_x",
        ),
        (
            ("leeann_12_5013_x", "b"),
            "03",
            "late by the time of the file, in time by the name that Canvas gave: leeann_12_5013_x",
        ),
        (("leeann_12_5013_x", "noeben_13_5014_x", "c"), "01", ""),
    ],
)
def test_times_that_cannot_be_those_of_handing_in_are_doubted(
    course, grade, tmp_path, names, day, says
):
    for name in names:
        hand_in(course, tmp_path / "in" / f"{name}.ipynb", at=f"2026-12-{day}T12:00")
    _, said = grade("--due", DUE)
    doubts = [line for line in said.splitlines() if "time of the file" in line or "?" in line]
    assert bool(says) == bool(doubts) == ("days_late and deducted follow" in said or "?" in said)
    assert all(says in line for line in doubts)


EXPORT = (
    "Student,ID,SIS User ID,SIS Login ID,Root Account,Section,Texts (991),Current Score\n"
    "    Points Possible,,,,,,4,(read only)\n"
    '"Lee, Ann",12,4711,ann@x.org,u,S1,,\n"Noe, Ben",13,4712,ben@x.org,u,S1,,\n'
    '"Student, Test",99,,,,S1,,\n'
)


@pytest.mark.parametrize(
    ("export", "lines"),
    [
        (
            EXPORT,
            [
                "Student,ID,SIS User ID,SIS Login ID,Root Account,Section,Texts (991)",
                '"Lee, Ann",12,4711,ann@x.org,u,S1,3.0',
            ],
        ),
        (
            EXPORT.replace("Texts (991)", "Essay (990)"),  # Canvas makes a column, with its points
            [
                "Student,ID,SIS User ID,SIS Login ID,Root Account,Section,texts",
                "    Points Possible,,,,,,4",
                '"Lee, Ann",12,4711,ann@x.org,u,S1,3.0',
            ],
        ),
    ],
)
def test_a_table_for_canvas(course, grade, tmp_path, export, lines):
    (tmp_path / "canvas.csv").write_text(export)
    hand_in(course, tmp_path / "in" / "leeann_12_5013_texts.ipynb")
    hand_in(course, tmp_path / "in" / "noeben_LATE_13_5012_texts-1.ipynb")
    grade("--roster", "canvas.csv")
    give(tmp_path / "grades" / "by_hand.csv", {"leeann_12_5013_texts": "1"})
    _, said = grade("--roster", "canvas.csv", "--for", "canvas")
    assert "not in canvas.csv until their texts are marked: Noe, Ben\n" in said
    assert (tmp_path / "grades" / "canvas.csv").read_text().splitlines() == lines
    numbers = [row["number"] for row in rows_of(tmp_path / "grades" / "grades.csv")]
    assert numbers == ["4711", "4712"]


def test_reports_of_files_that_are_gone_are_named(course, grade, tmp_path):
    hand_in(course, tmp_path / "in" / "ann.ipynb")
    _, said = grade()
    assert "do not count any more" not in said
    (tmp_path / "in" / "ann.ipynb").rename(tmp_path / "in" / "ann lee.ipynb")
    _, said = grade()
    assert "do not count any more, move them away before you hand reports out: ann.md\n" in said


def test_a_comment_on_a_text_is_in_the_students_report(course, grade, tmp_path):
    hand_in(course, tmp_path / "in" / "ann.ipynb")
    grade()
    hand = tmp_path / "grades" / "by_hand.csv"
    rows = rows_of(hand)
    assert rows[0]["comment"] == ""
    for row, points in zip(rows, ("2", "0"), strict=False):
        row |= {"points": points, "comment": "the interval | is\nmissing"}
    with hand.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    grade()
    text = (tmp_path / "grades" / "ann.md").read_text()
    assert "2 of 2 | the interval \\| is missing |" in text


def test_a_guest_without_a_student_number_goes_by_the_platforms(course, grade, tmp_path):
    (tmp_path / "canvas.csv").write_text(EXPORT.replace('"Noe, Ben",13,4712', '"Guest, Gus",13,'))
    hand_in(course, tmp_path / "in" / "guestgus_13_5012_texts.ipynb")
    grade("--roster", "canvas.csv")
    rows = {row["number"]: row["name"] for row in rows_of(tmp_path / "grades" / "grades.csv")}
    assert rows["13"] == "Guest, Gus" and "4711" in rows


@pytest.mark.parametrize("platform", ["canvas", "moodle"])
def test_who_handed_in_nothing_is_left_out_or_gets_zero(course, grade, tmp_path, platform):
    export = EXPORT.replace('"Noe, Ben",13,4712', '"Ray, Cleo",13,4713')
    sheet = SHEET.replace("22,Ben Noe", "22,Cleo Ray")
    name = {"canvas": "Ray, Cleo", "moodle": "Cleo Ray"}[platform]
    (tmp_path / "roster.csv").write_text({"canvas": export, "moodle": sheet}[platform])
    hand_in(course, tmp_path / "in" / "ann lee.ipynb")
    words = ["--roster", "roster.csv", "--for", platform]
    for _ in range(2):
        _, said = grade(*words)
        give(tmp_path / "grades" / "by_hand.csv", {"ann lee": "1"})
    table = tmp_path / "grades" / f"{platform}.csv"
    assert "Cleo" not in table.read_text()
    assert f"texts: nothing was handed in by 1 in the roster: {name}\n" in said
    assert f"not in {platform}.csv, as there is no submission to grade: {name} (after the" in said

    _, said = grade(*words, "--zeros")
    (line,) = [line for line in table.read_text().splitlines() if "Cleo" in line]
    assert ",0.0" in line
    assert "not in" not in said
    rows = {row["name"]: row for row in rows_of(tmp_path / "grades" / "grades.csv")}
    assert (rows[name]["total"], rows[name]["refused"]) == ("0.0", "nothing was handed in")


def test_a_zero_waits_for_the_end_of_an_extension():
    students = [
        Student("1", "Ann Lee"),
        Student("2", "Ben Noe", due=moment("2999-01-01")),
        Student("3", "Cleo Ray", due=moment("2020-01-01")),
    ]
    for due, totals in (("2020-01-01", [0.0, None, 0.0]), ("2999-01-01", [None, None, 0.0])):
        rows = []
        Rules(students, moment(due), zeros=True).apply(rows, {}, ["a"])
        assert [row["total"] for row in rows] == totals


def test_no_zero_for_a_student_who_may_own_a_file():
    students = [BOB, ANN, ELEVEN]

    def totals(name, assignment="a"):
        row = {"submission": name, "assignment": assignment, "refused": "", "total": 1, "points": 1}
        rows = [row]
        said = Rules(students, zeros=True).apply(rows, {}, ["a"])
        return {row["number"]: (row["total"], row["refused"]) for row in rows[1:]}, said[-1]

    nothing, zero = (None, "nothing was handed in"), (0.0, "nothing was handed in")
    perhaps = (None, "perhaps hw 1 ann lee, which may be theirs")
    assert totals("hw 1 ann lee")[0] == {"1": perhaps, "2": perhaps, "4711": zero}
    found, said = totals("homework")
    assert found == dict.fromkeys(["1", "2", "4711"], nothing)
    assert said == (
        "--zeros gives no zeros, as one of them may own homework: put the student's number at "
        "the beginning of its name, or take it out of the folder"
    )
    assert totals("homework", "b")[0] == dict.fromkeys(["1", "2", "4711"], zero)


@pytest.mark.parametrize("header", ["Number,NAME,Due", " number ,Name,due", "NUMBER,name,DUE"])
def test_the_header_of_a_roster_may_have_any_case(tmp_path, header):
    (tmp_path / "roster.csv").write_text(f"{header}\n4711,Ann Lee,2026-12-04\n")
    (student,) = read(tmp_path / "roster.csv")
    assert (student.number, student.name) == ("4711", "Ann Lee")
    assert student.due == moment("2026-12-04")


SHEET = (
    "Identifier,Full name,Email address,Status,Grade,Maximum grade,Last modified (grade),Feedback\n"
    'Participant 21,Ann Lee,ann@x.org,Submitted,,4.00,-,"a, b"\n'
    "Participant 22,Ben Noe,ben@x.org,Submitted,,4.00,-,\n"
)


@pytest.mark.parametrize(
    ("roster", "lines", "says"),
    [
        (SHEET, SHEET.replace("Submitted,,", "Submitted,4.0,").splitlines(), ""),
        (
            SHEET.replace("4.00", "100.00"),
            SHEET.replace("Submitted,,4.00", "Submitted,4.0,100.00").splitlines(),
            "the worksheet's maximum grade is 100.00, and texts has 4 points",
        ),
        (
            "Identifier,Full name,ID number,Email address\n"
            "Participant 21,Ann Lee,4711,ann@x.org\nParticipant 22,Ben Noe,4712,ben@x.org\n",
            [
                "ID number,Full name,Email address,texts",
                "4711,Ann Lee,ann@x.org,4.0",
                "4712,Ben Noe,ben@x.org,4.0",
            ],
            "",
        ),
        (
            "Full name,Email address\nAnn Lee,ann@x.org\nBen Noe,ben@x.org\n",
            [
                "Full name,Email address,texts",
                "Ann Lee,ann@x.org,4.0",
                "Ben Noe,ben@x.org,4.0",
            ],
            "",
        ),
    ],
)
def test_a_table_for_moodle(course, grade, tmp_path, roster, lines, says):
    (tmp_path / "moodle.csv").write_text(roster)
    for name in ("Ann Lee_21", "Ben Noe_22"):
        hand_in(course, tmp_path / "in" / f"{name}_assignsubmission_file_" / "texts.ipynb")
    grade("--roster", "moodle.csv")
    rows = rows_of(tmp_path / "grades" / "by_hand.csv")
    give(tmp_path / "grades" / "by_hand.csv", {row["submission"]: "2" for row in rows})
    _, said = grade("--roster", "moodle.csv", "--for", "moodle")
    assert (tmp_path / "grades" / "moodle.csv").read_text().splitlines() == lines
    assert says in said
    assert bool(says) == ("maximum" in said)


def test_the_feedback_in_moodles_worksheet_stays_as_it_is(tmp_path):
    sheet = SHEET.replace('"a, b"', '"- see the ""interval"", please"').replace("Ben", "=Ben")
    (tmp_path / "sheet.csv").write_text(sheet)
    rules = Rules.of(tmp_path / "sheet.csv", None, 0, "last", "moodle")
    names = [f"{name}_assignsubmission_file_/a" for name in ("Ann Lee_21", "=Ben Noe_22")]
    reports = [Report(name, "a", [Outcome("c", "C", 4, 4, "fine")]) for name in names]
    marks.write(reports, tmp_path / "out", rules)
    table = (tmp_path / "out" / "moodle.csv").read_bytes().decode().splitlines()
    assert table == sheet.replace("Submitted,,", "Submitted,4,").splitlines()
    assert "'=Ben Noe" in (tmp_path / "out" / "grades.csv").read_text()


@pytest.mark.parametrize("name", ["canvas.csv", "grades.csv", "by_hand.csv"])
def test_a_roster_is_never_replaced_by_a_table(course, grade, tmp_path, name):
    hand_in(course, tmp_path / "in" / "4711.ipynb")
    (tmp_path / "grades").mkdir()
    roster = tmp_path / "grades" / name
    roster.write_text(EXPORT)
    code, said = grade("--roster", f"in/../grades/{name}", "--for", "canvas")
    assert (code, roster.read_text()) == (1, EXPORT)
    assert f"grades/{name} would be replaced by the table of this name: move it out" in said
    assert "Traceback" not in said


WRONG = {
    "no column": ("nummer,name\n1,Ann\n", [], "has no column number"),
    "no lines": ("number,name\n", [], "has no students in it"),
    "no number": ("number,name\n,Ann\n", [], "line 2: Ann has no number"),
    "one number": ("number,name\n1,Ann\n1,Ben\n", [], "line 3: Ben has the number 1 of Ann"),
    "extension": ("number,name,due\n1,Ann,soon\n", [], "line 2: has 'soon', which is no date"),
    "no date": (OWN, ["--due", "1.12.2026"], "--due has '1.12.2026', which is no date: write"),
    "late": (OWN, ["--late", "10"], "--late needs a deadline"),
    "percent": (OWN, ["--due", DUE, "--late", "101"], "percent for each day, from 0 to 100"),
    "keep": (OWN, ["--keep", "first"], "last, in-time, best"),
    "in time": (OWN, ["--keep", "in-time"], "--keep in-time needs a deadline"),
    "platform": (OWN, ["--for", "ilias"], "canvas, moodle"),
    "not canvas": (OWN, ["--for", "canvas"], "has no column Student, ID, Section"),
    "not there": (None, [], "cannot read roster.csv"),
    "bytes": ("PK\x00\x03\n", [], "roster.csv "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_said_and_nothing_is_lost(course, grade, tmp_path, name):
    text, words, says = WRONG[name]
    if text is not None:
        (tmp_path / "roster.csv").write_text(text)
    hand_in(course, tmp_path / "in" / "ann.ipynb")
    (tmp_path / "grades").mkdir()
    (tmp_path / "grades" / "grades.csv").write_text("before")
    code, said = grade("--roster", "roster.csv", *words)
    assert code in (1, 2)
    assert says in said
    assert "Traceback" not in said
    assert [p.name for p in (tmp_path / "grades").iterdir()] == ["grades.csv"]
    assert (tmp_path / "grades" / "grades.csv").read_text() == "before"


def test_the_rules_of_a_class_need_a_class(course, grade, tmp_path, capsys):
    hand_in(course, tmp_path / "ann.ipynb")
    words = ["grade", "ann.ipynb", "--assignments", str(course), "--due", DUE]
    assert cli.main(words) == 1
    assert "are for a folder of submissions" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    code, said = grade("--for", "moodle")
    assert (code, "need a roster" in said) == (1, True)
    code, said = grade("--zeros")
    assert (code, "need a roster" in said) == (1, True)


def test_of_files_with_equal_times_the_grader_asks_for_the_last():
    def counts(keep, times):
        names = ("4711 a", "4711 b", "1")
        rows = [
            {"submission": n, "assignment": "a", "refused": "", "total": 1, "points": 1}
            for n in names
        ]
        said = Rules([BOB, ELEVEN], keep=keep).apply(rows, dict(zip(names, times, strict=True)), [])
        return [row["counts"] for row in rows], said

    several = "of several files by one student, --keep last counts: X Yz: 4711 b, not 4711 a"
    assert counts("last", (1, 2, 2)) == (["no", "yes", "yes"], [several])
    found, said = counts("last", (2, 2, 2))
    assert found == ["no (same time)", "yes", "yes"]
    assert said == [
        "4711 a, 4711 b have the same time: which is the last? Now it is 4711 b, by its name. "
        "Correct the times (touch --date 2026-12-01T12:00 FILE)",
        several,
    ]
    assert counts("best", (2, 2, 2))[0] == ["no", "yes", "yes"]


@pytest.mark.parametrize("time", [1e13, 1e20, -1e13])
def test_a_time_that_is_no_date_is_named_and_stops_nobody(time):
    row = {"submission": "ann", "of": 2, "by_hand_of": 0, "total": 2.0, "refused": ""}
    said = Rules(due=moment(DUE), late=10).apply([row], {"ann": time}, [])
    assert said == [
        "the file of ann has a time that is no date, so it counts as in time: correct it "
        "(touch --date 2026-12-01T12:00 FILE)"
    ]
    assert row["total"] == 2.0


@pytest.mark.parametrize(
    "saved",
    [
        "number,name\n4711,Jürgen Groß\n".encode("utf-16"),
        "number\tname\r\n4711\tJürgen Groß\r\n".encode("utf-16"),
        "number,name\r4711,Jürgen Groß\r".encode(),
        "sep=|\r\nnumber|name\r\n4711|Jürgen Groß\r\n".encode(),
        '"sep=;"\nnumber;name;\n4711;Jürgen Groß;;\n'.encode("cp1252"),
    ],
)
def test_a_roster_is_read_as_spreadsheets_save_it(tmp_path, saved):
    (tmp_path / "roster.csv").write_bytes(saved)
    assert read(tmp_path / "roster.csv") == [Student("4711", "Jürgen Groß")]


ODD = {
    "due": (b"number,name,due\n1,A,2026-12-04\n", {}, "add --due 2026-12-01T23:59, or empty"),
    "part": (OWN.encode(), {"due": DUE, "late": 0.1}, "is below 1 percent a day: write --late 10"),
    "workbook": (b"PK\x03\x04\xff\x00", {}, "roster.csv is the file of a spreadsheet: save it as"),
    "comma": (b"number,name\n1,A B\n2,Lee, Ann\n", {}, "line 3 has more cells than the first line"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_was_once_read_wrong_is_refused(tmp_path, name):
    saved, words, says = ODD[name]
    (tmp_path / "roster.csv").write_bytes(saved)
    words = {"due": None, "late": 0.0, "keep": "last", "platform": None} | words
    with pytest.raises(Error, match=says):
        Rules.of(tmp_path / "roster.csv", **words)


def test_an_archive_is_to_be_unzipped(course, tmp_path, capsys):
    (tmp_path / "in.zip").write_bytes(b"PK")
    assert cli.main(["grade", str(tmp_path / "in.zip"), "--assignments", str(course)]) == 1
    assert "unzip it into a folder first, and name the folder" in capsys.readouterr().err
