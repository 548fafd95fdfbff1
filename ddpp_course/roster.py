"""The class: who is in it, who handed in what and when, and which submission counts.

A roster is a CSV file with a line for each student: one of your own with the columns number and
name, or an export of Canvas or Moodle.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from ddpp.foundation.errors import Error, choose

# the columns of a roster of one's own, and as Canvas and Moodle name them; the first that is there
NUMBER = ("number", "SIS User ID", "ID number", "SIS Login ID", "ID", "Email address", "Identifier")
NAME = ("name", "Student", "Full name")
ACCOUNT = ("ID", "Identifier")  # by which Canvas and Moodle name the files that they hand out
# Canvas: name_ACCOUNT_submission_file, with LATE_ in front of the account; Moodle: Name_ACCOUNT_...
# numbers alone, as in 4711_4712_1_hw, are students': Canvas begins with the letters of a name
PLATFORM = re.compile(
    r"^(?![\W\d]*_(?:LATE_)?\d+_\d+_)[^_/]*_(LATE_)?(\d+)_(\d+_|assignsubmission_)", re.IGNORECASE
)
# what the names of reports end in where names of files were changed
MARK = re.compile(r"~[0-9a-f]{8}(?=/|$)")
# by which browsers, and Canvas, tell apart files of one name
AGAIN = re.compile(r"\(\d{1,2}\)(?=\s*(/|$))")
CANVAS_AGAIN = re.compile(r"-\d{1,2}$")
DATE = re.compile(r"(?<![^\W_])(?<!-)\d{4}-\d\d-\d\d(?!-)(?![^\W_])")
NOT_STUDENTS = ("points possible", "student, test")  # lines of Canvas's export
# columns that the rules add to grades.csv
WHOSE = ("number", "name", "counts")
WHEN = ("handed_in", "days_late", "deducted")
NO, TIED = "no", "no (same time)"  # in the column counts
KEEP = ("last", "in-time", "best")
PLATFORMS = ("canvas", "moodle")
NEEDED = {"canvas": ("Student", "ID", "Section"), "moodle": ()}  # columns of its roster
TOUCH = "touch --date 2026-12-01T12:00 FILE"
COUNTS = (
    "days_late and deducted follow the times of the files: where these are wrong, correct them "
    f"({TOUCH}), or leave --late out"
)
# how the files of spreadsheets begin: xlsx and ods, and the old xls
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
NOTHING = "nothing was handed in"
BUT_REFUSED = "nothing but {names}, which was refused"
PERHAPS = "perhaps {names}, which may be theirs"


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
        words = _letters(self.name)
        first = _letters(self.name.partition(",")[2])
        turned = first + words[: len(words) - len(first)]
        return {"".join(words), "".join(turned)} - {""}


def _one_way(text: str) -> str:
    """Return text in the one of its spellings in Unicode by which names are compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _letters(text: str) -> list[str]:
    """Return the words of letters in a name, as they are compared."""
    return re.findall(r"[^\W\d_]+", _one_way(text))


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


