"""What a submission earned, for the student to read and for programs.

A grade that is replaced is kept.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp_course import messages

# beside the reports: SHA-256 and name of each file that was written here, to see changes by hand.
# No report begins with a dot
WRITTEN = ".written"


@dataclass
class Outcome:
    """One task of one submission.

    points: None for a text, which is graded by hand.
    """

    task: str
    title: str
    points: float | None
    of: float
    says: str

    def row(self, given: float | None = None, comment: str = "") -> str:
        """Return a line of the table in a report.

        - given: points by hand, once there are some.
        - comment: what goes with them.
        """
        points = given if self.points is None else self.points
        mark = "…" if points is None else "✗" if not points else "✓" if points >= self.of else "◐"
        earned = "?" if points is None else f"{points:g}"
        says = _plain(self.says) if given is None else _plain(comment) or _say("graded_by_hand")
        says = says.replace("|", "\\|")
        words = {"title": self.title, "task": self.task, "earned": earned, "of": self.of}
        return _say("report_row", mark=mark, says=says, **words)


@dataclass(frozen=True)
class Grade:
    """What the rules of a class make of a report.

    - name: of the student, as the roster has it.
    - given: {task: points by hand}; comments: {task: what goes with them}.
    - total: after the deduction; None while points by hand are missing.
    - handed_in, days_late, deducted: None and 0 where there is no deadline.
    - counts: whether this is the submission of the student that counts.
    """

    name: str = ""
    given: dict[str, float] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    total: float | None = None
    handed_in: str | None = None
    days_late: int = 0
    deducted: float = 0.0
    counts: bool = True


@dataclass
class Report:
    """What became of a submission.

    refused: why it was not graded, if so; notes: what happened while it ran.
    """

    submission: str
    assignment: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: str = ""
    seconds: float = 0.0
    sha256: str = ""  # of the submission
    graded_with: str = ""  # digest of the assignment, its checks, the limits and the wall
    wall: str = ""  # what has to be said of what confined it

    @property
    def points(self) -> float:
        return sum(outcome.points or 0 for outcome in self.outcomes)

    @property
    def of(self) -> float:
        """Points that the checks can give at most."""
        return sum(outcome.of for outcome in self.outcomes if outcome.points is not None)

    @property
    def by_hand(self) -> float:
        """Points that are still to be given, for texts."""
        return sum(outcome.of for outcome in self.outcomes if outcome.points is None)

    def line(self) -> str:
        """Return the report in one line."""
        if self.refused:
            return _say("line_refused", name=self.submission, why=self.refused)
        more = _say("line_by_hand", points=self.by_hand) if self.by_hand else ""
        return _say("line", name=self.submission, points=self.points, of=self.of, more=more)

    def text(self, grade: Grade = Grade()) -> str:
        """Return the report for the student, in Markdown."""
        words = {"name": _plain(grade.name), "file": _plain(self.submission)}
        title = f"# {_say('report_title', **words) if grade.name else words['file']}\n"
        notes = [f"- {_plain(note)}" for note in self.notes if note != self.refused]
        if self.refused:
            why = _say("report_refused", why=_plain(self.refused))
            return "\n".join([title, f"{why}\n", *notes, ""])
        more = _say("report_by_hand", points=self.by_hand) if self.by_hand else ""
        words = {"points": self.points, "of": self.of, "assignment": self.assignment, "more": more}
        lines = [title, _say("report", **words), "", *self._sum(grade)]
        lines += [_say("report_table"), "|---|---|---|---|"]
        lines += [
            outcome.row(grade.given.get(outcome.task), grade.comments.get(outcome.task, ""))
            for outcome in self.outcomes
        ]
        if notes:
            lines += ["", _say("report_notes"), "", *notes]
        if self.points < self.of:
            lines += ["", _say("report_go_on")]
        if self.wall:
            lines += ["", _say("report_wall", says=self.wall)]
        return "\n".join([*lines, ""])

    def _sum(self, grade: Grade) -> list[str]:
        """Return how the total comes about, where there is more to it than the checks."""
        lines = [] if grade.counts else [_say("report_other"), ""]
        if not grade.given and not grade.days_late:
            return lines
        most = self.of + self.by_hand
        rows = [_say("sum_checks", points=self.points, of=self.of)]
        if self.by_hand:
            words = {"points": sum(grade.given.values()), "of": self.by_hand}
            rows.append(_say("sum_so_far" if grade.total is None else "sum_by_hand", **words))
        if grade.days_late:
            at = (grade.handed_in or "")[:16].replace("T", " ")
            words = {"time": at, "days": grade.days_late}
            rows.append(_say("sum_late", **words))
            rows.append(_say("sum_deducted", points=grade.deducted))
        key = "sum_open" if grade.total is None else "sum_total"
        rows.append(_say(key, points=grade.total or 0.0, of=most))
        return [*lines, _say("sum_table"), "|---|---|", *rows, ""]

    def write_graded(self, out: Path, grade: Grade) -> list[str]:
        """Write OUT/SUBMISSION.md once more, with the grade. Another grade before it is kept.

        Returns notes for the instructor.
        """
        path, bare = out / f"{self.submission}.md", _bytes(self.text())
        new = not path.exists() or path.read_bytes() == bare
        if not new:
            return replace(path, _bytes(self.text(grade)))
        _write(path, _bytes(self.text(grade)))
        return []

    def write(self, out: Path) -> list[str]:
        """Write OUT/SUBMISSION.md for the student, and OUT/SUBMISSION.json for programs.

        A report for the student that still holds is left as it is: it may have marks by hand.
        Returns notes for the instructor.
        """
        values = {"points": self.points, "of": self.of, "by_hand": self.by_hand} | asdict(self)
        contents = {".json": json.dumps(values, indent=1) + "\n", ".md": self.text()}
        differs, said = self._differs(out), []
        for ending, text in contents.items():
            path = out / f"{self.submission}{ending}"
            if differs:
                said += replace(path, _bytes(text))
            elif ending == ".json" or not path.is_file():
                _write(path, _bytes(text))
        return said

    def _differs(self, out: Path) -> bool:
        """Return whether no earlier report told the student the same."""
        before = read(out / f"{self.submission}.json")
        same = ("refused", "assignment", "outcomes", "notes", "wall")
        return before is None or any(getattr(before, name) != getattr(self, name) for name in same)


def _say(key: str, **words) -> str:
    return messages.say("grader", key, **words)


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _plain(text: str) -> str:
    """Return text, which may be a student's, in one line and without HTML."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(text.split()))


