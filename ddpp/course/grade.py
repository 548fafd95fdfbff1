"""Grading: a submission runs in a fresh kernel, with limits, and each check of the instructor's notebook is put to it.

Nothing that a submission is or does may take the grader down: what cannot be graded is refused with a sentence. Points
come from the instructor's checks alone, so cells that were moved, doubled, added or edited do no harm.
"""

import ast
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ddpp.course import copies, report
from ddpp.course.report import Outcome, Report
from ddpp.course.session import Answer, Limits, Session
from ddpp.errors import Error, choose

LARGEST = 200e6  # bytes of a notebook file
SECONDS = 120  # for a cell, where the assignment does not say
RESTARTS = 4  # of a kernel that a submission brings down, each time without the cell that did
FRESH = "import sys; [sys.modules.pop(m) for m in list(sys.modules) if m.startswith('ddpp.course')]; "
JUDGE = "__import__('ddpp.course.judge', fromlist=['judge'])"


@dataclass(frozen=True)
class Assignment:
    """An instructor's notebook, read for grading."""

    name: str
    tasks: list[copies.Task]
    setup: str  # code that the checks need
    checks: dict[str, str]  # task -> code
    functions: set[str]  # names that the students define
    values: set[str]  # names that the students assign
    stubs: set[str]  # the code of the students' cells as they were handed out
    pictures: set[str]  # the code of cells that nothing graded depends on: those with the tag skip-grading
    seconds: float  # for a cell, unless the grader says otherwise
    digest: str  # of all that decides the points

    @staticmethod
    def read(path: Path) -> "Assignment":
        notebook = copies.read(path)
        marked = {copies.nbgrader(cell)["grade_id"]: cell for cell in notebook.cells if copies.nbgrader(cell)}
        code = {name: cell for name, cell in marked.items() if cell.cell_type == "code"}
        answers = {name for name, cell in code.items() if copies.nbgrader(cell)["solution"]}
        tasks = copies.tasks(notebook)
        checks = {task.name: code[task.name].source for task in tasks if not task.by_hand}
        functions, values = names("\n".join(code[name].source for name in answers))
        handed_out = {copies.nbgrader(cell).get("grade_id"): cell.source for cell in copies.students(notebook).cells}
        made_of = [path, *sorted(Path(__file__).parent.glob("*.py"))]
        return Assignment(
            path.stem,
            tasks,
            "\n".join(cell.source for name, cell in code.items() if name not in answers | checks.keys()),
            checks,
            functions,
            values,
            {handed_out[name] for name in answers},
            {cell.source for cell in notebook.cells if "skip-grading" in cell.metadata.get("tags", [])},
            notebook.metadata.get("ddpp", {}).get("seconds", SECONDS),
            hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest(),
        )

    def limits(self, limits: Limits) -> Limits:
        """The limits with what they leave to the assignment."""
        return limits if limits.seconds else replace(limits, seconds=self.seconds)

    def asks_for(self, check: str) -> tuple[list[str], list[str]]:
        """The functions and the values of the student's that the code of a check uses."""
        used = {node.id for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Name)}
        return sorted(used & self.functions), sorted(used & self.values)


