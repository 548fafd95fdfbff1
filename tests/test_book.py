"""The notebooks are ready to be read and opened anywhere, and the code that they show is the
module's own.
"""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# the chapters that show code of the module
SHOWING = ("01", "02", "03", "04", "05", "06", "09", "10", "12", "13", "14", "15", "16", "appendix")
SHOWN = re.compile(r"# (ddpp/[\w/]+\.py)(:.*)?\n")  # how a cell that does so begins
COLUMNS, LINES = 79, 35  # of a code cell: it must not scroll sideways, and must be read at a glance
ALT = 20  # characters: a text that says what there is to see is not shorter

address = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "address.py")))
built = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "built.py")))
running = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "run.py")))


def code_cells(path):
    return [
        cell
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code" and cell.source.strip()
    ]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


# The address


def test_every_address_is_the_one_in_the_configuration():
    assert [path.name for path in address.stale()] == []


def test_each_badge_opens_its_own_notebook(path):
    badge = next(cell for cell in nbformat.read(path, 4).cells if cell.get("id") == "colab-badge")
    assert badge.source.endswith(f"/notebooks/{path.name})")


@pytest.fixture
def copy(tmp_path):
    for name in ("_config.yml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "book", tmp_path / "book")
    shutil.copytree(ROOT / "assignments", tmp_path / "assignments")
    (tmp_path / "notebooks").mkdir()
    cells = [new_markdown_cell("", id="colab-badge"), new_code_cell("", id="colab-install")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "01_it.ipynb")
    write_stale(tmp_path)
    return tmp_path


def write_stale(root):
    for path, text in address.stale(root).items():
        path.write_text(text)


def test_one_command_changes_the_address_everywhere(copy):
    old = (copy / "_config.yml").read_text()
    address.set_address("https://github.com/you/it", "dev", copy)
    write_stale(copy)
    assert address.stale(copy) == {}
    new = (copy / "_config.yml").read_text()
    assert sum(a != b for a, b in zip(old.splitlines(), new.splitlines(), strict=True)) == 2
    assert 'repository-code: "https://github.com/you/it"' in (copy / "CITATION.cff").read_text()
    badge, install = (
        cell.source for cell in nbformat.read(copy / "notebooks" / "01_it.ipynb", 4).cells
    )
    assert badge.endswith(
        "(https://colab.research.google.com/github/you/it/blob/dev/notebooks/01_it.ipynb)"
    )
    assert 'url = "https://github.com/you/it"\nbranch = "dev"' in install
    source = (copy / "assignments" / "source" / "assignment1" / "assignment1.ipynb").read_text()
    assert "github/you/it/blob/dev/assignments/release/assignment1/assignment1.ipynb)" in source
    assert '"you/it"' in (copy / "assignments/template/.github/workflows/grade.yml").read_text()


def test_an_address_elsewhere_changes_only_where_the_code_is_fetched_from(copy):
    address.set_address("file:///somewhere/ddpp", root=copy)
    changed = address.stale(copy)
    assert all(path.suffix == ".ipynb" for path in changed)
    path = copy / "notebooks" / "01_it.ipynb"
    badge, install = nbformat.reads(changed[path], 4).cells
    assert badge == nbformat.read(path, 4).cells[0]
    assert "file:///somewhere/ddpp" in install.source


@pytest.mark.parametrize(
    "url", ["git@github.com:you/it", "github.com/you/it", "https://github.com/you", "it"]
)
def test_what_is_no_address_is_refused(copy, url):
    with pytest.raises(ValueError, match="not an address like"):
        address.set_address(url, root=copy)


@pytest.mark.parametrize(
    ("url", "colab", "says"),
    [
        (
            "https://github.com/-owner-/ddpp",
            False,
            "ddpp is not installed. Run in a new cell, then restart the kernel: "
            "%pip install FOLDER-OF-THE-PROJECT",
        ),
        (
            "https://github.com/you/it",
            False,
            "then restart the kernel: %pip install git+https://github.com/you/it@main",
        ),
        (
            "https://github.com/-owner-/ddpp",
            True,
            "the owner of your copy in place of -owner- above",
        ),
    ],
)
def test_the_first_cell_says_what_is_missing_and_stops(monkeypatch, tmp_path, url, colab, says):
    monkeypatch.chdir(tmp_path)
    cell = address.INSTALL.format(url=url, branch="main", folder="/content")
    monkeypatch.setitem(sys.modules, "ddpp", None)
    monkeypatch.delitem(sys.modules, "ddpp.pruning", raising=False)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    shell = SimpleNamespace(run_line_magic=lambda *_: None)
    with pytest.raises((ModuleNotFoundError, AssertionError)) as stop:
        exec(TransformerManager().transform_cell(cell), {"get_ipython": lambda: shell})
    assert str(stop.value).endswith(says)


def test_the_first_cell_is_quiet_where_ddpp_is_installed(capsys):
    cell = address.INSTALL.format(url="https://github.com/you/it", branch="main", folder="/")
    exec(TransformerManager().transform_cell(cell), {})
    assert capsys.readouterr().out == ""


def test_a_notebook_without_the_two_cells_is_named(copy):
    nbformat.write(new_notebook(), copy / "notebooks" / "01_it.ipynb")
    with pytest.raises(
        ValueError, match=r"01_it\.ipynb has no cell with the id colab-badge or colab-install"
    ):
        address.stale(copy)


# What is built


@pytest.fixture
def html(tmp_path):
    """A folder as a build leaves it: every page of _toc.yml, and the first one."""
    text = re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
    for name in ["index", *text]:
        page = tmp_path / "html" / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("<p>word</p>" * 2000)
    return tmp_path / "html"


def test_a_book_with_all_its_pages_is_complete(html):
    pages = built.entries(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    assert {path.stem for path in NOTEBOOKS} <= {Path(page).name for page in pages}
    assert len(set(pages)) == len(pages) == len(list(html.rglob("*.html"))) - 1
    assert built.problems(html) == []


def test_a_page_that_is_missing_empty_or_of_yesterday_is_named(html, tmp_path):
    (html / "index.html").unlink()
    (html / "book" / "using.html").unlink()
    (html / "book" / "api.html").write_text("<html></html>")
    os.utime(html / "book" / "index.html", (0, 0))
    wrong = {line.removeprefix(f"{html}/") for line in built.problems(html)}
    assert wrong == {
        "index.html is missing",
        "book/using.html is missing",
        "book/api.html is nearly empty",
        "book/index.html is older than its source",
    }


def test_a_build_that_made_nothing_fails(tmp_path):
    command = [sys.executable, str(ROOT / "book" / "built.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("The book is not complete:\n")
    assert (
        done.stderr.count(" is missing")
        == len(NOTEBOOKS) + len(list((ROOT / "book").glob("*.md"))) + 1
    )


# What is stored in the notebooks


def test_colab_gives_it_a_gpu(path):
    assert nbformat.read(path, 4).metadata.accelerator == "GPU"


def test_no_code_cell_is_too_wide_or_too_long(path):
    sources = [cell.source for cell in code_cells(path)]
    assert [line for source in sources for line in source.splitlines() if len(line) > COLUMNS] == []
    # as long as it is
    one = [source for source in sources if SHOWN.match(source) and len(definitions(source)) == 1]
    assert [
        s.splitlines()[:5] for s in sources if len(s.splitlines()) > LINES and s not in one
    ] == []


def test_it_was_run_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


def test_below_the_code_of_a_solution_is_what_it_printed(path):
    for block in running.solutions(nbformat.read(path, 4).cells):
        code, printed = block["code"], block["printed"]
        assert ("print(" in code) == bool(printed), code
        assert [line for line in code.splitlines() if len(line) > COLUMNS] == []


def test_the_figures_that_it_describes_are_stored(path):
    described = [cell for cell in code_cells(path) if "image" in cell.metadata.get("mystnb", {})]
    lost = [
        cell
        for cell in described
        if not any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    assert [cell.source for cell in lost] == []


def test_it_keeps_no_errors_and_nothing_that_is_dead_without_a_kernel(path):
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            assert not any("widget" in kind for kind in output.get("data", {})), cell.source


def test_every_image_says_what_it_shows():
    alts = Counter()
    for path in NOTEBOOKS:
        for cell in code_cells(path):
            for data in (output.get("data", {}) for output in cell.outputs):
                if any(kind.startswith("image/") for kind in data):
                    alts[
                        cell.metadata.get("mystnb", {})
                        .get("image", {})
                        .get("alt", f"none: {path.name}")
                    ] += 1
                alts.update(
                    re.findall(r'<img[^>]*? alt="([^"]*)"', "".join(data.get("text/html", "")))
                )
    assert [alt for alt in alts if alt.startswith("none: ") or len(alt) < ALT] == []
    assert [alt for alt, count in alts.items() if count > 1] == []


# The code shown is the module's


def definitions(source):
    """Each top-level function, class and assignment, apart from formatting. Of a docstring the
    first paragraph counts: a chapter leaves out the list of arguments and the example.
    """
    found = {}
    for node in ast.parse(source).body:
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
                summary, *_ = ast.get_docstring(inner).split("\n\n")
                inner.body[0].value.value = " ".join(summary.split())
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found[" = ".join(map(ast.unparse, targets))] = ast.dump(node)
    return found


def drifted(cell, module):
    """The names that a cell does not define as the module does."""
    shown, actual = definitions(cell), definitions(module)
    return [name for name in shown if shown[name] != actual.get(name)]


def shown_cells(path):
    return [cell.source for cell in code_cells(path) if SHOWN.match(cell.source)]


def test_the_code_shown_is_the_modules(path):
    for cell in shown_cells(path):
        file = SHOWN.match(cell)[1]
        assert definitions(cell), f"nothing of {file} is shown: {cell}"
        assert drifted(cell, (ROOT / file).read_text()) == [], f"not as in {file}"


def test_nothing_is_left_to_be_written(path):
    for cell in nbformat.read(path, 4).cells:
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|@[A-Z]{3,}@", cell.source), cell.source


@pytest.mark.parametrize("chapter", SHOWING)
def test_the_chapter_shows_code_of_the_module(chapter):
    assert [
        cell for path in NOTEBOOKS if path.name.startswith(chapter) for cell in shown_cells(path)
    ]


def test_an_edit_on_either_side_is_seen():
    module = (ROOT / "ddpp" / "pruning.py").read_text()
    # the same, without its formatting
    cell = "# ddpp/pruning.py\nimport torch\n\n" + ast.unparse(ast.parse(module))
    assert "RULES" in definitions(cell)
    assert "keep_mask" in definitions(cell)
    assert drifted(cell, module) == []
    edits = {
        "keep_mask": ("epsilon < 1", "epsilon <= 1"),
        "matching_loss": ("then match the remaining ones", "then match the others"),
    }
    for name, edit in edits.items():
        assert drifted(cell, module.replace(*edit)) == [name]
        assert drifted(cell.replace(*edit), module) == [name]
    rest = "pruned when epsilon > 0"
    assert rest in module and drifted(cell, module.replace(rest, "pruned")) == []
    assert drifted(cell + "\n\ndef more():\n    pass", module) == ["more"]


def test_running_the_notebooks_costs_nobody_their_runs(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").write_text("hours of work")
    with pytest.raises(KeyboardInterrupt), running.without_runs(tmp_path):
        assert not (tmp_path / "runs").exists()
        (tmp_path / "runs").mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]
    monkeypatch.chdir(tmp_path)
    for name in ("--help", str(tmp_path / "mine.ipynb")):
        with pytest.raises(SystemExit, match="is no notebook in"):
            running.named(name)


def test_the_code_of_the_solutions_is_run_after_the_chapter(tmp_path):
    folded = "<details><summary>{}</summary>\n\n{}\n\n</details>\n"
    code = "```python\n{}\n```"
    old = "\n\n```text\n41\n```"
    text = folded.format("Hint", code.format("print(unknown)"))
    text += folded.format("Solution", code.format("x += 1\nprint(x)") + "{}\n\nIt is so.")
    text += folded.format("Solution", code.format("y = x"))
    text += folded.format("Answer", code.format("print(y + 1)") + "{}")
    cells = [new_code_cell("x = 41\nprint('a')"), new_markdown_cell(text.format(old, ""))]
    path = tmp_path / "chapter.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    running.run(path)
    cells = nbformat.read(path, 4).cells
    assert len(cells) == 2 and cells[0].outputs[0].text == "a\n"
    below = [f"\n\n```text\n{number}\n```" for number in (42, 43)]
    assert cells[1].source == text.format(*below)

    cells[0].outputs[0].text = "of another machine"
    cells[1].source = text.format(old, "")
    nbformat.write(new_notebook(cells=cells), path)
    running.run(path, only_solutions=True)
    cells = nbformat.read(path, 4).cells
    assert cells[0].outputs[0].text == "of another machine"
    assert cells[1].source == text.format(*below)
