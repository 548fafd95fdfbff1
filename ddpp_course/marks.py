"""The class as tables: grades.csv, which the grader writes, and by_hand.csv, for points by hand.

The grader makes by_hand.csv once, reads it, and never writes it again.
"""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp_course import messages, platforms, report
from ddpp_course.checks import told
from ddpp_course.report import Grade, Report
from ddpp_course.roster import table
from ddpp_course.rules import NO, TIED, WHEN, WHOSE, Rules

BY_HAND = tuple("submission assignment task title points of says version comment".split())
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # by which a spreadsheet knows one
FIRST = tuple("submission assignment total points of by_hand by_hand_of refused notes".split())

Key = tuple[str, str, str]  # submission, assignment, task


@dataclass(frozen=True)
class ByHand:
    """The points that a person gave, with comments, and what could not be used, in words."""

    points: dict[Key, float]
    comments: dict[Key, str]
    complaints: list[str]


def write(
    reports: list[Report],
    out: Path,
    rules: Rules = Rules(),
    times: dict[str, float] | None = None,
    assignment: str | None = None,
) -> list[str]:
    """Write OUT/grades.csv, with the points of OUT/by_hand.csv. Return notes for the instructor.

    - reports: one for each submission.
    - out: the folder of the reports.
    - rules: the roster, the deadline, and what counts.
    - times: {submission: when its file was written}.
    - assignment: the one that everybody should have handed in; None: all that somebody did.

    Raises Error where the roster is one of the tables that are written.
    """
    rules.check(out)
    asked = {
        _key(r, o.task): (o, f"v{r.sha256[:7]}")
        for r in reports
        for o in r.outcomes
        if o.points is None
    }
    hand = out / "by_hand.csv"
    if asked and not hand.exists():
        files.write_bytes(hand, _template(asked))
    given = (
        read(hand, {key: (o.of, sha) for key, (o, sha) in asked.items()})
        if hand.exists()
        else ByHand({}, {}, [])
    )
    said = [f"{hand}: {complaint}" for complaint in given.complaints]
    said += _missing(hand, asked)
    said += _older(reports)
    columns, rows = _table(reports, given.points)
    asked_for = [assignment] if assignment else sorted({r.assignment for r in reports} - {""})
    said += rules.apply(rows, times or {}, asked_for)
    columns[1:1] = rules.columns
    said += report.replace(out / "grades.csv", _csv(columns, rows))
    for one, row in zip(reports, rows, strict=False):  # students without a submission follow
        said += _write_graded(one, row, given, out)
    if rules.platform:
        exported, notes = platforms.table(rules.platform, rules.students or [], rows)
        said += notes
        # what the platform itself wrote goes back to it as it is
        said += report.replace(out / f"{rules.platform}.csv", _csv(*exported, ours=False))
    return said


def _write_graded(one: Report, row: dict, given: ByHand, out: Path) -> list[str]:
    """Put the grade into the report for the student, and return notes for the instructor."""
    if one.refused:
        return []
    mine = {o.task: key for o in one.outcomes if (key := _key(one, o.task)) in given.points}
    known = {key: row[key] for key in ("name", "handed_in", "days_late", "deducted") if key in row}
    grade = Grade(
        given={task: given.points[key] for task, key in mine.items()},
        comments={task: given.comments[key] for task, key in mine.items()},
        total=row["total"],
        counts=row.get("counts") not in (NO, TIED),
        **known,
    )
    try:
        return one.write_graded(out, grade)
    except (Error, OSError, ValueError) as e:
        return [f"the report of {one.submission} could not be written: {told(e, name=False)}"]


def read(path: Path, asked: dict[Key, tuple[float, str]]) -> ByHand:
    """Read the points in by_hand.csv, as any spreadsheet saves it.

    - path: of the file.
    - asked: {what can be given: (points at most, version of the submission)}.
    """
    points, comments, complaints = {}, {}, []
    for number, row in enumerate(_rows(path), 2):
        key = _meant(row, asked)
        written = (row.get("points") or "").strip().replace(",", ".")
        if not written:
            continue
        try:
            value = float(written)
        except ValueError:
            value = -1
        if key not in asked:
            complaints.append(
                f"line {number} is of no submission that is graded here ({' '.join(key)[:100]})"
            )
            continue
        most, version = asked[key]
        if not 0 <= value <= most:
            complaints.append(
                f"line {number} has the points {written[:20]!r}, which is no number up to {most:g}"
            )
        elif key in points:
            complaints.append(
                f"line {number} says once more what {' '.join(key)[:100]} gets: the first line "
                "counts"
            )
        else:
            points[key], comments[key] = value, _bare(row.get("comment"))
            if _bare(row.get("version")) not in ("", version):
                complaints.append(
                    f"line {number} was given to another version of the file of {key[0][:100]}: "
                    f"look again, and put {version} into the column version"
                )
    return ByHand(points, comments, complaints)