def read(path: Path) -> Report | None:
    """Read the report in a file, if there is one. A damaged one counts as none."""
    try:
        values = json.loads(path.read_text())
        outcomes = [Outcome(**outcome) for outcome in values.pop("outcomes")]
        return Report(
            outcomes=outcomes,
            **{k: v for k, v in values.items() if k not in ("points", "of", "by_hand")},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def replace(path: Path, data: bytes) -> list[str]:
    """Write a file, all or nothing, and keep different earlier contents.

    Returns a note for the instructor where these are not what was written here. Raises Error where
    something else has one of these names.
    """
    if path.is_dir():
        raise Error(f"cannot write {path}: there is a folder of this name. Move it away")
    said = []
    if path.exists() and (before := path.read_bytes()) != data:
        kept = keep(path)
        noted = _noted(path)
        # without any note, an earlier version of the grader may have written it
        if noted and hashlib.sha256(before).hexdigest() not in noted:
            said = [
                f"you changed {path}, which is written anew: your version is {kept}. Put points "
                "for texts, and comments, into by_hand.csv"
            ]
    _write(path, data)
    return said


def _write(path: Path, data: bytes) -> None:
    """Write a file, all or nothing, and note it, unless it is one for programs."""
    sha = hashlib.sha256(data).hexdigest()
    if path.suffix != ".json" and sha not in _noted(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # before the file, and as one more line: no kill and no other thread leaves it without
        notes = path.parent / WRITTEN
        with contextlib.suppress(OSError), notes.open("a", encoding="utf-8") as file:
            file.write(f"{sha} {path.name}\n")  # another grader's: without it, only a hint is lost
    files.write_bytes(path, data)


def _noted(path: Path) -> set[str]:
    """Return the SHA-256 of all that was written here by this name."""
    notes = path.parent / WRITTEN
    there = os.access(notes, os.R_OK)
    text = notes.read_text(encoding="utf-8", errors="replace") if there else ""
    lines = (line.partition(" ") for line in text.split("\n"))
    return {sha for sha, _, name in lines if name == path.name}


def keep(path: Path) -> Path:
    """Give a file a second name in `before`, with the time when it was written, and return it.

    Raises Error where something else has the name of that folder.
    """
    written = time.strftime("%Y-%m-%d-%H%M%S", time.gmtime(path.stat().st_mtime))
    folder = path.parent / "before"
    if folder.exists() and not folder.is_dir():
        raise Error(
            f"cannot write {path}: earlier grades are kept in a folder {folder}, and there is "
            "a file of this name. Move it away"
        )
    folder.mkdir(exist_ok=True)
    names = (f"{path.stem}.{written}{f'-{i}' if i else ''}{path.suffix}" for i in itertools.count())
    kept = next(folder / name for name in names if not (folder / name).exists())
    try:
        os.link(path, kept)
    except OSError:  # a file system without second names
        shutil.copy2(path, kept)
    return kept
