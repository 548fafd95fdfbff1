"""What a submission earned: for the student to read, for a program, and a class as a table."""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ddpp import store


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
    """What became of a submission. refused: why it was not graded, if so; notes: what happened while it ran."""

    submission: str
    assignment: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: str = ""
    seconds: float = 0.0
    sha256: str = ""  # of the submission
    graded_with: str = ""  # digest of the assignment, its checks and the limits

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
            return f"# {self.submission}\n\nNot graded: {self.refused}.\n"
        more = f"; {self.by_hand:g} more are given by hand" if self.by_hand else ""
        lines = [
            f"# {self.submission}",
            "",
            f"**{self.points:g} of {self.of:g} points** for {self.assignment}{more}",
            "",
        ]
        lines += ["| | task | points | what the check says |", "|---|---|---|---|"]
        for outcome in self.outcomes:
            mark = "…" if outcome.points is None else "✓" if outcome.points else "✗"
            points = f"{'?' if outcome.points is None else f'{outcome.points:g}'} of {outcome.of:g}"
            says = " ".join(outcome.says.replace("|", "\\|").split())
            lines.append(f"| {mark} | {outcome.title} (`{outcome.task}`) | {points} | {says} |")
        if self.notes:
            lines += ["", "While the notebook ran:", "", *(f"- {note}" for note in self.notes)]
        if self.points < self.of:
            lines += [
                "",
                "To go on: restart the notebook and run all cells (Colab: Runtime > Restart session and run all).",
            ]
            lines += ["The first check that complains says what to mend. Then save, and hand in again."]
        return "\n".join([*lines, ""])

    def write(self, out: Path) -> None:
        """OUT/SUBMISSION.md for the student, OUT/SUBMISSION.json for programs."""
        values = {"points": self.points, "of": self.of, "by_hand": self.by_hand} | asdict(self)
        store.write_json(out / f"{self.submission}.json", values)
        store.write_bytes(out / f"{self.submission}.md", self.text().encode())


def read(path: Path) -> Report | None:
    """The report in a file, if there is one; a damaged one counts as none."""
    try:
        values = json.loads(path.read_text())
        outcomes = [Outcome(**outcome) for outcome in values.pop("outcomes")]
        return Report(outcomes=outcomes, **{k: v for k, v in values.items() if k not in ("points", "of", "by_hand")})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def table(reports: list[Report], path: Path) -> None:
    """The class as a CSV file: one line for each submission, one column for each task."""
    several = len({report.assignment for report in reports if report.assignment}) > 1
    name = lambda report, outcome: f"{report.assignment} {outcome.task}" if several else outcome.task
    tasks = dict.fromkeys(name(report, outcome) for report in reports for outcome in report.outcomes)
    columns = ["submission", "assignment", "points", "of", "by_hand", "refused", "notes", *tasks]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for report in reports:
        row = {name: getattr(report, name) for name in columns[:6]} | {"notes": len(report.notes)}
        writer.writerow(row | {name(report, outcome): outcome.points for outcome in report.outcomes})
    store.write_bytes(path, text.getvalue().encode())
