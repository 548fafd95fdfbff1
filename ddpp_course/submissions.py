"""What was handed in: which files count, under which name, and which assignment each is.

There is a rule for whatever lies in the folder. Names of reports are made of names of files, which
can be anything.
"""

import ast
import hashlib
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ddpp.foundation.errors import Error, choose
from ddpp_course import copies
from ddpp_course.messages import say

LARGEST = 200e6  # bytes of a notebook file
LONGEST = 150  # bytes of a report's name, which gets endings
# as browsers name the second file of one name
AGAIN = re.compile(r"^(?P<name>.+?) ?\((?P<number>\d+)\)$")
MOODLE = re.compile(r"_assignsubmission_(file|onlinetext)_?$")
LONE = re.compile("[\ud800-\udfff]")  # halves of a character


@dataclass(frozen=True)
class Submission:
    """A file that is graded.

    name: of its reports; older, beside: other files that came with it, by their names.
    """

    name: str
    path: Path
    older: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What the report should say of the other files."""
        older = [say("grader", "older", name=name) for name in self.older]
        return older + [say("grader", "beside", name=name) for name in self.beside]


def handed_in(folder: Path, out: Path, every: bool = False) -> list[Submission]:
    """List every submission in the folder and below it.

    What is in `out` does not count, nor folders and files whose names begin with . or __. But a
    notebook with such a name counts, unless it begins with ._ as copies by macOS do. Of NAME.ipynb
    and NAME (1).ipynb the highest number counts. Of notebooks in one folder of Moodle's that are
    the same assignment, the newest counts. With `every`, the older ones are listed as well, and
    the newest keeps its name. Other files count where there is no notebook of their name, or in
    their folder below the top one, or of their student in Moodle's.
    """
    files, out = defaultdict(list), out.resolve()
    for path in sorted(folder.rglob("*")):
        folders = path.relative_to(folder).parts[:-1]
        hidden = path.name.startswith("._") or (
            path.name.startswith((".", "__")) and not _is_notebook(path)
        )
        hidden |= any(part.startswith((".", "__")) for part in folders)
        if path.is_file() and not hidden and not path.resolve().is_relative_to(out):
            files[path.parent].append(path)
    students = {
        _student(path.parent) for paths in files.values() for path in paths if _is_notebook(path)
    }
    found = [
        s for place, paths in files.items() for s in _in_one(place, paths, folder, students, every)
    ]
    return _named_apart(sorted(found, key=lambda s: os.fsencode(s.path)))


def _in_one(
    place: Path, paths: list[Path], top: Path, students: set[str], every: bool
) -> list[Submission]:
    """List the submissions among the files of one folder."""
    notebooks = [p for p in paths if _is_notebook(p)]
    others = [p for p in paths if not _is_notebook(p)]
    moodle, where = bool(MOODLE.search(place.name)), place.relative_to(top).parts
    named = lambda stem: "/".join(map(safe, (*where, stem)))
    found = []
    for *older, path in _versions(notebooks, moodle):
        beside = [p for p in others if place != top or p.stem == path.stem]
        stem = path.name[:-6] if moodle else _numbered(path, notebooks)[0]
        apart = lambda p, stem=stem: f"{stem} (0)" if p.stem == stem and not moodle else p.name[:-6]
        found += [Submission(named(apart(p)), p) for p in older if every]
        left_out = () if every else tuple(map(_shown, older))
        found.append(Submission(named(stem), path, left_out, tuple(map(_shown, beside))))
    if (notebooks and place != top) or (moodle and _student(place) in students):
        return found
    stems = {path.stem for path in notebooks}
    return found + [Submission(named(p.stem), p) for p in others if p.stem not in stems]


def _versions(notebooks: list[Path], moodle: bool) -> list[list[Path]]:
    """Group the notebooks of which only one counts. That one is the last of its group."""
    together = defaultdict(list)
    for path in notebooks:
        together[_said(path) if moodle else _numbered(path, notebooks)[0]].append(path)

    def age(path: Path) -> tuple:
        return (path.stat().st_mtime, path.name) if moodle else (_numbered(path, notebooks)[1],)

    return [sorted(paths, key=age) for paths in together.values()]


def _is_notebook(path: Path) -> bool:
    return path.name.lower().endswith(".ipynb") and not path.name.startswith("._")


def _numbered(path: Path, notebooks: list[Path]) -> tuple[str, int]:
    """Return a file's name without the number that a browser gave it, and that number.

    The number is removed only if the first file of that name is there.
    """
    again = AGAIN.match(path.stem)
    if again and any(other.stem == again["name"] for other in notebooks):
        return again["name"], int(again["number"])
    return path.stem, 0


def _said(path: Path) -> str:
    """Return which assignment a notebook says it is. Empty if that cannot be read."""
    try:
        return str(read(path).metadata["ddpp"]["assignment"])
    except (Error, KeyError, TypeError):
        return ""


def _student(place: Path) -> str:
    """Return a folder without what Moodle adds to the name of a student."""
    return str(place.parent / MOODLE.sub("", place.name))


def _named_apart(found: list[Submission]) -> list[Submission]:
    """Rename submissions so that no two have one name, whatever the case of its letters."""
    taken, named = defaultdict(int), []
    for submission in found:
        taken[submission.name.lower()] += 1
    for s in found:
        alone = taken[s.name.lower()] == 1
        name = s.name if alone else _marked(s.name, os.fsencode(s.path))
        named.append(replace(s, name=name))
    return named


def safe(part: str) -> str:
    """Return the name of a file or folder as a report may have it, marked where it was changed."""
    raw = os.fsencode(part)
    text = raw.decode("utf-8", "replace")
    text = "".join(c if c.isprintable() else "_" for c in text)
    text = re.sub(r"^\.", "_", text)
    if len(text.encode()) > LONGEST:
        text = text.encode()[: LONGEST - 10].decode("utf-8", "ignore")
    return text if text == part else _marked(text, raw)


def _marked(text: str, raw: bytes) -> str:
    return f"{text}~{hashlib.sha256(raw).hexdigest()[:8]}"


def _shown(path: Path) -> str:
    return safe(path.name)


def read(path: Path) -> NotebookNode:
    """Read a submission as a notebook without its outputs, or raise Error where it is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise Error(say("grader", "large", size=path.stat().st_size / 1e6))
        content = json.loads(path.read_bytes())
        if content.get("nbformat") == 4:
            # without cell ids, which a cell that was copied shares with its original
            content["nbformat_minor"] = 4
        for cell in content.get("cells", []):
            cell.pop("id", None)
            cell |= {"outputs": []} if "outputs" in cell else {}
        notebook = nbformat.reads(json.dumps(content), 4)
        if not all(
            isinstance(cell.source, str) and isinstance(cell.metadata, dict)
            for cell in notebook.cells
        ):
            raise ValueError
        for cell in notebook.cells:
            cell.source = LONE.sub("\N{REPLACEMENT CHARACTER}", cell.source)
    except OSError as e:
        raise Error(say("grader", "unreadable", error=e.strerror)) from None
    except Error:
        raise
    except Exception:  # json and nbformat raise nearly anything
        raise Error(say("grader", "no_notebook")) from None
    return notebook


