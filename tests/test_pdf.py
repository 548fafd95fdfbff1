"""The pages of the built book become one file to print, in their order, with nothing that is dead
on paper.
"""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "book" / "pdf.py"
pdf = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

TOC = {
    "root": "book/index",
    "parts": [
        {"caption": "Part I", "chapters": [{"file": "notebooks/one"}]},
        {"caption": "Reference", "chapters": [{"file": "book/end"}]},
    ],
}
CONFIG = {"title": "A book", "author": "Some", "html": {"extra_footer": "CC BY"}}
FRAMES = "".join(f'frames[{i}] = "data:image/png;base64,{i}AA\\\n=="\n' for i in range(10))
ONE = f"""
<h1 id="one">1. One<a class="headerlink" href="#one">#</a></h1>
<p><a href="https://colab"><img src="https://colab/colab-badge.svg"></a></p>
<details class="hide"><summary>Show</summary>install</details>
<p>See <a href="../book/end.html#place">the end</a>, <a href="#one">above</a>,
<a href="https://example.org">elsewhere</a> and
<a href="../_images/a.png"><img src="../_images/a.png" alt="a"></a>.</p>
<div class="by-hand"><input type="range"></div><button>Copy</button>
<div class="output text_html"><script>{FRAMES}</script>
<div class="animation"><img alt="It moves."><div class="anim-controls"></div></div></div>
<p>A. Why?</p><details><summary>Answer</summary><p>Because.</p></details>
<h2 id="exercises">Exercises</h2>
<p>1. How?</p><details><summary>Hint</summary><p>Think.</p></details>
<details><summary>Solution</summary><p>So.</p></details>
"""


@pytest.fixture
def html(tmp_path):
    """A folder as a build leaves it, with three pages."""
    pages = {
        "book/index": '<h1 id="a-book">A book</h1><p><a href="../notebooks/one.html">1</a></p>',
        "notebooks/one": ONE,
        "book/end": '<h1 id="end">End</h1><h2 id="place">Place</h2>'
        "<details><summary>All</summary><p>Rest.</p></details>",
    }
    for name, text in pages.items():
        path = tmp_path / "html" / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '<html><head><link rel="stylesheet" href="../_static/a.css?v=1"></head><body>'
            f"<aside>menu</aside><article class='bd-article'><section>{text}</section></article>"
        )
    return tmp_path / "html"


@pytest.fixture
def whole(html):
    text = pdf.whole(html, TOC, CONFIG, {"notebooks-one": 7})
    return BeautifulSoup(text, "html.parser")


def test_pages_are_in_the_order_of_the_contents(whole):
    assert [h1.get_text() for h1 in whole("h1")] == ["Start", "1. One", "End"]
    entries = [" ".join(item.stripped_strings) for item in whole.select("nav li")]
    assert entries == ["Start", "Part I", "1. One 7", "Reference", "End"]
    assert whole.select_one("link")["href"] == "html/_static/a.css"


def test_links_lead_to_places_in_the_same_file(whole):
    ids = [each["id"] for each in whole.select("[id]")]
    assert len(ids) == len(set(ids))
    inside = [link["href"][1:] for link in whole.select("a[href^='#']")]
    assert set(inside) <= set(ids) and "book-end--place" in inside and "notebooks-one" in inside
    outside = [link["href"] for link in whole.select("a:not([href^='#'])")]
    assert outside == ["https://example.org"]
    assert whole.find("img", alt="a")["src"] == "html/_images/a.png"


def test_what_is_dead_on_paper_is_left_out(whole):
    assert whole.select("script, button, input, aside, details, .by-hand, .headerlink") == []
    assert "install" not in whole.get_text() and "colab" not in str(whole.main)


def test_a_player_becomes_four_of_its_frames(whole):
    images = whole.select(".frames img")
    assert [image["src"] for image in images] == [
        f"data:image/png;base64,{i}AA==" for i in (0, 3, 6, 9)
    ]
    assert images[1]["alt"] == "Frame 4 of 10. It moves."


def test_answers_move_to_the_end_of_their_chapter_and_other_folds_open(whole):
    answers = [" ".join(each.stripped_strings) for each in whole.select(".answers .answer")]
    assert answers == ["A. Answer. Because.", "1. Hint. Think.", "1. Solution. So."]
    assert whole.select_one("#notebooks-one > section > .answers:last-child")
    assert "Rest." in whole.select_one("#book-end").get_text()


def test_the_books_own_contents_are_read():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    built = runpy.run_path(str(ROOT / "book" / "built.py"))
    assert [chapter.page for chapter in pdf.chapters(toc)] == built["entries"](toc)


def test_without_chromium_a_sentence_says_so(tmp_path):
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 1 and done.stderr.startswith("Install Chromium first")


def test_a_chromium_that_prints_nothing_is_reported(tmp_path):
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SystemExit, match="printed nothing:\nno display"):
        pdf.print_pdf(str(broken), tmp_path / "a.html", tmp_path / "a.pdf")
