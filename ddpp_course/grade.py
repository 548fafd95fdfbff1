"""Grade submissions: run each behind a wall, and apply the instructor's checks to it.

Nothing that a submission is or does may stop the grader: what cannot be graded is refused with a
sentence. Points come from the instructor's checks alone, so cells that were moved, doubled, added
or edited do no harm.
"""

import ast
import contextlib
import hashlib
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from ddpp.foundation.errors import Error
from ddpp_course import copies, marks, messages, report, wall
from ddpp_course.checks import told
from ddpp_course.report import Outcome, Report
from ddpp_course.roster import Rules
from ddpp_course.session import START, Limits, Session, sweep
from ddpp_course.submissions import (
    Submission,
    handed_in,
    names,
    read,
    safe,
    text_of,
    which,
    written,
)
from ddpp_course.wall import CourseError

SECONDS = 120  # for a cell, where the assignment does not say
SAY = partial(print, flush=True)  # at once, also into a file
# how Python, torch and the system's loader of libraries say it
NO_MEMORY = re.compile("MemoryError|allocate memory|GB of memory")
RESTARTS = 4  # of a kernel that a submission brings down, each time without the cell that did


@dataclass(frozen=True)
class Assignment:
    """An instructor's notebook, read for grading."""

    name: str
    tasks: list[copies.Task]
    setup: str  # code that the checks need
    checks: dict[str, str]  # task -> code
    functions: set[str]  # names that the students define
    values: set[str]  # names that the students assign
    given: set[str]  # all cells as they were handed out
    stubs: set[str]  # the code of the students' cells as they were handed out
    # the code of cells that nothing graded depends on: those with the tag skip-grading
    pictures: set[str]
    seconds: float  # for a cell, unless the grader says otherwise
    digest: str  # of all that decides the points

    @staticmethod
    def read(path: Path) -> "Assignment":
        notebook = copies.instructors(path)
        marked = {
            copies.nbgrader(cell)["grade_id"]: cell
            for cell in notebook.cells
            if copies.nbgrader(cell)
        }
        code = {name: cell for name, cell in marked.items() if cell.cell_type == "code"}
        answers = {name for name, cell in code.items() if copies.nbgrader(cell)["solution"]}
        tasks = copies.tasks(notebook)
        checks = {task.name: code[task.name].source for task in tasks if not task.by_hand}
        for name, check in checks.items():
            _parsed(path, name, check)
        found = [names(_parsed(path, name, _plain(code[name].source))) for name in answers]
        functions, values = (set[str]().union(*(pair[i] for pair in found)) for i in (0, 1))
        students = copies.students(notebook).cells
        handed_out = {copies.nbgrader(cell).get("grade_id"): cell.source for cell in students}
        course = Path(__file__).parent
        made_of = [path, *sorted([*course.glob("*.py"), *course.rglob("*.toml")])]
        return Assignment(
            path.stem,
            tasks,
            "\n".join(
                cell.source for name, cell in code.items() if name not in answers | checks.keys()
            ),
            checks,
            functions,
            values,
            {cell.source.strip() for cell in students},
            {handed_out[name] for name in answers},
            {
                cell.source
                for cell in notebook.cells
                if "skip-grading" in cell.metadata.get("tags", [])
            },
            _seconds(path, notebook),
            hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest(),
        )

    def limits(self, limits: Limits) -> Limits:
        """Return the limits, with the assignment's own where they leave it open."""
        return limits if limits.seconds else replace(limits, seconds=self.seconds)

    def asks_for(self, check: str) -> tuple[list[str], list[str]]:
        """Return the names of the student's functions and values that the code of a check uses."""
        used = {node.id for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Name)}
        return sorted(used & self.functions), sorted(used & self.values)


def _seconds(path: Path, notebook: NotebookNode) -> float:
    """Return what a cell has, or raise Error where the metadata have no seconds to run in."""
    own = notebook.metadata.get("ddpp", {})
    if not isinstance(own, dict):
        raise Error(
            f"the metadata of {path} have the ddpp {own!r}: write an object, such as "
            f'{{"assignment": "{path.stem}"}}, or leave it out'
        )
    seconds = own.get("seconds", SECONDS)
    if (
        not isinstance(seconds, (int, float))
        or isinstance(seconds, bool)
        or not 0 < seconds < math.inf
    ):
        raise Error(
            f"the metadata of {path} have the seconds {seconds!r}: write a number above 0, or "
            f"leave them out for {SECONDS}"
        )
    return seconds


def _plain(code: str) -> str:
    """Return the code of a notebook without its magics."""
    return TransformerManager().transform_cell(re.sub(r"^%%.*", "", code))