@dataclass(frozen=True)
class Rules:
    """What is done with the points of a class.

    - students: the roster; None: there is none.
    - due: the deadline; None: there is none.
    - late: percent of an assignment's points that each day after it costs, begun days included.
    - keep: which submission of a student counts: the `last`, the last one `in-time` (if none is,
      the last), or the `best`.
    - platform: canvas or moodle, for a table to import there; None: none is written.
    - zeros: whether the total is 0 where nothing was handed in and the deadline is over. While a
      file may be of such a student, it is not.
    - roster: the file with the students.
    """

    students: list[Student] | None = None
    due: datetime | None = None
    late: float = 0.0
    keep: str = "last"
    platform: str | None = None
    zeros: bool = False
    roster: Path | None = None

    @staticmethod
    def of(
        roster: Path | None,
        due: str | None,
        late: float,
        keep: str,
        platform: str | None,
        zeros: bool = False,
    ) -> "Rules":
        """Make the rules from the words of a command, or raise Error where they make no sense."""
        if not 0 <= late <= 100:
            raise Error(f"--late {late:g}: percent for each day, from 0 to 100")
        if 0 < late < 1:
            raise Error(f"--late {late:g} is below 1 percent a day: write --late 10 for 10 %")
        if late and not due:
            raise Error("--late needs a deadline: --due 2026-12-01T23:59")
        if not roster and (platform or zeros or keep != KEEP[0]):
            raise Error("--for, --keep and --zeros need a roster: --roster roster.csv")
        keep = choose("--keep", keep, KEEP)
        if keep == "in-time" and not due:
            raise Error("--keep in-time needs a deadline: --due 2026-12-01T23:59")
        platform = choose("--for", platform, PLATFORMS) if platform else None
        students = read(roster) if roster else None
        if not due and any(student.due for student in students or []):
            raise Error(
                f"{roster} has dates in the column due, and there is no deadline for the others: "
                "add --due 2026-12-01T23:59, or empty that column"
            )
        needed = NEEDED[platform] if platform else ()
        missing = [c for c in needed if students and c not in students[0].line]
        if missing:
            raise Error(
                f"{roster} has no column {', '.join(missing)}: --for canvas needs as the roster "
                "the gradebook that Canvas exports (Grades > Export)"
            )
        return Rules(students, moment(due) if due else None, late, keep, platform, zeros, roster)

    def check(self, out: Path) -> None:
        """Raise Error where the roster is a file that the grader writes into the folder `out`."""
        names = ["grades", "by_hand", "by_hand.new", *([self.platform] if self.platform else [])]
        written = [(out / f"{name}.csv").resolve() for name in names]
        if self.roster and self.roster.resolve() in written:
            raise Error(
                f"the roster {self.roster} would be replaced by the table of this name: move it "
                "out of the folder of the grades"
            )

    @property
    def columns(self) -> list[str]:
        """The columns that grades.csv has on top of its own."""
        return [*(WHOSE if self.students else ()), *(WHEN if self.due else ())]

    def apply(self, rows: list[dict], times: dict[str, float], asked: list[str]) -> list[str]:
        """Put students, lateness and what counts into the rows of grades.csv.

        - rows: changed in place. Students without a submission are added.
        - times: {submission: when its file was written}.
        - asked: the assignments that everybody should have handed in.

        Returns notes for the instructor.
        """
        said, whose = [], {}
        unclear = defaultdict(list)  # number of a student, None for nobody's -> rows
        for row in rows:
            name = row["submission"]
            student = None
            if self.students:
                found = owners(name, self.students)
                student = found[0] if len(found) == 1 else None
                row |= {"number": student.number, "name": student.name} if student else {}
                for number in [] if student else [s.number for s in found] or [None]:
                    unclear[number].append(row)
                if not found:
                    said.append(_nobodys(name, self.students or []))
                elif not student:
                    said.append(
                        f"{name} may be of {', '.join(map(str, found))}, so it is given to "
                        "nobody: put the student's number, and no other, into its name"
                    )
            whose[name] = student
            if self.due and name in times:
                said += self._late(row, times[name], student)
        if self.students:
            said += self._count(rows, times)
            said += self._missing(rows, asked, unclear)
        return said + _doubts(rows)

    def _late(self, row: dict, written: float, student: Student | None) -> list[str]:
        """Put lateness into a row, or say that the file's time is none."""
        try:
            at = datetime.fromtimestamp(written).astimezone()
        except (ValueError, OverflowError, OSError):
            return [
                f"the file of {row['submission']} has a time that is no date, so it counts as in "
                f"time: correct it ({TOUCH})"
            ]
        due = (student.due if student else None) or self.due or at
        # by the clock on the wall: the day on which summer time ends is one day
        passed = at.replace(tzinfo=None) - due.astimezone().replace(tzinfo=None)
        days = max(1, -(-passed // timedelta(days=1))) if at > due else 0
        most = row["of"] + row["by_hand_of"]
        deducted = min(days * self.late, 100) / 100 * most
        row |= {"handed_in": at.isoformat(timespec="seconds"), "days_late": days}
        row["deducted"] = round(deducted, 2)
        if row["total"] is not None:
            row["total"] = round(max(0.0, row["total"] - deducted), 2)
        return []

    def _count(self, rows: list[dict], times: dict[str, float]) -> list[str]:
        """Mark which of a student's submissions of an assignment counts.

        Returns who has several, and where equal times leave the choice to the names.
        """
        together = defaultdict(list)
        for row in rows:
            if row.get("number"):
                row["counts"] = NO
                if not row["refused"]:
                    together[row["number"], row["assignment"]].append(row)

        def rank(row: dict) -> tuple:
            at = (times.get(row["submission"], 0.0), row["submission"])
            earned = row["points"] - row.get("deducted", 0)
            total = earned if row["total"] is None else row["total"]
            first = {"last": 0, "in-time": not row.get("days_late", 0), "best": total}
            return (first[self.keep], *at)

        said, chosen = [], []
        for several in together.values():
            *others, one = sorted(several, key=rank)
            one["counts"] = "yes"
            tied = [row for row in others if self.keep != "best" and rank(row)[:2] == rank(one)[:2]]
            for row in tied:
                row["counts"] = TIED
            names = lambda rows: ", ".join(row["submission"] for row in rows)
            if others:
                student = one["name"] or one["number"]
                chosen.append(f"{student}: {one['submission']}, not {names(others)}")
            if tied:
                said.append(
                    f"{names([*tied, one])} have the same time: which is the last? Now it is "
                    f"{one['submission']}, by its name. Correct the times ({TOUCH})"
                )
        if chosen:
            listed = "; ".join(chosen)[:500]
            said.append(f"of several files by one student, --keep {self.keep} counts: {listed}")
        return said

    def _missing(
        self, rows: list[dict], asked: list[str], unclear: defaultdict[str | None, list[dict]]
    ) -> list[str]:
        """Add a row for each student and assignment without a submission, and return who they are.

        A refused file may be of any assignment: of one that is asked for alone, it is.
        """
        missing, withheld = defaultdict(list), {}
        there = {(row.get("number"), row["assignment"]) for row in rows}
        refused = defaultdict(list)
        for row in rows:
            if row["refused"]:
                refused[row.get("number")].append(row["submission"])
        for assignment in asked:
            for s in self.students or []:
                names = ", ".join(refused[s.number])
                if (s.number, assignment) in there or (names and len(asked) == 1):
                    continue
                row = {"submission": "", "assignment": assignment, "number": s.number}
                row |= {"name": s.name, "total": None, "refused": NOTHING}
                if names:
                    row["refused"] = BUT_REFUSED.format(names=names)
                elif files := _of(assignment, unclear[s.number]):
                    row["refused"] = PERHAPS.format(names=", ".join(files))
                else:
                    missing[assignment].append(s.name or s.number)
                    if self.zeros and self._over(s):
                        nobodys = dict.fromkeys(_of(assignment, unclear[None]))
                        row |= {} if nobodys else {"total": 0.0, "counts": "yes"}
                        withheld |= nobodys
                rows.append(row)
        said = [
            f"{assignment}: {NOTHING} by {len(who)} in the roster: {', '.join(who)[:500]}"
            for assignment, who in missing.items()
        ]
        if withheld:
            said.append(
                f"--zeros gives no zeros, as one of them may own {', '.join(withheld)[:500]}: put "
                "the student's number at the beginning of its name, or take it out of the folder"
            )
        return said

    def _over(self, student: Student) -> bool:
        """Return whether the student's deadline, if there is one, is over."""
        due = student.due or self.due
        return due is None or due < datetime.now().astimezone()


def _of(assignment: str, rows: list[dict]) -> list[str]:
    """Return the names of the submissions that are, or if refused may be, this assignment."""
    return [row["submission"] for row in rows if row["assignment"] in ("", assignment)]


def _nobodys(name: str, students: list[Student]) -> str:
    """Say that a submission is of nobody, and which numbers in its name may be Canvas's."""
    said, numbers = f"{name} is of nobody in the roster", _in_place_of_canvas(name, students)
    if not numbers:
        return said
    return (
        f"{said}, as {', '.join(s.number for s in numbers)} may be from Canvas: put the student's "
        "number at the beginning of its name"
    )


def _doubts(rows: list[dict]) -> list[str]:
    """Say where the times of the files may not be the times of handing in."""
    timed = [row for row in rows if "days_late" in row]
    if len(timed) > 2 and all(row["days_late"] for row in timed):
        return [
            f"all {len(timed)} files were written after the deadline: are their times from the "
            "download?"
        ]
    canvas = [(row, PLATFORM.match(row["submission"])) for row in timed]
    apart = {True: [], False: []}  # late by the name, or by the time of the file alone
    for row, name in canvas:
        if name and name[3][0].isdigit() and bool(name[1]) != bool(row["days_late"]):
            apart[bool(name[1])].append(row["submission"])
    words = {
        True: "late by the name that Canvas gave, in time by the time of the file: ",
        False: "late by the time of the file, in time by the name that Canvas gave: ",
    }
    said = [words[late] + ", ".join(names)[:300] for late, names in apart.items() if names]
    return [*said, COUNTS] if said else []


def owners(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose submission this may be.

    By the account in a name that Canvas or Moodle made, else by the number as a word in the name,
    else by the student's name at its beginning. Where the name has an account, a number or the
    name of one student, and the number or the name of another, it may be of both.
    """
    name = MARK.sub("", _one_way(name))
    platform = PLATFORM.match(name)
    if not platform:
        return _by_words(name, students)
    begin = "".join(_letters(name[: name.index("_")]))
    named = [s for s in students if begin in s.named()]
    if found := [s for s in students if s.account == platform[2]]:
        return found if any(s in named for s in found) else found + named
    # the platform's numbers are no student's
    rest = f"{name[: platform.start(2)]}_{CANVAS_AGAIN.sub('', name[platform.end() :])}"
    found = _by_words(rest, students)
    if named or not found:
        return found
    return found + [s for s in _in_place_of_canvas(name, students) if s not in found]


def _in_place_of_canvas(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose number is where Canvas has numbers of its own."""
    platform = PLATFORM.match(_one_way(name))
    if not platform or not platform[3][0].isdigit():
        return []
    return _by_number(platform[0], students)


def _by_words(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose number or name is in the name of a file."""
    numbered, named = _by_number(AGAIN.sub("", name), students), _by_name(name, students)
    if not numbered:
        first = re.split(r"[_/]", name)[0]
        found = [s for s in students if "".join(_letters(first)) in s.named()]
        others = _by_name(name[len(first) :], students) if found else []
        return found + [s for s in others if s not in found]
    if not named:  # a number such as 1 may be that of the assignment, beside a first name
        words = {*_letters(name)}
        parts = [s for s in students if words & {*_letters(s.name)}]
        return numbered if any(s in parts for s in numbered) else numbered + parts
    both = [s for s in numbered if s in named]
    if not both:
        return [s for s in students if s in numbered or s in named]
    own = {way for s in both for way in s.named()}
    apart = lambda s: not any(way in one for way in s.named() for one in own)
    return both + [s for s in named if s not in both and apart(s)]


def _by_number(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose number is a word in the name, or a part of one between hyphens.

    A number of several words, such as 12-345 or an address, is found first. Its words are no
    numbers of others.
    """
    found = set()
    for number in sorted({_one_way(s.number) for s in students}, key=lambda n: (-len(n), n)):
        if number in name and not number.isalnum():
            alone = rf"(?<![^\W_]){re.escape(number)}(?![^\W_])"
            name, times = re.subn(alone, " ", name)
            found |= {number} if times else set()
    found |= set(re.split(r"[\W_]+", DATE.sub(" ", name)))
    return [s for s in students if _one_way(s.number) in found]


def _by_name(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose name, as words in a row, is anywhere in the name of a file."""
    there = set()
    for part in name.split("/"):
        words = _letters(part)
        ends = range(1, len(words) + 1)
        there |= {"".join(words[i:j]) for j in ends for i in range(j)}
    return [s for s in students if s.named() & there]