def names(code: str) -> tuple[set[str], set[str]]:
    """The functions and classes that code defines at its top level, and the names that it assigns there."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a student's, or with magics
        return set(), set()
    functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return functions, {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def assignments(folder: Path) -> dict[str, Assignment]:
    """The assignments in FOLDER/source, by name."""
    return {name: Assignment.read(path) for name, path in copies.sources(folder).items()}


def grade(
    path: str | Path,
    folder: str | Path = "assignments",
    *,
    name: str | None = None,
    limits: Limits = Limits(),
) -> Report:
    """Grade one submission with the assignments in FOLDER/source, whatever is in the file.

    name: the assignment, where the notebook itself does not say. Raises Error if the instructor's side is wrong: no
    assignments, or a setup that fails.
    """
    folder = Path(folder)
    return _grade(Path(path), folder, assignments(folder), name, limits, closed=())


def _grade(
    path: Path,
    folder: Path,
    known: dict[str, Assignment],
    name: str | None,
    limits: Limits,
    closed: tuple[Path, ...],
    submission: str = "",
) -> Report:
    """`grade` with the assignments at hand; closed: more folders that the submission may not look into."""
    result, began = Report(submission or path.stem), time.monotonic()
    try:
        notebook = read(path)
        assignment = known[which(notebook, known, name)]
    except Error as e:
        result.refused = str(e)
        return result
    limits = assignment.limits(limits)
    result.assignment, (result.sha256, result.graded_with) = assignment.name, digests(path, assignment, limits)
    private = (folder / "source", folder / "solutions", *closed)
    result.outcomes, result.notes = _Grading(assignment, notebook, limits, private).run()
    result.seconds = round(time.monotonic() - began, 1)
    return result


def grade_all(
    submissions: Path,
    folder: Path,
    out: Path,
    *,
    name: str | None = None,
    limits: Limits = Limits(),
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> list[Report]:
    """Grade every file in a folder, `jobs` at a time, with reports and the table grades.csv in `out`.

    A report that is there already is kept if neither the submission, the assignment, its checks nor the limits have
    changed; so the same call goes on after a stop.
    """
    submissions, folder, out = Path(submissions), Path(folder), Path(out)
    known = assignments(folder)
    files = {str(path.relative_to(submissions).with_suffix("")): path for path in _files(submissions, out)}
    if not files:
        raise Error(f"there is nothing to grade in {submissions}: put the notebooks there, in folders if you like")
    reports = {key: _known(path, out / f"{key}.json", known, name, limits) for key, path in files.items()}
    reports = {key: found for key, found in reports.items() if found}
    if reports:
        say(f"{len(reports)} of {len(files)} are graded already")
    closed = (submissions, out)
    with ThreadPoolExecutor(jobs) as pool:
        work = [
            pool.submit(_grade, path, folder, known, name, limits, closed, key)
            for key, path in files.items()
            if key not in reports
        ]
        try:
            for done in as_completed(work):
                result = done.result()
                result.write(out)
                reports[result.submission] = result
                say(f"{len(reports)} of {len(files)}: {result.line()} ({result.seconds:.0f} s)")
        except BaseException:
            Session.stopped.set()
            pool.shutdown(cancel_futures=True)
            Session.stopped.clear()
            raise
    ordered = [reports[key] for key in files]
    report.table(ordered, out / "grades.csv")
    return ordered


def read(path: Path) -> NotebookNode:
    """A submission as a notebook without its outputs; an Error where it is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise Error(
                f"the file has {path.stat().st_size / 1e6:.0f} MB: clear the outputs, save, and hand it in again"
            )
        content = json.loads(path.read_bytes())
        if content.get("nbformat") == 4:
            content["nbformat_minor"] = 4  # without cell ids, which a cell that was copied shares with its original
        for cell in content.get("cells", []):
            cell.pop("id", None)
            cell |= {"outputs": []} if "outputs" in cell else {}
        notebook = nbformat.reads(json.dumps(content), 4)
        if not all(isinstance(cell.source, str) and isinstance(cell.metadata, dict) for cell in notebook.cells):
            raise ValueError
    except OSError as e:
        raise Error(f"it cannot be read ({e.strerror})") from None
    except Error:
        raise
    except Exception:  # json and nbformat raise nearly anything
        raise Error("it is not a Jupyter notebook: hand in the .ipynb file, as saved or downloaded") from None
    return notebook


def which(notebook: NotebookNode, known: dict[str, Assignment], name: str | None = None) -> str:
    """Which assignment a notebook is: as said, as its metadata say, or as its cells show."""
    if name:
        return choose("assignment", name, known)
    said = notebook.metadata.get("ddpp")
    if isinstance(said, dict) and said.get("assignment") in known:
        return said["assignment"]
    cells = {copies.nbgrader(cell).get("grade_id") for cell in notebook.cells}
    defined = set.union(set(), *(names(cell.source)[0] for cell in notebook.cells if cell.cell_type == "code"))
    shared = {key: len(cells & a.checks.keys()) + len(defined & a.functions) for key, a in known.items()}
    best = max(shared, key=shared.get)
    if not shared[best]:
        raise Error(f"it is none of the assignments {', '.join(known)}: hand in the notebook that was given out")
    return best


