"""What was handed in: which files count, under which name, and which assignment each is.

There is a rule for whatever lies in the folder. Names of reports are made of names of files, which
can be anything.
"""

import ast
import errno
import hashlib
import io
import json
import os
import re
import stat
import tokenize
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import nbformat
from nbformat import NotebookNode

from ddpp.foundation.errors import Error, choose
from ddpp_course import copies
from ddpp_course.messages import say

LARGEST = 200_000_000  # bytes of a notebook file
# what a notebook is made of takes many times its bytes in memory, and its code, once parsed, more
PARTS = 2_000_000  # values and their names, of each of which such a sign tells
SIGNS = b"{[,:"
REST, REST_PARTS = 50_000_000, 500_000  # the same without outputs
CODE = 500_000  # characters in all cells of code
# Python 3.11 looks for each field of an f-string from its beginning: braces of a cell, times its
# characters. This takes about a second
FIELDS = 1_000_000_000
FSTRING = re.compile(r"""[fF][rR]?['"]""")
REMEMBERED = 500  # cells whose names and texts are: a submission asks for them several times
LONGEST = 150  # bytes of a report's name, which gets endings
# as browsers name the second file of one name; a longer number is a student's
AGAIN = re.compile(r"^(?P<name>.+?) ?\((?P<number>\d{1,2})\)$")
# endings of what the grader writes: a folder with one would stand in its way
WRITTEN = (".csv", ".md", ".json", ".part")
MOODLE = re.compile(r"_assignsubmission_(file|onlinetext)_?$")
# a string with values in it has a token of its own from Python 3.12 on
TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
MARK = re.compile(r"~[0-9a-f]{8}$", re.IGNORECASE)  # see `_marked`
LONE = re.compile("[\ud800-\udfff]")  # halves of a character


@dataclass(frozen=True)
class Submission:
    """A file that is graded.

    name: of its reports; older, beside: other files that came with it, by their names.
    linked: whether it is a link that leads out of the student's own files, which is not followed.
    """

    name: str
    path: Path
    older: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    linked: bool = False

    @property
    def notes(self) -> list[str]:
        """What the report should say of the files."""
        older = [say("grader", "older", name=name) for name in self.older]
        beside = [say("grader", "beside", name=name) for name in self.beside]
        # also a note, so that no report of an earlier file of this name holds for the link
        return older + beside + ([_linked()] if self.linked else [])


def handed_in(folder: Path, out: Path, every: bool = False) -> list[Submission]:
    """List every submission in the folder and below it.

    What is in `out` does not count, nor folders and files whose names begin with . or __. But a
    notebook with such a name counts, unless it begins with ._ as copies by macOS do. Of NAME.ipynb
    and NAME (1).ipynb the highest number counts. Of notebooks in one folder of Moodle's that are
    the same assignment, the newest counts. With `every`, the older ones are listed as well, and
    the newest keeps its name. Other files count where there is no notebook of their name, or in
    their folder below the top one, or of their student in Moodle's.

    A link is followed only within one folder or file of the top: what leads out of it may be the
    work of somebody else.

    Raises Error where a folder cannot be read: nobody knows whose work is in it.
    """
    files, out = {}, out.resolve()
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        if Path(place).resolve().is_relative_to(out):
            folders.clear()
            continue
        paths = [Path(place, name) for name in sorted(names)]
        files[Path(place)] = [p for p in paths if not _is_hidden(p) and _is_file(p)]
    students = {
        _student(path.parent) for paths in files.values() for path in paths if _is_notebook(path)
    }
    found = [
        s for place, paths in files.items() for s in _in_one(place, paths, folder, students, every)
    ]
    found = _named_apart(sorted(found, key=lambda s: os.fsencode(s.path)), folder)
    return [_followed(submission, folder) for submission in found]


def _unreadable(error: OSError) -> NoReturn:
    raise Error(
        f"cannot read the folder {error.filename}: {error.strerror}. Make it readable, or move it "
        "away"
    )


def _is_hidden(path: Path) -> bool:
    dotted = path.name.startswith((".", "__")) and not _is_notebook(path)
    return dotted or path.name.startswith("._")


