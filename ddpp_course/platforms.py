"""The table that Canvas or Moodle imports: the students whose total is complete.

Their formats: Canvas's guide "How do I import grades in the Gradebook?"; MoodleDocs' pages
"Assignment activity", offline grading worksheet, and "Grade import".
"""

import re
from collections import defaultdict

from ddpp_course.roster import Student

Table = tuple[list[str], list[dict]]  # columns and lines
WORKSHEET = ("Identifier", "Grade")  # columns by which Moodle's grading worksheet is known
MOST = "maximum grade"  # its column, in any case of letters


def table(platform: str, students: list[Student], rows: list[dict]) -> tuple[Table, list[str]]:
    """Return the table for a platform, and notes for the instructor.

    - platform: canvas or moodle.
    - students: the roster, which is an export of that platform, or for Moodle one's own.
    - rows: of grades.csv, with the columns of the roster.
    """
    totals: dict[str, dict[str, float]] = defaultdict(dict)
    graded = [row for row in rows if row.get("submission") and not row["refused"]]
    possible = {row["assignment"]: row["of"] + row["by_hand_of"] for row in graded}
    most: dict[str, float] = {}
    for row in rows:
        name = row["assignment"]
        if row.get("counts") == "yes" and row["total"] is not None and name in possible:
            totals[row["number"]][name] = row["total"]
            most[name] = possible[name]
    known = [student for student in students if student.number in totals]
    said = _left_out(platform, rows, totals)
    if platform == "canvas":
        return _canvas(known, totals, most), said
    line = students[0].line if students else {}
    if all(column in line for column in WORKSHEET) and len(most) < 2:
        filled, notes = _worksheet(known, totals, most)
        return filled, said + notes
    return _gradebook(known, totals, sorted(most)), said


def _left_out(platform: str, rows: list[dict], totals: dict) -> list[str]:
    """Say whose grade the table does not have, and why."""
    graded = {row.get("number") for row in rows if row["submission"] and not row["refused"]}
    missing, unmarked = {}, {}
    for row in rows:
        number = row.get("number")
        if not number or row["assignment"] in totals.get(number, {}):
            continue
        if not row["submission"] or number not in graded:
            missing[number] = row["name"] or number
        elif row.get("counts") == "yes":
            unmarked[number] = row["name"] or number
    said = []
    if missing:
        names = ", ".join(missing.values())[:500]
        said.append(
            f"not in {platform}.csv, as there is no submission to grade: {names} "
            "(after the deadline --zeros gives 0 to those who handed in nothing)"
        )
    if unmarked:
        names = ", ".join(unmarked.values())[:500]
        said.append(f"not in {platform}.csv until their texts are marked: {names}")
    return said


def _canvas(students: list[Student], totals: dict, most: dict[str, float]) -> Table:
    """Return the columns of the export up to Section, then one for each assignment."""
    there = list(students[0].line) if students else ["Student", "ID", "Section"]
    first = there[: there.index("Section") + 1]
    column = {name: _alike(name, there) or name for name in sorted(most)}
    lines = []
    if new := {name: most[name] for name in column if column[name] not in there}:
        lines.append({first[0]: "    Points Possible"} | new)
    for student in students:
        points = {column[name]: total for name, total in totals[student.number].items()}
        lines.append({c: student.line[c] for c in first} | points)
    return [*first, *column.values()], lines


def _alike(name: str, columns: list[str]) -> str | None:
    """Find the column of an assignment in Canvas's export: its name, then a number in brackets."""
    plain = lambda text: re.sub(r"[\W_]+", "", text).casefold()
    found = (c for c in columns if plain(re.sub(r"\(\d+\)\s*$", "", c)) == plain(name))
    return next(found, None)


def _worksheet(students: list[Student], totals: dict, most: dict) -> tuple[Table, list[str]]:
    """Return the lines of Moodle's grading worksheet, with the column Grade filled in."""
    points = {number: total for number, given in totals.items() for total in given.values()}
    lines = [student.line | {"Grade": points[student.number]} for student in students]
    columns: list[str] = list(lines[0]) if lines else [*WORKSHEET]
    maxima = {line[c] for line in lines for c in columns if c.casefold() == MOST and line[c]}
    says = [
        f"the worksheet's maximum grade is {', '.join(sorted(maxima))}, and {name} has {of:g} "
        "points: change the maximum in Moodle's settings of the assignment, and download it again"
        for name, of in most.items()
        if any(_number(text) != of for text in maxima)
    ]
    return (columns, lines), says


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None


def _gradebook(students: list[Student], totals: dict, names: list[str]) -> Table:
    """Return a table for Moodle's grade import, which asks what each column is."""
    by_mail = [s.line["Email address"] for s in students if s.line.get("Email address")]
    lines = []
    for student in students:
        mail = {"Email address": student.line.get("Email address", "")} if by_mail else {}
        number = {} if student.number in by_mail else {"ID number": student.number}
        lines.append(number | {"Full name": student.name} | mail | totals[student.number])
    known = ["ID number", "Full name", "Email address"]
    return [*(c for c in known if any(c in line for line in lines)), *names], lines
