"""The commands of the course on the command line of ddpp: `ddpp assign` and `ddpp grade`."""

import math
import os
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose


def assign(folder: Path = Path("assignments"), /) -> None:
    """Make the students' copies, the solutions and the points table.

    They are made from the instructor's notebooks. What is up to date stays.

    Args:
        folder: the instructor's notebooks are in FOLDER/source/NAME/NAME.ipynb
    """
    try:
        from ddpp_course import copies  # here, as ddpp itself does without notebooks
    except ModuleNotFoundError as e:
        raise _lacks(e) from None

    written = copies.make(folder)
    print("\n".join(f"written: {path}" for path in written) or "everything is up to date")


def grade(
    submissions: Path,
    /,
    out: Path = Path("grades"),
    assignments: Path = Path("assignments"),
    assignment: str | None = None,
    jobs: int | None = None,
    seconds: float | None = None,
    memory: float = 4.0,
    roster: Path | None = None,
    due: str | None = None,
    late: float = 0.0,
    keep: str = "last",
    platform: Annotated[str | None, arg(name="for")] = None,
    zeros: bool = False,
    trust_submissions: bool = False,
) -> int:
    """Grade a submission, or a folder of them.

    The exit code is 0 if no automatic point is missing.

    It is 3 if some are missing or a file was refused, and 1 for an error.

    Args:
        submissions: a notebook, or a folder with one file per student, or one folder each
        out: the reports, and for a folder grades.csv
        assignments: the instructor's notebooks are in its folder source
        assignment: its name; None: the notebook says
        jobs: submissions at a time; None: one per core
        seconds: for a cell, or a check; None: what the assignment says
        memory: GB for a submission
        roster: CSV of the class, with the columns number and name, or an export of Canvas or Moodle
        due: the deadline, as 2026-12-01T23:59 or 2026-12-01
        late: percent of the assignment's points that each day after it costs
        keep: which of a student's submissions counts: last, in-time (the last before due) or best
        platform: canvas or moodle: also write OUT/canvas.csv or OUT/moodle.csv, to import there
        zeros: who handed in nothing gets 0, also in the table for Canvas or Moodle
        trust_submissions: run them without a sandbox, with all that you can read and write
    """
    try:
        from ddpp_course import grade as grader
        from ddpp_course import instructor, session
        from ddpp_course.rules import Rules
    except ModuleNotFoundError as e:
        raise _lacks(e) from None

    if not submissions.exists():
        raise Error(f"there is no {submissions}: name a notebook, or a folder of them")
    if submissions.is_file() and submissions.suffix.lower() == ".zip":
        raise Error(
            f"{submissions} is an archive: unzip it into a folder first, and name the folder"
        )
    if jobs is not None and jobs < 1:
        raise Error(f"--jobs {jobs}: at least 1; leave it out for one per core")
    if seconds is not None and not 0 < seconds < math.inf:
        raise Error(
            f"--seconds {seconds:g}: a number above 0; leave it out for what the assignment says"
        )
    if not 1 <= memory <= 1e6:
        raise Error(f"--memory {memory:g}: GB for a submission, from 1 to 1,000,000")
    limits = session.Limits(seconds or 0.0, memory)
    rules = Rules.of(roster, due, late, keep, platform, zeros)
    if rules != Rules() and not submissions.is_dir():
        names = "--roster, --due, --late, --keep, --for and --zeros"
        raise Error(f"{names} are for a folder of submissions")
    known = instructor.assignments(assignments)  # before anything is written
    if assignment is not None:
        choose("--assignment", assignment, known)
    files.check_writable(out / "grades.csv")
    if submissions.is_dir():
        reports = grader.grade_all(
            submissions,
            assignments,
            out,
            jobs=jobs or os.cpu_count() or 1,
            name=assignment,
            limits=limits,
            trust=trust_submissions,
            rules=rules,
        )
        print(f"written: {out / 'grades.csv'}, and a report for each")
        if platform:
            print(f"written: {out / platform}.csv")
        if refused := [report.submission for report in reports if report.refused]:
            print(f"{len(refused)} of {len(reports)} could not be graded: {', '.join(refused)}")
    else:
        report = grader.grade(
            submissions, assignments, name=assignment, limits=limits, trust=trust_submissions
        )
        said = report.write(out)
        print(report.text())
        print("".join(f"{sentence}\n" for sentence in said), end="")
        reports = [report]
    return 0 if all(not r.refused and r.points == r.of for r in reports) else 3


def _lacks(e: ModuleNotFoundError) -> Error:
    return Error(f"the course needs the package {e.name}: pip install 'ddpp[course]'")