def _is_file(path: Path) -> bool:
    """Return whether a path is, or may be, a file: one that cannot be looked at is refused later.

    A link to nothing is none.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as e:
        return e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def written(path: Path) -> float | None:
    """Return the time of a file; None if it cannot be looked at."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _in_one(
    place: Path, paths: list[Path], top: Path, students: set[str], every: bool
) -> list[Submission]:
    """List the submissions among the files of one folder."""
    notebooks = [p for p in paths if _is_notebook(p)]
    others = [p for p in paths if not _is_notebook(p)]
    moodle, where = bool(MOODLE.search(place.name)), place.relative_to(top).parts
    inside = [safe(part, folder=True) for part in where]
    named = lambda stem: "/".join([*inside, safe(stem)])
    found = []
    for *older, path in _versions(notebooks, moodle, top):
        beside = [p for p in others if place != top or p.stem == path.stem]
        stem = path.name[:-6] if moodle else _numbered(path, notebooks)[0]
        apart = lambda p, stem=stem: f"{stem} (0)" if p.stem == stem and not moodle else p.name[:-6]
        found += [Submission(named(apart(p)), p) for p in older if every]
        # by their times, which may be equal; elsewhere the numbers in their names decide
        same = lambda p, path=path: moodle and written(p) == written(path)
        left_out = [_shown(p) + (say("grader", "same_time") if same(p) else "") for p in older]
        left_out = () if every else tuple(left_out)
        found.append(Submission(named(stem), path, left_out, tuple(map(_shown, beside))))
    if (notebooks and place != top) or (moodle and _student(place) in students):
        return found
    stems = {path.stem for path in notebooks}
    return found + [Submission(named(p.stem), p) for p in others if p.stem not in stems]


def _versions(notebooks: list[Path], moodle: bool, top: Path) -> list[list[Path]]:
    """Group the notebooks of which only one counts. That one is the last of its group."""
    together = defaultdict(list)
    for path in notebooks:
        together[_said(path, top) if moodle else _numbered(path, notebooks)[0]].append(path)

    def age(path: Path) -> tuple:
        return (written(path) or 0, path.name) if moodle else (_numbered(path, notebooks)[1],)

    return [sorted(paths, key=age) for paths in together.values()]


def _is_notebook(path: Path) -> bool:
    return path.name.lower().endswith(".ipynb") and not path.name.startswith("._")


def _numbered(path: Path, notebooks: list[Path]) -> tuple[str, int]:
    """Return a file's name without the number that a browser gave it, and that number.

    The number is removed only if it is small, and the first file of that name is there.
    """
    again = AGAIN.match(path.stem)
    if again and any(other.stem == again["name"] for other in notebooks):
        return again["name"], int(again["number"])
    return path.stem, 0


def _said(path: Path, top: Path) -> str:
    """Return which assignment a notebook says it is. Empty if that cannot be read."""
    try:
        return str(read(_target(path, top)).metadata["ddpp"]["assignment"])
    except (Error, KeyError, TypeError):
        return ""


def _student(place: Path) -> str:
    """Return a folder without what Moodle adds to the name of a student."""
    return str(place.parent / MOODLE.sub("", place.name))


def _target(path: Path, top: Path) -> Path:
    """Return the file that a link leads to, and the link itself where it leads elsewhere."""
    own = top.resolve() / path.relative_to(top).parts[0]
    target = path.resolve()
    return target if os.path.islink(path) and target.is_relative_to(own) else path


def _followed(submission: Submission, top: Path) -> Submission:
    path = _target(submission.path, top)
    return replace(submission, path=path, linked=os.path.islink(path))


def _linked() -> str:
    return say("grader", "unreadable", error=say("grader", "link"))


def _named_apart(found: list[Submission], top: Path) -> list[Submission]:
    """Rename submissions so that no two have one name, as tables and other systems compare them."""
    alike = lambda s: unicodedata.normalize("NFC", s.name.strip().lstrip("'").lower())
    named, mark = found, b""
    # again, as a mark may be what the name of another file ends in, or that of another
    while len(taken := Counter(map(alike, named))) < len(named):
        # below the top, as the folder is not always called by the same path
        apart = lambda s, mark=mark: _marked(s.name, os.fsencode(s.path.relative_to(top)) + mark)
        named = [replace(s, name=apart(s)) if taken[alike(s)] > 1 else s for s in named]
        mark += b"\0"
    return named


def safe(part: str, folder: bool = False) -> str:
    """Return the name of a file or folder as a report may have it, marked where it was changed.

    A folder is also marked where the grader writes a file, or keeps earlier ones, by its name. What
    ends like a mark gets one, too: it may be that of another file.
    """
    raw = os.fsencode(part)
    text = raw.decode("utf-8", "replace")
    text = "".join(c if c.isprintable() else "_" for c in text)
    text = re.sub(r"^\.", "_", text)
    if len(text.encode()) > LONGEST:
        text = text.encode()[: LONGEST - 10].decode("utf-8", "ignore")
    taken = folder and (text.lower().endswith(WRITTEN) or text.lower() == "before")
    return text if text == part and not taken and not MARK.search(text) else _marked(text, raw)