def digests(path: Path, assignment: Assignment, limits: Limits) -> tuple[str, str]:
    """Of the submission, and of what it is graded with."""
    graded_with = hashlib.sha256(repr((assignment.digest, astuple(limits))).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest(), graded_with


def _files(submissions: Path, out: Path) -> Iterator[Path]:
    """What was handed in: every file, but for hidden ones and the reports."""
    for path in sorted(submissions.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(submissions).parts)
        if path.is_file() and not hidden and not path.resolve().is_relative_to(out.resolve()):
            yield path


def _known(path: Path, written: Path, known: dict[str, Assignment], name: str | None, limits: Limits) -> Report | None:
    """The report of an earlier call, if it holds for this one."""
    before = report.read(written)
    if not before or before.refused or before.assignment not in known or name not in (None, before.assignment):
        return None
    assignment = known[before.assignment]
    now = digests(path, assignment, assignment.limits(limits))
    return before if (before.sha256, before.graded_with) == now else None


class _Grading:
    """One submission on its way through the kernel."""

    def __init__(self, assignment: Assignment, notebook: NotebookNode, limits: Limits, closed: tuple[Path, ...]):
        self.assignment, self.notebook, self.limits = assignment, notebook, limits
        self.closed = tuple(path.resolve() for path in closed)
        self.end = time.monotonic() + limits.total
        self.notes: list[str] = []
        self.skip: set[int] = set()  # cells that brought the kernel down
        self.says: dict[str, tuple[bool, str]] = {}  # task -> passed, what the check says

    def run(self) -> tuple[list[Outcome], list[str]]:
        for _ in range(RESTARTS + 1):
            if self._through():
                break
        else:
            self.notes.append("given up: it brought the kernel down too often")
        return [self._outcome(task) for task in self.assignment.tasks], self.notes

    def _through(self) -> bool:
        """All cells, then all checks, in one kernel; False if it did not survive and should have another."""
        session = Session(self.limits, self.closed)
        try:
            ready = session.run(self.assignment.setup, self.limits.seconds)
            if ready.error:  # nothing of the student's has run yet
                raise Error(f"the setup of {self.assignment.name} fails: {ready.error}")
            for number, code in self._cells():
                if number in self.skip:
                    continue
                answer = self._ask(session, code)
                note = f"cell {number} stopped: {answer.error}"
                if answer.error and not answer.error.startswith("NotImplementedError") and note not in self.notes:
                    self.notes.append(note)
                if not answer.alive:
                    self.skip.add(number)
                    return self._out_of_time()
                if self._out_of_time():
                    return True
            prepared = self._ask(session, FRESH + f"{JUDGE}.prepare({self.assignment.setup!r})")
            if prepared.error:
                self.notes.append(f"after its cells had run, the checks could not begin: {prepared.error}")
                return True
            for name, code in self.assignment.checks.items():
                if name in self.says:
                    continue
                answer = self._check(session, code)
                found = ast.literal_eval(answer.value) if not answer.error else {"passed": False, "says": answer.error}
                self.says[name] = found["passed"], found["says"]
                if not answer.alive:
                    return self._out_of_time()
            return True
        finally:
            session.close()

    def _cells(self) -> Iterator[tuple[int, str]]:
        """Number (from 1) and code of the student's own cells: neither checks, nor what was left as it was given."""
        code = [(i, cell) for i, cell in enumerate(self.notebook.cells, 1) if cell.cell_type == "code"]
        written = set.union(set(), *(names(c.source)[0] for _, c in code if c.source not in self.assignment.stubs))
        for number, cell in code:
            marks = copies.nbgrader(cell)
            untouched = cell.source in self.assignment.stubs and names(cell.source)[0] & written
            given = cell.source in self.assignment.pictures | {self.assignment.setup}
            given |= marks.get("grade_id") in self.assignment.checks
            if cell.source.strip() and not given and not untouched:
                yield number, cell.source

    def _ask(self, session: Session, code: str, expression: str | None = None) -> Answer:
        left = self.end - time.monotonic()
        return session.run(code, max(1, min(self.limits.seconds, left)), expression)

    def _check(self, session: Session, code: str) -> Answer:
        functions, values = self.assignment.asks_for(code)
        return self._ask(session, "", f"{JUDGE}.judge({code!r}, {functions}, {values}, globals())")

    def _out_of_time(self) -> bool:
        if time.monotonic() < self.end:
            return False
        self.notes.append(f"stopped after {self.limits.total:.0f} s in all")
        return True

    def _outcome(self, task: copies.Task) -> Outcome:
        if task.by_hand:
            texts = (c.source for c in self.notebook.cells if copies.nbgrader(c).get("grade_id") == task.name)
            text = next(texts, "")
            says = "to be graded by hand" if text.strip() not in ("", copies.TEXT_STUB) else "nothing was written"
            return Outcome(task.name, task.title, None, task.points, says)
        passed, says = self.says.get(task.name, (False, "not reached: the notebook did not run to its end"))
        return Outcome(task.name, task.title, task.points if passed else 0, task.points, says)
