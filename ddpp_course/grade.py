"""Grade submissions: run each behind a wall, and apply the instructor's checks to it.

Nothing that a submission is or does may stop the grader: what cannot be graded is refused with a
sentence. Points come from the instructor's checks alone, so cells that were moved, doubled, added
or edited do no harm.
"""

import contextlib
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path

from ddpp.foundation.errors import Error
from ddpp_course import marks, messages, report, wall
from ddpp_course.checks import told
from ddpp_course.folders import sweep
from ddpp_course.grading import Grading
from ddpp_course.instructor import Assignment, assignments
from ddpp_course.report import Report
from ddpp_course.rules import Rules
from ddpp_course.session import Limits, Session
from ddpp_course.submissions import Submission, handed_in, read, safe, which, written
from ddpp_course.wall import CourseError

SAY = partial(print, flush=True)  # at once, also into a file


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """End as after Ctrl-C when the system asks to end: what submissions started must end, too.

    What an earlier grader left behind, which was killed, is removed.
    """

    def interrupt(*_) -> None:
        for number in mine:  # once: a closed terminal says it twice, and the end takes a moment
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    sweep()
    asks = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        asks = []  # only the main thread may say what a signal does
    mine = [number for number in asks if signal.getsignal(number) == signal.SIG_DFL]  # not nohup's
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


@_interruptible()
def grade(
    path: str | Path,
    folder: str | Path = "assignments",
    *,
    name: str | None = None,
    limits: Limits = Limits(),
    trust: bool = False,
) -> Report:
    """Grade one submission, whatever is in the file.

    - path: of the notebook.
    - folder: the assignments are in its folder source.
    - name: of the assignment; None: the notebook itself says.
    - limits: time and memory.
    - trust: whether it runs without a wall.

    Raises Error if the instructor's side is wrong: no assignments, a setup that fails, or no wall
    that works here.
    """
    path = Path(path)
    known = assignments(Path(folder))
    grader = Grader(Path(folder), known, name, limits, _wall(trust), (path,))
    return grader.grade(Submission(safe(path.stem), path))


@_interruptible()
def grade_all(
    submissions: Path,
    folder: Path,
    out: Path,
    *,
    name: str | None = None,
    limits: Limits = Limits(),
    jobs: int = 1,
    trust: bool = False,
    rules: Rules = Rules(),
    say: Callable[[str], None] = SAY,
) -> list[Report]:
    """Grade what is in a folder; write the reports and the table grades.csv.

    - submissions: one file per student, or one folder each.
    - folder: the assignments are in its folder source.
    - out: where the reports and grades.csv are written.
    - name: of the assignment; None: each notebook says.
    - limits: time and memory of each submission.
    - jobs: how many are graded at a time.
    - trust: whether they run without a wall.
    - rules: the roster, the deadline, and which of a student's submissions counts.
    - say: takes each line of output.

    A report that is there already is kept if neither the submission, the assignment, its checks,
    the limits nor the wall have changed. So a stopped call resumes.

    Raises Error if the instructor's side is wrong, as `grade` does, and if there is nothing to
    grade.
    """
    submissions, out = Path(submissions), Path(out)
    if submissions.resolve().is_relative_to(out.resolve()):
        raise Error(f"choose another --out than {out}: it contains the submissions")
    rules.check(out)
    known, closed = assignments(Path(folder)), (submissions, out)
    found = handed_in(submissions, out, every=rules.keep != "last")
    if not found:
        raise Error(
            f"there is nothing to grade in {submissions}: put the notebooks there, in folders if "
            "you like"
        )
    # before any of them runs, as where there is no filter of calls it can change other files' times
    times = {one.name: at for one in found if (at := written(one.path)) is not None}
    say(f"submissions: {len(found)}")
    grader = Grader(Path(folder), known, name, limits, _wall(trust), closed)
    reports = {one.name: old for one in found if (old := grader.known(one, out))}
    if reports:
        say(f"{len(reports)} of {len(found)} are graded already")
    with ThreadPoolExecutor(jobs) as pool:
        work = [
            pool.submit(grader.grade_into, one, out) for one in found if one.name not in reports
        ]
        try:
            for done in as_completed(work):
                result = done.result()
                reports[result.submission] = result
                say(f"{len(reports)} of {len(found)}: {result.line()} ({result.seconds:.0f} s)")
        except BaseException:
            Session.stopped.set()
            pool.shutdown(cancel_futures=True)
            Session.stopped.clear()
            raise
    ordered = [reports[one.name] for one in found]
    said = [*grader.said, *marks.write(ordered, out, rules, times, name)]
    said += _left_over({one.name for one in found}, out)
    for sentence in [*said, *filter(None, [grader.wall.says])]:
        say(sentence)
    return ordered