def _marked(text: str, raw: bytes) -> str:
    return f"{text}~{hashlib.sha256(raw).hexdigest()[:8]}"


def _shown(path: Path) -> str:
    return safe(path.name)


def read(path: Path) -> NotebookNode:
    """Read a submission as a notebook without its outputs, or raise Error where it is none.

    A link is not followed.
    """
    try:
        if path.is_symlink():
            raise Error(_linked())
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)  # some files have more in them than they say
        if len(raw) > LARGEST:
            raise Error(say("grader", "large", size=max(len(raw), path.stat().st_size) / 1e6))
        if _parts(raw) > PARTS:
            raise Error(say("grader", "many_parts", most=PARTS))
        content = json.loads(raw)
        del raw
        if content.get("nbformat") == 4:
            # without cell ids, which a cell that was copied shares with its original
            content["nbformat_minor"] = 4
        for cell in content.get("cells", []):
            cell.pop("id", None)
            cell.pop("attachments", None)
            cell |= {"outputs": []} if "outputs" in cell else {}
        rest = json.dumps(content).encode()
        del content
        if len(rest) > REST or _parts(rest) > REST_PARTS:
            raise Error(say("grader", "much_rest", size=len(rest) / 1e6, parts=_parts(rest)))
        notebook = nbformat.reads(rest, 4)
        if not all(
            isinstance(cell.source, str) and isinstance(cell.metadata, dict)
            for cell in notebook.cells
        ):
            raise ValueError
        codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        if (code := sum(map(len, codes))) > CODE:
            raise Error(say("grader", "much_code", found=code, most=CODE))
        if sum(code.count("{") * len(code) for code in codes if FSTRING.search(code)) > FIELDS:
            raise Error(say("grader", "many_fields"))
        for cell in notebook.cells:
            cell.source = LONE.sub("\N{REPLACEMENT CHARACTER}", cell.source)
    except OSError as e:
        raise Error(say("grader", "unreadable", error=e.strerror)) from None
    except Error:
        raise
    except Exception:  # json and nbformat raise nearly anything
        raise Error(say("grader", "no_notebook")) from None
    return notebook


def _parts(raw: bytes) -> int:
    return sum(raw.count(sign) for sign in SIGNS)


@lru_cache(REMEMBERED)
def names(code: str) -> tuple[set[str], set[str]]:
    """Return the functions and classes that code defines at its top level, and the names it sets.

    Code that cannot be parsed has none. The sets are remembered: leave them as they are.
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
    Raises Error if that is nothing, or if the metadata name another assignment.
    """
    said = notebook.metadata.get("ddpp") if isinstance(notebook.metadata, dict) else None
    said = said.get("assignment") if isinstance(said, dict) else None
    if name:
        choose("assignment", name, known)
        if isinstance(said, str) and said in known and said != name:
            raise Error(say("grader", "other_assignment", said=said, name=name))
        return name
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

    That is in its cell, below it, or perhaps elsewhere: also in code, or in another answer.
    """
    lines = {line.strip() for source in given for line in source.splitlines()}
    own, below, elsewhere = False, [], []
    after = False  # between the cell of the task and the next that was handed out
    for i, cell in enumerate(notebook.cells, 1):
        known, marked = cell.source.strip() in given, copies.nbgrader(cell)
        new = not known and cell.source.strip() not in {"", copies.TEXT_STUB}
        if marked.get("grade_id") == task:
            own, after = own or new, True
            continue
        if known or marked:
            after = False
        if not new or (cell.cell_type == "code" and not _has_text(cell.source, lines)):
            continue
        free = cell.cell_type != "code" and not marked
        (below if free and after else elsewhere).append(i)
    where = ", ".join(map(str, below))
    if own:
        return say("grader", "by_hand_and_more" if where else "by_hand", cell=where)
    if where:
        return say("grader", "by_hand_below", cell=where)
    if elsewhere:
        return say("grader", "text_elsewhere", cell=", ".join(map(str, elsewhere)))
    return say("grader", "no_text")


def _has_text(code: str, known: set[str]) -> bool:
    """Return whether a student wrote three words or more in a comment or a string, or no code.

    known: lines that were handed out.
    """
    new = (
        " ".join(x for x in text.splitlines() if x.strip() not in known) for text in _texts(code)
    )
    return any(len(re.findall(r"[^\W\d_]{2,}", text)) > 2 for text in new)


@lru_cache(REMEMBERED)
def _texts(code: str) -> tuple[str, ...]:
    """Return the comments and strings of code; all of it if it is no Python, so perhaps a text."""
    try:
        ast.parse(code)
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
        return tuple(token.string for token in tokens if token.type in TEXTS)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return (code,)
