"""Write this project's address wherever it stands: python book/address.py [URL [BRANCH]]

The one place to change is `repository` in _config.yml; with a URL, that is set first. Made from it
are, in each chapter and in the instructor's notebook of each assignment, the cells with the ids
colab-badge and colab-install; in the README and the book's pages, links to Colab and what follows
`git clone`; the course in the template of a student's repository; and the citation. Colab opens
notebooks from GitHub only, so an address elsewhere changes where the code is fetched from, and
leaves the links and the citation as they are.
"""

import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).parents[1]
URL = re.compile(r"\w+://[\w.~:/@+-]+")
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?")
COLAB = re.compile(
    r"https://colab\.research\.google\.com/github/[^\s()]+?/(?=notebooks/|assignments/)"
)
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
INSTALL = """\
# On Colab: fetch ddpp and install it; no other package changes.
# Elsewhere: look whether ddpp is installed.
import sys
from importlib import import_module
from pathlib import Path

url = "{url}"
branch = "{branch}"
known = "/-" not in url  # -owner- is to be replaced
if "google.colab" in sys.modules:
    %cd -q /content
    if not Path("ddpp").exists():
        assert known, "put the owner of your copy in place of -owner- above"
        %sx GIT_TERMINAL_PROMPT=0 git clone --depth 1 -b {{branch}} {{url}} ddpp
    assert Path("ddpp").exists(), f"{{url}}: no {{branch}}, private, or offline"
    %pip install -q --no-deps ./ddpp tyro
    %cd -q {folder}
else:
    try:
        import_module("ddpp.pruning")
    except ModuleNotFoundError as e:
        what = f"git+{{url}}@{{branch}}" if known else "FOLDER-OF-THE-PROJECT"
        raise ModuleNotFoundError(
            f"{{e.name.split('.')[0]}} is not installed. Run in a new cell, "
            f"then restart the kernel: %pip install {{what}}"
        ) from None"""


def stale(root: Path = ROOT) -> dict[Path, str]:
    """The files that do not have the address of _config.yml, with the text that they should
    have.
    """
    repository = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    url, branch = repository["url"], repository["branch"]
    on_github = GITHUB.fullmatch(url)
    colab = on_github and f"https://colab.research.google.com/github/{on_github[1]}/blob/{branch}/"
    texts = {}
    for path in [root / "README.md", *sorted((root / "book").glob("*.md"))]:
        text = re.sub(r"(git clone (?:-\S+ )*)\w+://[^\s`]+", rf"\g<1>{url}", path.read_text())
        texts[path] = COLAB.sub(colab, text) if colab else text
    if on_github:
        workflow = root / "assignments" / "template" / ".github" / "workflows" / "grade.yml"
        if workflow.exists():
            texts[workflow] = re.sub(
                r'(repository: )".*?"', rf'\g<1>"{on_github[1]}"', workflow.read_text()
            )
        citation = root / "CITATION.cff"
        texts[citation] = re.sub(
            "(?m)^repository-code:.*", f'repository-code: "{url}"', citation.read_text()
        )
    changed = {path: text for path, text in texts.items() if text != path.read_text()}
    for path in [
        *sorted(root.glob("notebooks/*.ipynb")),
        *sorted(root.glob("assignments/source/*/*.ipynb")),
    ]:
        chapter = path.parent == root / "notebooks"
        opened = (
            f"notebooks/{path.name}" if chapter else f"assignments/release/{path.stem}/{path.name}"
        )
        folder = "ddpp/notebooks" if chapter else "/content"
        notebook = nbformat.read(path, 4)
        cells = {cell.get("id"): cell for cell in notebook.cells}
        wanted = {"colab-install": INSTALL.format(url=url, branch=branch, folder=folder)}
        wanted |= {"colab-badge": BADGE.format(link=colab + opened)} if colab else {}
        if missing := wanted.keys() - cells.keys():
            raise ValueError(
                f"{path.relative_to(root)} has no cell with the id {' or '.join(sorted(missing))}"
            )
        if colab:  # other links to Colab, as in the assignments
            wanted |= {
                cell.id: COLAB.sub(colab, cell.source)
                for cell in notebook.cells
                if cell.cell_type == "markdown" and cell.get("id") not in (None, *wanted)
            }
        if any(cells[name].source != source for name, source in wanted.items()):
            for name, source in wanted.items():
                cells[name].source = source
            changed[path] = nbformat.writes(notebook) + "\n"
    return changed


def set_address(url: str, branch: str | None = None, root: Path = ROOT) -> None:
    """Change the address in _config.yml, and nothing else there."""
    if on_github := GITHUB.fullmatch(url):
        url = f"https://github.com/{on_github[1]}"
    elif "github.com" in url or not URL.fullmatch(url):
        raise ValueError(f"{url} is not an address like https://github.com/you/ddpp")
    if branch and not re.fullmatch(r"[\w./-]+", branch):
        raise ValueError(f"{branch} cannot be the name of a branch")
    path = root / "_config.yml"
    text = path.read_text()
    for key, value in (("url", url), ("branch", branch)):
        if value:
            text = re.sub(
                rf"(?m)^(repository:.*\n(?:[ #].*\n)*?  {key}: )\S+", rf"\g<1>{value}", text
            )
            if yaml.safe_load(text)["repository"][key] != value:
                raise ValueError(
                    f"cannot find {key} under repository in _config.yml: set it there by hand"
                )
    path.write_text(text)


if __name__ == "__main__":
    try:
        if sys.argv[1:]:
            set_address(*(argument.rstrip("/") for argument in sys.argv[1:3]))
        for path, text in stale().items():
            path.write_text(text)
            print("changed", path.relative_to(ROOT))
    except ValueError as e:
        sys.exit(str(e))
