"""Print the built book as one PDF with Chromium: make pdf, which builds the book first.

All pages of _toc.yml become one HTML file, in their order, so that their links to one another stay
links. Sidebars, buttons, what only moves in a browser and the cells that only Colab needs are left
out. Hints and solutions move to the end of their chapter. A player becomes four of its frames. The
book is printed twice, as its page numbers are known after the first time.
"""

import datetime
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag

import yaml
from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DROPPED = (
    "script, noscript, button, input, a.headerlink, details.hide, .by-hand, .anim-controls, "
    'a:has(img[src*="colab-badge"])'
)
EXERCISE = re.compile(r"(\d+|[A-D])\.")  # or a question to test oneself
FRAME = re.compile(r'frames\[\d+\] = "(.*?)"', re.S)
START = "Start"  # the first page has the book's title as its heading


@dataclass(frozen=True)
class Chapter:
    """A page of the book, as _toc.yml lists it."""

    part: str  # the caption above it; empty for the first page
    page: str  # without its ending


def chapters(toc: dict) -> Iterator[Chapter]:
    """The pages of a table of contents in their order."""
    yield Chapter("", toc["root"])
    for part in toc["parts"]:
        for each in part["chapters"]:
            yield Chapter(part["caption"], each["file"])


def anchor(page: str, place: str = "") -> str:
    """The name of a page, or of a place on it, in the one file."""
    return re.sub(r"\W+", "-", page) + (f"--{place}" if place else "")


def article(chapter: Chapter, html: Path, pages: set[str]) -> Tag:
    """The page's text, ready to stand among the others in a file beside the folder `html`."""
    path = html / f"{chapter.page}.html"
    found = BeautifulSoup(path.read_text(), "html.parser").select_one("article.bd-article")
    assert found is not None, f"{path} is no page of the book"
    for player in found.select("div.output:has(.animation)"):
        show_frames(player)
    for each in found.select(DROPPED):
        each.decompose()
    gather_answers(found)
    for each in found.select("[id]"):
        each["id"] = anchor(chapter.page, str(each["id"]))
    for each in found.select("a[href]"):
        follow(each, path, html, pages)
    for each in found.select("[src]"):
        source = str(each["src"])
        if not source.startswith(("data:", "http")):
            each["src"] = os.path.relpath(path.parent / source, html.parent)
    heading = found.h1
    assert heading is not None, f"{path} has no heading"
    if not chapter.part:
        heading.string = START
    found["id"] = anchor(chapter.page)
    return found


def show_frames(player: Tag) -> None:
    """Replace a player by at most four of its frames, from the first to the last."""
    frames = [data.replace("\\\n", "") for data in FRAME.findall(str(player))]
    alt = player.select_one("img[alt]")
    strip = BeautifulSoup('<div class="frames"></div>', "html.parser").div
    assert strip is not None and frames and alt is not None, "a player without frames"
    for at in sorted({round(i * (len(frames) - 1) / 3) for i in range(4)}):
        text = f"Frame {at + 1} of {len(frames)}. {alt['alt']}"
        strip.append(Tag(name="img", attrs={"src": frames[at], "alt": text}))
    player.replace_with(strip)


def gather_answers(page: Tag) -> None:
    """Move what is folded under a numbered or lettered question to the page's end; open others."""
    last = None
    for folded in page.select("details"):
        question = next(
            (p for p in folded.find_previous_siblings("p") if EXERCISE.match(p.get_text())), None
        )
        summary = folded.summary
        assert summary is not None
        name = summary.get_text(strip=True)
        summary.name, folded.name = "strong", "div"
        folded["class"] = "answer"
        if question is None:
            continue
        number = EXERCISE.match(question.get_text())
        summary.string = f"{number[0]} {name}. " if number else name
        if last is None:
            last = Tag(name="section", attrs={"class": "answers"})
            title = Tag(name="h2")
            title.string = "Hints and answers"
            last.append(title)
        last.append(folded.extract())
    if last is not None and page.section is not None:
        page.section.append(last)