def cell(text: str) -> str:
    """Return text from outside so that a spreadsheet takes it as text, never as a formula."""
    return f"'{text}" if text.startswith(FORMULA) and len(text) > 1 else text


def _table(reports: list[Report], given: dict[Key, float]) -> tuple[list[str], list[dict]]:
    """Return grades.csv: one line for each submission, one column for each task.

    The total is empty while points by hand are missing. The name of a column begins with its
    assignment where there are several, and where a task has the name of another column.
    """
    several = len({one.assignment for one in reports if one.assignment}) > 1
    apart = lambda task: several or task in (*FIRST, *WHOSE, *WHEN)
    name = lambda one, o: f"{one.assignment} {o.task}" if apart(o.task) else o.task
    tasks = dict.fromkeys(name(one, outcome) for one in reports for outcome in one.outcomes)
    rows = []
    for one in reports:
        each = [given.get(_key(one, o.task), o.points) for o in one.outcomes]
        marked = [points for points in each if points is not None]
        total = None if one.refused or len(marked) < len(each) else sum(marked)
        row = {key: getattr(one, key) for key in ("submission", "assignment", "points", "of")}
        texts = [p for o, p in zip(one.outcomes, each, strict=True) if o.points is None]
        given_now = [points for points in texts if points is not None]
        row |= {"total": total, "by_hand": sum(given_now) if given_now else None}
        row |= {"by_hand_of": one.by_hand, "refused": one.refused, "notes": len(one.notes)}
        rows.append(
            row | {name(one, o): points for o, points in zip(one.outcomes, each, strict=True)}
        )
    return [*FIRST, *tasks], rows


def _csv(columns: list[str], rows: list[dict], ours: bool = True) -> bytes:
    """Return a table as a CSV file.

    ours: whether text in it is marked, so that no spreadsheet takes it for a formula.
    """
    mark = cell if ours else str
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(
        {key: mark(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows
    )
    return text.getvalue().encode(errors="backslashreplace")


def _template(asked: dict) -> bytes:
    values = (
        (*key, outcome.title, None, outcome.of, outcome.says, version, None)
        for key, (outcome, version) in asked.items()
    )
    rows = [dict(zip(BY_HAND, row, strict=True)) for row in values]
    return _csv(list(BY_HAND), rows)


def _missing(hand: Path, asked: dict) -> list[str]:
    """Write the rows that by_hand.csv lacks to by_hand.new.csv, to be copied from there."""
    new = hand.with_name("by_hand.new.csv")
    there = {_meant(row, asked) for row in _rows(hand)} if hand.exists() else set()
    missing = {key: found for key, found in asked.items() if key not in there}
    if not missing:
        if new.is_file():
            report.keep(new)  # perhaps something was typed into it
            new.unlink()
        return []
    said = report.replace(new, _template(missing))
    who = ", ".join(dict.fromkeys(key[0] for key in missing))
    return [*said, f"{hand} has no line for {who[:500]}: copy the lines from {new}"]


def _older(reports: list[Report]) -> list[str]:
    """Say which files are left out, as a newer one counts."""
    begin, end = messages.say("grader", "older", name="\0").split("\0")
    names = [
        f"{note.removeprefix(begin).removesuffix(end)} ({one.submission})"
        for one in reports
        for note in one.notes
        if note.startswith(begin) and note.endswith(end)
    ]
    return [f"older versions, not graded: {', '.join(names)[:500]}"] if names else []


def _key(one: Report, task: str) -> Key:
    """Return the key of a text as it is read from a table, where spaces at the ends are lost."""
    return _bare(one.submission), _bare(one.assignment), _bare(task)


def _meant(row: dict, asked: Collection[Key]) -> Key:
    """Return the key of a line, of those that are asked for where a spreadsheet took its zeros."""
    key = (_bare(row.get("submission")), _bare(row.get("assignment")), _bare(row.get("task")))
    if key in asked:
        return key
    bare = lambda k: (k[0].lstrip("0"), *k[1:])
    alike = [other for other in asked if bare(other) == bare(key)]
    return alike[0] if len(alike) == 1 else key


def _rows(path: Path) -> list[dict]:
    columns, rows = table(path)
    if columns and not {*BY_HAND[:3], "points"} <= set(columns):
        raise Error(
            f"{path} lacks one of the columns submission, assignment, task and points: put it back"
        )
    return rows


def _bare(text: str | None) -> str:
    """Remove the mark that keeps a spreadsheet from taking text for a formula."""
    text = (text or "").strip()
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text
