"""The verbs of the course on the command line of ddpp: `ddpp assign` and `ddpp grade`."""

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from ddpp.foundation import files
from ddpp.foundation.errors import Error


@dataclass
class AssignCommand:
    """Make the students' copies, the solutions and the points table from the instructor's
    notebooks.
    """

    # the instructor's are in FOLDER/source/NAME/NAME.ipynb
    folder: tyro.conf.Positional[Path] = Path("assignments")

    def __call__(self) -> None:
        from ddpp_course import copies  # here, as ddpp itself does without notebooks

        written = copies.make(self.folder)
        print("\n".join(f"written: {path}" for path in written) or "everything is up to date")


@dataclass
class GradeCommand:
    """Grade a submission, or a folder of them; the exit code is 0 if no point is missing, else
    3.
    """

    # a notebook, or a folder with one file per student, or one folder each
    submissions: tyro.conf.Positional[Path]
    out: Path = Path("grades")  # the reports, and for a folder grades.csv
    assignments: Path = Path("assignments")  # the instructor's notebooks are in its folder source
    assignment: str | None = None  # its name; default: the notebook says
    jobs: int | None = None  # submissions at a time; default: one per core
    seconds: float | None = None  # for a cell, or a check; default: what the assignment says
    memory: float = 4.0  # GB for a submission
    trust_submissions: bool = False  # run them without a wall, with all that you can read and write

    def __call__(self) -> int:
        try:
            from ddpp_course import grade, session
        except ModuleNotFoundError as e:
            raise Error(f"grading needs the package {e.name}: pip install 'ddpp[course]'") from None

        if not self.submissions.exists():
            raise Error(f"there is no {self.submissions}: name a notebook, or a folder of them")
        limits = session.Limits(self.seconds or 0.0, self.memory)
        grade.assignments(self.assignments)  # before anything is written
        files.check_writable(self.out / "grades.csv")
        options = {"name": self.assignment, "limits": limits, "trust": self.trust_submissions}
        if self.submissions.is_dir():
            jobs = self.jobs or os.cpu_count() or 1
            reports = grade.grade_all(
                self.submissions, self.assignments, self.out, jobs=jobs, **options
            )
            print(f"written: {self.out / 'grades.csv'}, and a report for each")
            if refused := [report.submission for report in reports if report.refused]:
                print(f"{len(refused)} of {len(reports)} could not be graded: {', '.join(refused)}")
        else:
            reports = [grade.grade(self.submissions, self.assignments, **options)]
            reports[0].write(self.out)
            print(reports[0].text())
        return 0 if all(not r.refused and r.points == r.of for r in reports) else 3