def names(code: str) -> tuple[set[str], set[str]]:
    """Return the functions and classes that code defines at its top level, and the names it sets.

    Code that cannot be parsed has none.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a student's, or with magics
        return set(), set()
    functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return functions, {
        n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
    }


def which(notebook: NotebookNode, known: dict, name: str | None = None) -> str:
    """Return which of the known assignments a notebook is.

    - known: the assignments by name.
    - name: the assignment, if it is known already.

    Otherwise the notebook's metadata decide, or what its cells have in common with an assignment.
    Raises Error if that is nothing.
    """
    if name:
        return choose("assignment", name, known)
    said = notebook.metadata.get("ddpp") if isinstance(notebook.metadata, dict) else None
    said = said.get("assignment") if isinstance(said, dict) else None
    if isinstance(said, str) and said in known:
        return said
    cells = {copies.nbgrader(cell).get("grade_id") for cell in notebook.cells}
    defined = set.union(
        set(), *(names(cell.source)[0] for cell in notebook.cells if cell.cell_type == "code")
    )
    shared = {
        key: len(cells & a.checks.keys()) + len(defined & a.functions) for key, a in known.items()
    }
    best = max(shared, key=shared.__getitem__)
    if not shared[best]:
        raise Error(say("grader", "no_assignment", known=", ".join(known)))
    return best


def text_of(task: str, notebook: NotebookNode, given: set[str]) -> str:
    """Say where the answer to a task that a person grades is.

    That is in its cell, below it, or perhaps elsewhere.
    """
    cells = list(enumerate(notebook.cells, 1))
    new = {i for i, c in cells if c.source.strip() not in given | {"", copies.TEXT_STUB}}
    place = [i for i, c in cells if copies.nbgrader(c).get("grade_id") == task]
    texts = [i for i, c in cells if i in new and c.cell_type != "code" and not copies.nbgrader(c)]
    fixed = [i for i, c in cells if copies.nbgrader(c) or c.source.strip() in given]
    ends = {start: min((i for i in fixed if i > start), default=len(cells) + 1) for start in place}
    below = [i for start, end in ends.items() for i in texts if start < i < end]
    where = ", ".join(map(str, dict.fromkeys(below)))
    if new & set(place):
        return say("grader", "by_hand_and_more" if where else "by_hand", cell=where)
    if where:
        return say("grader", "by_hand_below", cell=where)
    if texts:
        return say("grader", "text_elsewhere", cell=", ".join(map(str, texts)))
    return say("grader", "no_text")
