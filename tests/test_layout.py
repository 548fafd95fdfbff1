"""The rooms import downwards only, the book's page about them is right, and tests use what is
public.
"""

import ast
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# from the ground up: a room may import those before it; `ddpp` is ddpp/__init__.py
FLOORS = (
    ("foundation",),
    ("networks", "pruning"),
    ("data",),
    ("teachers", "unrolling", "refining", "distilled"),
    ("distilling", "evaluating"),
    ("baselines",),
    ("experiments", "judging"),
    ("studies",),
    ("ddpp",),
    ("book",),
    ("cli",),
    ("ddpp_course",),
    ("tools",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = ("ddpp", "ddpp_course", "tools")


@dataclass(frozen=True)
class Arrow:
    """An import of one room by another."""

    source: str
    target: str
    place: str  # file and line


def room(module: str, rooms: set[str]) -> str:
    """The room of a module, or of a name in one: 'ddpp.data.images' is in 'data'."""
    top, *inner = module.replace("__main__", "cli").split(".")  # which only calls it
    return inner[0] if top == "ddpp" and inner and inner[0] in rooms else top


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, int]]:
    """What a file imports, wherever in it, with the line; `package` is where the file is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            yield from ((a.value, node.lineno) for a in node.args if isinstance(a, ast.Constant))


def module_of(path: str) -> list[str]:
    """The parts of a module's name: 'ddpp/data/__init__.py' is ['ddpp', 'data']."""
    return [part for part in path.removesuffix(".py").split("/") if part != "__init__"]


def arrows(sources: dict[str, str]) -> list[Arrow]:
    """The imports between rooms, of the files with these paths and texts."""
    modules = {path: module_of(path) for path in sources}
    rooms = {parts[1] for parts in modules.values() if parts[0] == "ddpp" and len(parts) > 1}
    found = []
    for path, text in sources.items():
        parts = modules[path]
        package = parts if path.endswith("__init__.py") else parts[:-1]
        source = room(".".join(parts), rooms)
        for name, line in imported(ast.parse(text), package):
            target = room(name, rooms)
            if name.split(".")[0] in PACKAGES and target != source:
                found.append(Arrow(source, target, f"{path}:{line}"))
    return found


def wrong(sources: dict[str, str]) -> list[str]:
    """What is wrong with the imports between rooms, a sentence for each."""
    found = arrows(sources)
    known = [arrow for arrow in found if {arrow.source, arrow.target} <= FLOOR.keys()]
    says = [
        f"{arrow.place}: {arrow.source} or {arrow.target} has no floor"
        for arrow in found
        if arrow not in known
    ]
    says += [
        f"{arrow.place}: {arrow.source} must not import {arrow.target}, which is above it"
        for arrow in known
        if FLOOR[arrow.target] > FLOOR[arrow.source]
    ]
    below: dict[str, set[str]] = {}
    for arrow in found:
        below.setdefault(arrow.source, set()).add(arrow.target)
    try:
        TopologicalSorter(below).prepare()
    except CycleError as e:
        says.append(f"a circle: {' imports '.join(reversed(e.args[1]))}")
    return says


def sources() -> dict[str, str]:
    """The program's files."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_rooms_import_what_is_below_them_and_no_circle():
    assert wrong(sources()) == []


def test_every_room_is_seen_and_has_a_floor():
    found = arrows(sources())
    assert len(found) > 200
    assert {arrow.source for arrow in found} | {arrow.target for arrow in found} == FLOOR.keys()


HOUSE = {"ddpp/__init__.py": "from ddpp.teachers import Teachers"} | {
    f"ddpp/{name}.py": "" for name in ("foundation", "networks", "data", "teachers", "unrolling")
}
HOUSE |= {"ddpp/distilling.py": "", "ddpp/experiments/__init__.py": "", "ddpp/cli.py": ""}


@pytest.mark.parametrize(
    "path, text, says",
    [
        ("foundation/files.py", "from ddpp.data import Split", "foundation must not import data"),
        ("foundation/files.py", "import ddpp.networks", "foundation must not import networks"),
        ("foundation/files.py", "from ddpp import data", "foundation must not import data"),
        ("foundation/files.py", "from ..data import Split", "foundation must not import data"),
        ("foundation/files.py", "from .. import data", "foundation must not import data"),
        ("data.py", "from ddpp import Error", "data must not import ddpp"),
        (
            "networks.py",
            "def build():\n    from ddpp.data import Split",
            "networks.py:2: networks must not import data",
        ),
        (
            "networks.py",
            "if TYPE_CHECKING:\n    from ddpp.data import Split",
            "networks.py:2: networks must not import data",
        ),
        (
            "teachers.py",
            "importlib.import_module('ddpp.cli')",
            "teachers must not import cli",
        ),
        ("distilling.py", "from ddpp.experiments import run", "must not import experiments"),
        ("cli.py", "from ddpp_course import grade", "cli must not import ddpp_course"),
        ("cli.py", "import tools.bench", "cli must not import tools"),
        ("attic.py", "from ddpp.data import Split", "attic or data has no floor"),
    ],
)
def test_an_import_upwards_is_found(path, text, says):
    assert wrong(HOUSE) == []
    found = wrong(HOUSE | {f"ddpp/{path}": text})
    assert len(found) == 1 and says in found[0]


def test_a_circle_is_found_also_where_no_import_goes_upwards():
    found = wrong(
        HOUSE
        | {
            "ddpp/teachers.py": "from ddpp.unrolling import unroll",
            "ddpp/unrolling.py": "from ddpp.teachers import Teachers",
        }
    )
    assert len(found) == 1 and "a circle: " in found[0]
    assert "teachers imports unrolling" in found[0]


def test_imports_downwards_and_of_others_are_allowed():
    assert wrong(HOUSE | {"ddpp/data.py": "import torch\nfrom ddpp import networks"}) == []
    assert wrong(HOUSE | {"ddpp_course/cli.py": "from ddpp.cli import main"}) == []


# The page about the layout, and CONTRIBUTING.md

PAGES = ("book/layout.md", "CONTRIBUTING.md")
COMMAND = re.compile(r"(ddpp|git|python|source|pre-commit|\.venv/bin/\S+) .*")
FILE = re.compile(r"\.?[\w-]+(/[\w.*-]+)*(/|\.(py|md|yml|yaml|toml|svg|ipynb|npz|txt))|Makefile")
NAME = re.compile(r"(\w+(?:\.\w+)*)(\(.*\))?")


def blocks(page: str) -> list[str]:
    """The rows, items and paragraphs of a page, without its listings."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return [block for block in re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", page) if block.strip()]