def _left_over(names: set[str], out: Path) -> list[str]:
    """Name the reports of files that are not there any more, or no longer count."""
    paths = (path.relative_to(out) for path in sorted(out.rglob("*.json")))
    old = [
        str(path.with_suffix(".md"))
        for path in paths
        if "before" not in path.parts
        and str(path.with_suffix("")) not in names
        and report.read(out / path)
    ]
    if not old:
        return []
    return [
        "reports of files that do not count any more, move them away before you hand reports out: "
        f"{', '.join(old)[:500]}"
    ]


def _wall(trust: bool) -> wall.Wall:
    return wall.NONE if trust else wall.best()


def digests(
    path: Path, assignment: Assignment, limits: Limits, walled: str = ""
) -> tuple[str, str]:
    """Return the SHA-256 of the submission, and of what it is graded with."""
    graded_with = repr((assignment.digest, astuple(limits), walled)).encode()
    of_submission = hashlib.sha256(path.read_bytes()).hexdigest()
    return of_submission, hashlib.sha256(graded_with).hexdigest()


@dataclass(frozen=True)
class Grader:
    """What all submissions of a class are graded with.

    closed: more paths that they may not see; worked: assignments whose setup did; said: notes for
    the instructor.
    """

    folder: Path
    assignments: dict[str, Assignment]
    name: str | None
    limits: Limits
    wall: wall.Wall
    closed: tuple[Path, ...]
    worked: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def grade(self, submission: Submission) -> Report:
        """Return a report, whatever happens; raise Error only where the course itself is wrong."""
        result, began = Report(submission.name, notes=submission.notes), time.monotonic()
        try:
            self.fill(submission, result)
        except CourseError:
            raise
        except Error as e:
            result.refused = str(e)
        except Exception as e:
            result.refused = messages.say("grader", "grader_stopped", error=told(e))
        result.seconds = round(time.monotonic() - began, 1)
        return result

    def fill(self, submission: Submission, result: Report) -> None:
        """Fill in the report, or raise Error where the submission cannot be graded."""
        notebook = read(submission.path)
        assignment = self.assignments[which(notebook, self.assignments, self.name)]
        limits = assignment.limits(self.limits)
        private = tuple(
            p.resolve() for p in (self.folder / "source", self.folder / "solutions", *self.closed)
        )
        begin = partial(Session, limits, self.wall, private)
        outcomes, notes = Grading(assignment, notebook, limits, begin, self.worked).run()
        result.assignment, result.wall = assignment.name, self.wall.says
        result.outcomes, result.notes = outcomes, [*result.notes, *notes]
        result.sha256, result.graded_with = digests(
            submission.path, assignment, limits, self.wall.name
        )

    def grade_into(self, submission: Submission, out: Path) -> Report:
        """Do `grade`, and write the report's files.

        If they cannot be written, the submission counts as refused in the table.
        """
        result = self.grade(submission)
        try:
            self.said.extend(result.write(out))
        except (Error, OSError, ValueError) as e:
            refused = messages.say("grader", "not_written", error=told(e, name=False))
            return Report(submission.name, refused=refused)
        return result

    def known(self, submission: Submission, out: Path) -> Report | None:
        """Return the report of an earlier call, if it holds for this one."""
        before = report.read(out / f"{submission.name}.json")
        if not before or before.refused or before.assignment not in self.assignments:
            return None
        if not set(submission.notes) <= set(before.notes):
            return None
        assignment = self.assignments[before.assignment]
        limits = assignment.limits(self.limits)
        try:
            now = digests(submission.path, assignment, limits, self.wall.name)
            if (before.sha256, before.graded_with) != now:
                return None
            # it may have been graded with another --assignment than it is
            same = which(read(submission.path), self.assignments, self.name) == before.assignment
        except (Error, OSError):
            return None
        return before if same else None
