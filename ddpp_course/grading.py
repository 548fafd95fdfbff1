"""The grading of one submission: its cells, then the instructor's checks, in one process.

A cell that brings the process down is left out, and another process begins.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

from ddpp.foundation.errors import Error
from ddpp_course import copies, messages
from ddpp_course.instructor import Assignment
from ddpp_course.report import Outcome
from ddpp_course.session import START, Limits, Session
from ddpp_course.submissions import names, text_of
from ddpp_course.wall import CourseError

# how Python, torch and the system's loader of libraries say it
NO_MEMORY = re.compile("MemoryError|allocate memory|GB of memory")
RESTARTS = 4  # of a kernel that a submission brings down, each time without the cell that did


class Grading:
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
        """Return the outcome of each task, and notes for the report."""
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
