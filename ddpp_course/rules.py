"""The rules of a class: what came late, which submission counts, and who handed in nothing."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ddpp.foundation.errors import Error, choose
from ddpp_course.owners import PLATFORM, in_place_of_canvas, owners
from ddpp_course.roster import Student, moment, read

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
NOTHING = "nothing was handed in"
BUT_REFUSED = "nothing but {names}, which was refused"
PERHAPS = "perhaps {names}, which may be theirs"


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
    said, numbers = f"{name} is of nobody in the roster", in_place_of_canvas(name, students)
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