def _parsed(path: Path, name: str, code: str) -> str:
    """Return the code of a cell, or raise Error where it is no Python: nobody could earn points."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError) as e:
        raise Error(f"the cell '{name}' of {path} is no Python: {e}. Correct it") from None
    return code


def assignments(folder: Path) -> dict[str, Assignment]:
    """Read the assignments in FOLDER/source, by name."""
    return {name: Assignment.read(path) for name, path in copies.sources(folder).items()}


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
            self._grade(submission, result)
        except CourseError:
            raise
        except Error as e:
            result.refused = str(e)
        except Exception as e:
            result.refused = messages.say("grader", "grader_stopped", error=told(e))
        result.seconds = round(time.monotonic() - began, 1)
        return result

    def _grade(self, submission: Submission, result: Report) -> None:
        notebook = read(submission.path)
        assignment = self.assignments[which(notebook, self.assignments, self.name)]
        limits = assignment.limits(self.limits)
        private = tuple(
            p.resolve() for p in (self.folder / "source", self.folder / "solutions", *self.closed)
        )
        begin = partial(Session, limits, self.wall, private)
        outcomes, notes = _Grading(assignment, notebook, limits, begin, self.worked).run()
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


class _Grading:
    """One submission on its way through the process that runs it."""

    def __init__(
        self,
        assignment: Assignment,
        notebook: NotebookNode,
        limits: Limits,
        begin: Callable[[], Session],
        worked: set[str],
    ):
        self.assignment, self.notebook = assignment, notebook
        self.limits, self.begin, self.worked = limits, begin, worked
        self.end = time.monotonic() + limits.total
        self.notes = list(self._in_checks())
        self.skip: set[int] = set()  # cells that brought the kernel down
        self.says: dict[str, tuple[bool, str]] = {}  # task -> passed, what the check says

    def run(self) -> tuple[list[Outcome], list[str]]:
        for _ in range(RESTARTS + 1):
            if self._through():
                break
        else:
            self.notes.append(messages.say("grader", "given_up"))
        return [self._outcome(task) for task in self.assignment.tasks], self.notes

    def _through(self) -> bool:
        """Run all cells, then all checks, in one process. Return False if another one must follow.

        That is the case if the process did not survive.
        """
        session = self._ready()
        try:
            unwritten = False
            for number, code in self._cells():
                if number in self.skip:
                    continue
                answer = session.run(code, self._seconds())
                words = {"number": number, "error": answer.error}
                note = messages.say("grader", "cell_stopped", **words)
                blank = answer.error.startswith("NotImplementedError")
                unwritten |= blank
                # what was handed out stops for want of what is not written yet
                follows = unwritten and code.strip() in self.assignment.given
                if answer.error and not (blank or follows) and note not in self.notes:
                    self.notes.append(note)
                if not answer.alive:
                    self.skip.add(number)
                    return self._out_of_time()
                if self._out_of_time():
                    return True
            for name, code in self.assignment.checks.items():
                if name in self.says:
                    continue
                answer = session.check(code, *self.assignment.asks_for(code), self._seconds())
                self.says[name] = (answer.passed and not answer.error), answer.error or answer.says
                if not answer.alive:
                    return self._out_of_time()
            return True
        finally:
            session.close()

    def _ready(self) -> Session:
        """Return a process in which the setup has run; where one fails, try another.

        Nothing of the student's has run yet: the course is wrong, unless its setup worked before.
        """
        with contextlib.suppress(CourseError):
            return self._set_up()
        try:
            return self._set_up()
        except CourseError as e:
            if Session.stopped.is_set() or self.assignment.name not in self.worked:
                raise
            raise Error(messages.say("grader", "not_set_up", error=e)) from None

    def _set_up(self) -> Session:
        session, seconds = self.begin(), max(self.limits.seconds, START)
        try:
            ready = session.setup(self.assignment.setup, seconds)
            if not ready.error:
                ready = session.run(self.assignment.setup, seconds)
            if ready.error:
                more = ": raise --memory" if NO_MEMORY.search(ready.error) else ""
                raise CourseError(f"the setup of {self.assignment.name} fails: {ready.error}{more}")
        except BaseException:
            session.close()
            raise
        self.worked.add(self.assignment.name)
        return session

    def _cells(self) -> Iterator[tuple[int, str]]:
        """Yield number (from 1) and code of the student's own cells.

        Checks are left out, and what was left as it was handed out.
        """
        code = [
            (i, cell) for i, cell in enumerate(self.notebook.cells, 1) if cell.cell_type == "code"
        ]
        written = set.union(
            set(), *(names(c.source)[0] for _, c in code if c.source not in self.assignment.stubs)
        )
        for number, cell in code:
            marks = copies.nbgrader(cell)
            untouched = cell.source in self.assignment.stubs and names(cell.source)[0] & written
            given = cell.source in self.assignment.pictures | {self.assignment.setup}
            given |= marks.get("grade_id") in self.assignment.checks
            if cell.source.strip() and not given and not untouched:
                yield number, cell.source

    def _in_checks(self) -> Iterator[str]:
        """Yield notes on what a student defined in the cell of a check, which is not run."""
        for number, cell in enumerate(self.notebook.cells, 1):
            check = self.assignment.checks.get(copies.nbgrader(cell).get("grade_id", ""))
            if check is not None and cell.cell_type == "code":
                for name in sorted(set.union(*names(cell.source)) - set.union(*names(check))):
                    yield messages.say("grader", "in_check", number=number, name=name)

    def _seconds(self) -> float:
        """Return what a cell or a check has left."""
        return max(1, min(self.limits.seconds, self.end - time.monotonic()))

    def _out_of_time(self) -> bool:
        if time.monotonic() < self.end:
            return False
        self.notes.append(messages.say("grader", "out_of_time", seconds=self.limits.total))
        return True

    def _outcome(self, task: copies.Task) -> Outcome:
        if task.by_hand:
            says = text_of(task.name, self.notebook, self.assignment.given)
            return Outcome(task.name, task.title, None, task.points, says)
        unreached = False, messages.say("grader", "not_reached")
        passed, says = self.says.get(task.name, unreached)
        return Outcome(task.name, task.title, task.points if passed else 0, task.points, says)
