"""The class: who is in it.

A roster is a CSV file with a line for each student: one of your own with the columns number and
name, or an export of Canvas or Moodle.
"""

import codecs
import csv
import io
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ddpp.foundation.errors import Error

# the columns of a roster of one's own, and as Canvas and Moodle name them; the first that is there
NUMBER = ("number", "SIS User ID", "ID number", "SIS Login ID", "ID", "Email address", "Identifier")
NAME = ("name", "Student", "Full name")
ACCOUNT = ("ID", "Identifier")  # by which Canvas and Moodle name the files that they hand out
NOT_STUDENTS = ("points possible", "student, test")  # lines of Canvas's export
# how the files of spreadsheets begin: xlsx and ods, and the old xls
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@dataclass(frozen=True)
class Student:
    """A line of the roster. due: an extension, in place of the deadline of the class."""

    number: str
    name: str
    account: str = ""
    due: datetime | None = None
    line: dict[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.number} ({self.name})" if self.name else self.number

    def named(self) -> set[str]:
        """Return the ways to write the name as one word, in either order."""
        words = letters(self.name)
        first = letters(self.name.partition(",")[2])
        turned = first + words[: len(words) - len(first)]
        return {"".join(words), "".join(turned)} - {""}


def one_way(text: str) -> str:
    """Return text in the one of its spellings in Unicode by which names are compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def letters(text: str) -> list[str]:
    """Return the words of letters in a name, as they are compared."""
    return re.findall(r"[^\W\d_]+", one_way(text))


def table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV file as any spreadsheet saves it, and return its columns and its lines."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    if raw.startswith(WORKBOOKS):
        raise Error(f"{path} is the file of a spreadsheet: save it as CSV UTF-8")
    text = _text(raw)
    told = re.match(r'"?sep=([,;\t|])"?[\r\n]+', text)  # which spreadsheets do not show
    text = text[told.end() :] if told else text
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    comma = told[1] if told else max(",;\t", key=first.count)
    try:
        # also with the line ends of an old Macintosh; those within a cell stay as they are
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma)
        rows = list(reader)
    except csv.Error as e:
        raise Error(f"{path} is not a CSV file ({e}): save it as one") from None
    for i, row in enumerate(rows, 2):
        if any(row.pop(None, [])):
            raise Error(
                f"{path}, line {i} has more cells than the first line: put text with a {comma!r} "
                'into double quotes, as in "Lee, Ann"'
            )
    return list(reader.fieldnames or []), [{k: v or "" for k, v in r.items()} for r in rows]


def _text(raw: bytes) -> str:
    """Decode what a spreadsheet saved."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # an old one
        return raw.decode("cp1252", "replace")


def moment(text: str, where: str = "--due") -> datetime:
    """Read a deadline, to its end: a date without a time is the whole day, 23:59 the whole minute.

    A time without a zone is taken in the zone of this computer.
    """
    text = text.strip()
    try:
        at = datetime.fromisoformat(text)
        if re.fullmatch(r"[\dW-]+", text):
            at = at.replace(hour=23, minute=59)
        # the whole of it: times of files have fractions of a second
        return (at if at.second else at.replace(second=59, microsecond=999999)).astimezone()
    except (ValueError, OverflowError):
        raise Error(
            f"{where} has {text[:40]!r}, which is no date: write it as 2026-12-01T23:59"
        ) from None


def read(path: Path) -> list[Student]:
    """Read a roster, or raise Error where a column is missing, or two students have one number."""
    columns, rows = table(path)
    number = _column(path, columns, NUMBER)
    name = _column(path, columns, NAME)
    account, extension = _named(columns, ACCOUNT), _named(columns, ("due",))
    students: dict[str, Student] = {}
    for i, row in enumerate(rows, 2):
        who, called = (
            unicodedata.normalize("NFC", row[column].strip()) for column in (number, name)
        )
        if not who and account:  # a guest of the course has the platform's number only
            who = row[account].strip()
        if not (who or called) or called.casefold().startswith(NOT_STUDENTS):
            continue
        if not who:
            raise Error(f"{path}, line {i}: {called} has no {number}")
        if who in students:
            raise Error(
                f"{path}, line {i}: {called} has the {number} {who} of {students[who].name}: each "
                "student needs one of their own"
            )
        late = row[extension].strip() if extension else ""
        due = moment(late, f"{path}, line {i}:") if late else None
        digits = re.search(r"\d+", row[account]) if account else None
        students[who] = Student(who, called, digits[0] if digits else "", due, row)
    if not students:
        raise Error(f"{path} has no students in it")
    return list(students.values())


def _named(columns: list[str], names: tuple[str, ...]) -> str | None:
    """Return the column with the first of these names that is there, whatever its case."""
    known = {column.strip().casefold(): column for column in reversed(columns)}
    return next((known[name.casefold()] for name in names if name.casefold() in known), None)


def _column(path: Path, columns: list[str], names: tuple[str, ...]) -> str:
    found = _named(columns, names)
    if not found:
        raise Error(
            f"{path} has no column {names[0]} ({names[1]} in Canvas, {names[2]} in Moodle): its "
            f"first line has {', '.join(columns)[:200] or 'nothing'}"
        )
    return found
