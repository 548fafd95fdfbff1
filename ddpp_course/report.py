"""What a submission earned, for the student to read and for a program. A grade that is replaced is
kept.
"""

import itertools
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ddpp.foundation import files


@dataclass
class Outcome:
    """One task of one submission. points: None for a text, which is graded by hand."""

    task: str
    title: str
    points: float | None
    of: float
    says: str


@dataclass
class Report:
    """What became of a submission. refused: why it was not graded, if so; notes: what happened
    while it ran.
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
        """Points that the checks give at most."""
        return sum(outcome.of for outcome in self.outcomes if outcome.points is not None)

    @property
    def by_hand(self) -> float:
        """Points that are still to be given, for texts."""
        return sum(outcome.of for outcome in self.outcomes if outcome.points is None)

    def line(self) -> str:
        """In one line."""
        if self.refused:
            return f"{self.submission}: not graded: {self.refused}"
        more = f", {self.by_hand:g} more by hand" if self.by_hand else ""
        return f"{self.submission}: {self.points:g} of {self.of:g} points{more}"

    def text(self) -> str:
        """For the student, in Markdown."""
        if self.refused:
            notes = "".join(f"\n- {_plain(note)}" for note in self.notes)
            return f"# {_plain(self.submission)}\n\nNot graded: {_plain(self.refused)}.\n{notes}\n"
        more = f"; {self.by_hand:g} more are given by hand" if self.by_hand else ""
        lines = [
            f"# {_plain(self.submission)}",
            "",
            f"**{self.points:g} of {self.of:g} points** for {self.assignment}{more}",
            "",
        ]
        lines += ["| | task | points | what the check says |", "|---|---|---|---|"]
        for outcome in self.outcomes:
            mark = "…" if outcome.points is None else "✓" if outcome.points else "✗"
            points = f"{'?' if outcome.points is None else f'{outcome.points:g}'} of {outcome.of:g}"
            says = _plain(outcome.says).replace("|", "\\|")
            lines.append(f"| {mark} | {outcome.title} (`{outcome.task}`) | {points} | {says} |")
        if self.notes:
            lines += [
                "",
                "While the notebook ran:",
                "",
                *(f"- {_plain(note)}" for note in self.notes),
            ]
        if self.points < self.of:
            lines += [
                "",
                "To go on: restart the notebook and run all cells (Colab: Runtime > Restart "
                "session and run all).",
            ]
            lines += [
                "The first check that complains says what to mend. Then save, and hand in again."
            ]
        if self.wall:
            lines += ["", f"For the instructor: {self.wall}."]
        return "\n".join([*lines, ""])

    def write(self, out: Path) -> None:
        """OUT/SUBMISSION.md for the student, OUT/SUBMISSION.json for programs."""
        values = {"points": self.points, "of": self.of, "by_hand": self.by_hand} | asdict(self)
        contents = {".json": json.dumps(values, indent=1) + "\n", ".md": self.text()}
        write = replace if self._differs(out) else files.write_bytes
        for ending, text in contents.items():
            write(out / f"{self.submission}{ending}", text.encode(errors="backslashreplace"))

    def _differs(self, out: Path) -> bool:
        """Whether an earlier report says something else than that it took other seconds."""
        before = read(out / f"{self.submission}.json")
        same = ("refused", "assignment", "outcomes", "notes")
        return before is None or any(getattr(before, name) != getattr(self, name) for name in same)


def _plain(text: str) -> str:
    """In one line, and without HTML: it may be a student's."""
    return re.sub(r"<(?=[a-zA-Z/!?])", r"\\<", " ".join(text.split()))


def read(path: Path) -> Report | None:
    """The report in a file, if there is one; a damaged one counts as none."""
    try:
        values = json.loads(path.read_text())
        outcomes = [Outcome(**outcome) for outcome in values.pop("outcomes")]
        return Report(
            outcomes=outcomes,
            **{k: v for k, v in values.items() if k not in ("points", "of", "by_hand")},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def replace(path: Path, data: bytes) -> None:
    """Write a file, all or nothing; what was there before, if it was different, gets a second name
    in `before`.
    """
    if path.exists() and path.read_bytes() != data:
        written = time.strftime("%Y-%m-%d-%H%M%S", time.gmtime(path.stat().st_mtime))
        folder = path.parent / "before"
        folder.mkdir(exist_ok=True)
        names = (
            f"{path.stem}.{written}{f'-{i}' if i else ''}{path.suffix}" for i in itertools.count()
        )
        kept = next(folder / name for name in names if not (folder / name).exists())
        try:
            os.link(path, kept)
        except OSError:  # a file system without second names
            shutil.copy2(path, kept)
    files.write_bytes(path, data)