def follow(link: Tag, path: Path, html: Path, pages: set[str]) -> None:
    """Let a link lead to the same place in the one file; leave out one that would lead nowhere."""
    url, place = urldefrag(str(link["href"]))
    if re.match("[a-z]+:", url):
        return
    target = (
        os.path.relpath(path.parent / unquote(url), html) if url else f"{path.relative_to(html)}"
    )
    page = target.removesuffix(".html")
    if page in pages:
        link["href"] = f"#{anchor(page, place)}"
    else:
        link.unwrap()


def whole(html: Path, toc: dict, config: dict, pages: dict[str, int]) -> str:
    """All of the book as one page for a file beside the folder `html`.

    `pages` has the page number of each anchor, as far as known.
    """
    listed = list(chapters(toc))
    names = {chapter.page for chapter in listed}
    articles = [article(chapter, html, names) for chapter in listed]
    head = BeautifulSoup((html / f"{toc['root']}.html").read_text(), "html.parser")
    first = (html / toc["root"]).parent
    styles = [str(link["href"]).partition("?")[0] for link in head.select("link[rel=stylesheet]")]
    links = "".join(
        f'<link rel="stylesheet" href="{os.path.relpath(first / style, html.parent)}">'
        for style in styles
    )
    entries, part = [], ""
    for chapter, found in zip(listed, articles, strict=True):
        if chapter.part != part:
            part = chapter.part
            entries.append(f'<li class="part">{part}</li>')
        place = anchor(chapter.page)
        title = found.h1.get_text() if found.h1 else chapter.page
        entries.append(
            f'<li><a href="#{place}">{title}</a><span>{pages.get(place, "")}</span></li>'
        )
    today = datetime.date.today()
    return f"""<!doctype html>
<html lang="en" data-theme="light" data-mode="light">
<head><meta charset="utf-8"><title>{config["title"]}</title>{links}
<style>{(ROOT / "book" / "pdf.css").read_text()}</style></head>
<body>
<header><p class="title">{config["title"]}</p><p>{config["author"]}</p>
<p>{today.day} {today:%B %Y}</p><p>{config["html"]["extra_footer"]}</p></header>
<nav><p class="title">Contents</p><ul>{"".join(entries)}</ul></nav>
<main>{"".join(map(str, articles))}</main>
</body></html>"""


def print_pdf(chromium: str, source: Path, out: Path) -> None:
    """Print an HTML file. Exits with a sentence where that fails."""
    out.unlink(missing_ok=True)
    options = "--headless --no-sandbox --disable-gpu --no-pdf-header-footer".split()
    options += ["--generate-pdf-document-outline", f"--print-to-pdf={out}", source.as_uri()]
    done = subprocess.run([chromium, *options], capture_output=True, text=True)
    if not out.is_file():
        sys.exit(f"Chromium printed nothing:\n{done.stderr.strip()[-2000:]}")


def page_numbers(pdf: Path) -> tuple[dict[str, int], int]:
    """On which page each anchor is, and how many pages there are."""
    from pypdf import PdfReader  # installed by make pdf

    reader = PdfReader(pdf)
    places = reader.named_destinations.items()
    found = {name.lstrip("/"): reader.get_destination_page_number(place) for name, place in places}
    return {name: 1 + at for name, at in found.items() if at is not None}, len(reader.pages)


def main() -> None:
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not chromium:
        sys.exit("Install Chromium first: it prints the book. (Debian: apt install chromium)")
    if runpy.run_path(str(ROOT / "book" / "built.py"))["problems"](BUILD / "html"):
        sys.exit("Build the book first: make book")
    toc, config = (
        yaml.safe_load((ROOT / name).read_text()) for name in ("_toc.yml", "_config.yml")
    )
    source, out, pages = BUILD / "ddpp.html", BUILD / "ddpp.pdf", {}
    for _ in range(2):
        source.write_text(whole(BUILD / "html", toc, config, pages))
        print_pdf(chromium, source, out)
        pages, count = page_numbers(out)
    lost = [c.page for c in chapters(toc) if anchor(c.page) not in pages]
    if lost:
        sys.exit(f"These pages are not in {out}: {', '.join(lost)}")
    print(f"{out}: {count} pages")


if __name__ == "__main__":
    main()
