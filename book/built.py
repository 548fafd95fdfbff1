"""Is every page of _toc.yml in the built book? python book/built.py [HTML]; make book asks it after
each build.

A Jupyter Book of another major version builds nothing of this, and ends as if all were well.
"""

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LEAST = 5000  # bytes: an empty page of the book's theme is larger


def entries(toc) -> list[str]:
    """The pages that a table of contents lists, at any depth, without their endings."""
    if isinstance(toc, list):
        return [name for each in toc for name in entries(each)]
    if not isinstance(toc, dict):
        return []
    own = [toc[key] for key in ("root", "file") if key in toc]
    return own + [name for value in toc.values() for name in entries(value)]


def problems(html: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the HTML in a folder, a sentence for each page."""
    names = entries(yaml.safe_load((root / "_toc.yml").read_text()))
    found = [] if (html / "index.html").is_file() else [f"{html / 'index.html'} is missing"]
    for name in names:
        page, sources = (
            html / f"{name}.html",
            [root / f"{name}{ending}" for ending in (".md", ".ipynb")],
        )
        if not page.is_file():
            found.append(f"{page} is missing")
        elif page.stat().st_size < LEAST:
            found.append(f"{page} is nearly empty")
        elif any(
            source.is_file() and source.stat().st_mtime > page.stat().st_mtime for source in sources
        ):
            found.append(f"{page} is older than its source")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html")
    sys.exit("\n".join(["The book is not complete:", *found]) if found else None)