def names_in(path: Path) -> set[str]:
    """The names that a Python file defines or assigns outside of functions, those in a class also
    as CLASS.NAME; attributes that it assigns; and its strings, in quotes.
    """
    tree, found = ast.parse(path.read_text()), set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.update({child.name, prefix + child.name})
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                found.update({child.id, prefix + child.id})
            if isinstance(child, ast.ClassDef):
                visit(child, f"{child.name}.")
            elif not isinstance(
                child, ast.FunctionDef | ast.Lambda | ast.comprehension
            ):  # what is in it is local
                visit(child, prefix)

    visit(tree, "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(f'"{node.value}"')
    return found


def dead(page: str) -> list[str]:
    """What a page names that is not there: files, targets of make, and names in the files of the
    same row, item or paragraph.
    """
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    found = []
    for block in blocks(page):
        spans = re.findall(r"`([^`]+)`", block)
        paths = [span for span in spans if FILE.fullmatch(span)]
        there = [path for span in paths for path in ROOT.glob(span.rstrip("/"))]
        python = [p for p in there if p.suffix == ".py"]
        python += [p for folder in there if folder.is_dir() for p in folder.glob("*.py")]
        known = {name for path in python for name in names_in(path)}
        found += [f"no file {span}" for span in paths if not [*ROOT.glob(span.rstrip("/"))]]
        for span in (span for span in spans if span not in paths):
            if span.startswith("make "):
                found += [f"no target {span}"] if span.split()[1] not in targets else []
            elif span.startswith('"'):
                found += [] if span in known else [f"no string {span} in {paths}"]
            elif not COMMAND.fullmatch(span):
                name = NAME.fullmatch(span)
                found += [] if name and name[1] in known else [f"no name {span} in {paths}"]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_what_the_pages_for_contributors_name_is_there(name):
    page = (ROOT / name).read_text()
    assert len(re.findall("`", page)) > 60
    assert dead(page) == []


@pytest.mark.parametrize(
    "text, says",
    [
        ("`ddpp/attic.py`", "no file ddpp/attic.py"),
        ("`make coffee`", "no target make coffee"),
        ("`walk` in `ddpp/distilling.py`", "no name walk"),
        ("`step`, without a file", "no name step"),
        ("`Flat.walk` in `ddpp/networks/flat.py`", "no name Flat.walk"),
        ("`mean` in `ddpp/distilling.py`, a local", "no name mean"),
        ("`teachers` in `ddpp/distilling.py`, an argument", "no name teachers"),
        ('`"walk"` in `ddpp/distilling.py`', 'no string "walk"'),
        ("| `step` | `ddpp/distilling.py` |\n| `match` | `ddpp/pruning.py` |", "no name match"),
    ],
)
def test_what_is_not_there_is_found(text, says):
    assert len(found := dead(text)) == 1 and says in found[0]


def test_what_is_there_is_not_reported():
    assert dead("`step` and `Algorithm.begin` in `ddpp/distilling.py`, `make check`") == []


# All pages: what is said to be in a file, and modules by their dotted names

EVERY = ("README.md", "CONTRIBUTING.md", *sorted(f"book/{p.name}" for p in ROOT.glob("book/*.md")))
WHERE = re.compile(r"((?:`[^`\n]+`(?:,? and |, ))*`[^`\n]+`) in `([\w/]+\.py)`")
DOTTED = re.compile(r"`(ddpp(?:_course)?(?:\.\w+)+)`")


def misplaced(page: str) -> list[str]:
    """What a page says is in a Python file, as "`NAME` in `FILE.py`", and is not; and the dotted
    names of modules, and of what is in them, that do not exist.
    """
    found = []
    for names, file in WHERE.findall(page):
        known = names_in(ROOT / file) if (ROOT / file).exists() else set()
        found += [
            f"{name} in {file}" for name in re.findall("`([^`]+)`", names) if name not in known
        ]
    for name in DOTTED.findall(page):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            found.append(name)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_what_a_page_says_is_in_a_file_is_there(name):
    assert misplaced((ROOT / name).read_text()) == []


def test_the_pages_say_where_things_are():
    pages = {name: (ROOT / name).read_text() for name in EVERY}
    assert {"README.md", "book/numbers.md"} <= {
        n for n, page in pages.items() if WHERE.search(page)
    }
    assert "book/api.md" in {n for n, page in pages.items() if DOTTED.search(page)}


@pytest.mark.parametrize(
    "text, says",
    [
        ("`walk` in `ddpp/distilling.py`", ["walk in ddpp/distilling.py"]),
        ("`step` and `walk` in `ddpp/distilling.py`", ["walk in ddpp/distilling.py"]),
        ("`walk`, `step`, and `match` in `ddpp/distilling.py`", ["walk in ddpp/distilling.py"]),
        ("`step` in `ddpp/attic.py`", ["step in ddpp/attic.py"]),
        ("`ddpp.attic`, `ddpp.data.walk`", ["ddpp.attic", "ddpp.data.walk"]),
        ("`Flat.initial` in `ddpp/networks/flat.py`, `ddpp.networks.Flat`, `ddpp.distill`", []),
    ],
)
def test_what_is_said_to_be_elsewhere_is_found(text, says):
    assert misplaced(text) == says


def test_the_drawing_shows_the_floors():
    drawing = ElementTree.parse(ROOT / "book" / "layout.svg")
    drawn: dict[float, set[str]] = {}
    for text in drawing.iter("{http://www.w3.org/2000/svg}text"):
        if text.get("class") == "room":
            drawn.setdefault(float(text.get("y")), set()).add(text.text)
    floors = [{*rooms} for rooms in FLOORS if rooms != ("ddpp",)]
    assert [drawn[y] for y in sorted(drawn, reverse=True)] == [
        *floors[:-2],
        floors[-2] | floors[-1],
    ]


def test_the_names_that_moved_are_where_the_changelog_says():
    rows = re.findall(r"^\| (`.*) \| (`.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert len(rows) > 20
    modules = {".".join(module_of(path)): path for path in sources()}
    for before, now in rows:
        for name in re.findall("`([^`]+)`", now):
            module, _, function = name.rpartition(".")
            there = name in modules or function in names_in(ROOT / modules[module])
            assert there, name
        for name in re.findall(r"`([^`]+)`(?! \(the module\))", before):
            assert name not in modules, name


def test_the_hooks_of_a_commit_are_what_lint_runs():
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"  # nothing is fetched
    assert [hook["entry"] for hook in repo["hooks"]] == commands
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    assert not any(hook["pass_filenames"] for hook in repo["hooks"])


# Tests

# the course's are told what a submission may find
EXEMPT = ("test_course", "test_experiments", "test_book", "wrong_", "wrong.py")
PROTOCOLS = {"_repr_png_"}  # of IPython


def private(text: str, own: set[str]) -> list[str]:
    """The names of `own` that a test takes: imported, as attributes, or patched by name."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found += [str(value).rpartition(".")[2] for value in strings]
    return [name for name in found if name in own]


def test_tests_use_no_private_names():
    files = [path for package in ("ddpp", "tools") for path in (ROOT / package).rglob("*.py")]
    names = {name.rpartition(".")[2] for path in files for name in names_in(path)}
    own = {name for name in names if re.match("_[a-z]", name)} - PROTOCOLS
    assert len(own) > 50
    paths = [path for path in (ROOT / "tests").glob("*.py") if not path.name.startswith(EXEMPT)]
    assert len(paths) > 25
    found = {path.name: private(path.read_text(), own - names_in(path)) for path in paths}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    [
        "from ddpp.teachers import _name",
        "teachers._name()",
        "monkeypatch.setattr(teachers, '_name', None)",
        "monkeypatch.setattr('ddpp.teachers._name', None)",
    ],
)
def test_a_private_name_is_found(text):
    assert private(text, {"_name"}) == ["_name"]
    assert private(text.replace("_name", "name"), {"_name"}) == []
