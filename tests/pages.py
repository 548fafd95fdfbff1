"""Opens every page of the built book in Chromium, without a network, and says what is wrong: python
tests/pages.py

Each page is seen on a desk and on a phone, light and dark, with all that folds unfolded. It must
not scroll sideways, must have no serious finding of axe (accessibility), and must load all it
needs; its images say what they show, its players play, its menu opens, its links lead somewhere.
--shots DIR leaves pictures of the pages in DIR.
"""

import argparse
import re
import shutil
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, Page, sync_playwright

HTML = Path(__file__).parents[1] / "_build" / "html"
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
MODES = ("light", "dark")
LARGEST = 6  # megabytes of one page's HTML
SLICE = 4000  # pixels of height of one picture: a chapter is too tall for one
OUTSIDE = re.compile("^(?!file:|data:|blob:|about:)")
# Jupyter Book sets it twice; nothing here uses it
HARMLESS = "'THEBE_JS_URL' has already been declared"
# it cannot fetch stylesheets again from files
AXE = {"resultTypes": ["violations"], "preload": False}

UNFOLD = """() => {
  document.querySelectorAll("main details").forEach(d => { d.open = true })
  document.querySelectorAll("main button.toggle-button-hidden").forEach(b => b.click())
}"""
# What sticks out of the window, unless it scrolls inside something smaller than the page; the
# innermost elements only.
SIDEWAYS = """() => {
  const out = e => e.getBoundingClientRect().right > innerWidth + 1;
  const held = e => e && !e.contains(document.querySelector("h1"))
    && (getComputedStyle(e).overflowX != "visible" || held(e.parentElement));
  const found = [...document.querySelectorAll("main *")].filter(
    e => e.checkVisibility() && out(e) && !held(e.parentElement) && ![...e.children].some(out));
  const names = found.map(e => e.outerHTML.slice(0, 90));
  const wide = document.documentElement.scrollWidth > innerWidth;
  return wide && !found.length ? ["the page"] : names.slice(0, 5);
}"""
IMAGES = """() => [...document.images]
  .filter(i => !["presentation", "none"].includes(i.getAttribute("role")))
  .map(i => [i.src.slice(0, 80), i.alt.trim()])"""
LINKS = """() => [[...document.querySelectorAll("a[href]")].map(a => a.href),
  [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name)]"""
# a rule and an epsilon of "The rule by hand", and how many pairs its data says are pruned
BY_HAND = """([rule, epsilon]) => {
  const { pruned } = JSON.parse(document.querySelector("#by-hand-data").textContent).rules[rule];
  return pruned[Math.min(Math.round(100 * epsilon), pruned.length - 1)].toLocaleString("en");
}"""
FRAME = "player => player.querySelector('img').src"
TURNED = "([player, before]) => player.querySelector('img').src != before"


def pages() -> list[Path]:
    """The book's own pages, without redirects and templates."""
    own = [
        p for p in sorted(HTML.rglob("*.html")) if not p.relative_to(HTML).parts[0].startswith("_")
    ]
    return [p for p in own if 'http-equiv="refresh"' not in p.read_text().lower()]


def look(page: Page, url: str) -> list[str]:
    """What is wrong with the page in this window, as it is before anything is clicked."""
    wrong = []
    page.on(
        "requestfailed",
        lambda request: wrong.append(f"not loaded: {request.url[:120]}"),
    )
    page.on(
        "pageerror",
        lambda error: HARMLESS in error.message or wrong.append(f"script error: {error.message}"),
    )
    page.goto(url)
    page.evaluate(UNFOLD)
    page.wait_for_timeout(300)
    wrong += [f"sticks out: {element}" for element in page.evaluate(SIDEWAYS)]
    for found in Axe().run(page, options=AXE).response["violations"]:
        if found["impact"] in ("serious", "critical"):
            wrong += [
                f"{found['id']}: {' '.join(node['html'].split())[:120]}" for node in found["nodes"]
            ]
    for name, alt in page.evaluate(IMAGES):
        if not alt or re.search(r"\.(png|svg|jpe?g|gif|webp)$", alt):
            wrong.append(f"image without a text: {name}")
    return wrong


def click(page: Page) -> list[str]:
    """Which players do not show another frame after Play, whether the rule by hand prunes another
    number of pairs than was stored, and whether a phone's menu does not open.
    """
    wrong = []
    for i, player in enumerate(page.locator(".animation").element_handles()):
        before = player.evaluate(FRAME)
        try:
            player.query_selector("button[title=Play]").click()
            page.wait_for_function(TURNED, arg=[player, before], timeout=10_000)
        except (AttributeError, Error):
            wrong.append(f"player {i + 1} does not play")
    if page.locator("#by-hand").count():
        wrong += move(page)
    if page.viewport_size["width"] < 960:
        page.locator(".bd-header-article .primary-toggle").click()
        if not page.locator("#pst-primary-sidebar-modal[open]").count():
            wrong.append("the menu does not open")
    return wrong


def move(page: Page) -> list[str]:
    """What "The rule by hand" says wrongly when its controls are used as a reader would."""
    wrong = []
    for rule, layer, keys, epsilon in (
        ("signed", "all layers", ["ArrowRight"], 0.11),
        ("magnitude", "all layers", ["End", "ArrowLeft"], 0.98),
        ("largest", "shifts", ["Home", *["ArrowRight"] * 7], 0.07),
        ("sign", "last layer", [], 0),
        ("none", "scales", [], 0),
    ):
        page.locator("#by-hand [name=rule]").select_option(rule)
        page.locator("#by-hand [name=layer]").select_option(layer)
        for key in keys:
            page.locator("#by-hand [name=epsilon]").press(key)
        stored = page.evaluate(BY_HAND, [rule, epsilon])
        shown = page.locator("#by-hand td:not(.one)[data-of=pruned]").inner_text()
        if shown != stored:
            wrong.append(f"{rule} at {epsilon} prunes {stored} pairs, but {shown} are shown")
    return wrong


def shoot(page: Page, stem: str) -> None:
    height, width = (
        page.evaluate("document.documentElement.scrollHeight"),
        page.viewport_size["width"],
    )
    for i, top in enumerate(range(0, height, SLICE)):
        clip = {"x": 0, "y": top, "width": width, "height": min(SLICE, height - top)}
        page.screenshot(path=f"{stem}-{i}.png", full_page=True, clip=clip)


def dead(links: dict[str, set[str]], places: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The links of each page that lead to no file, or to no such place in it."""
    found = []
    for page, target in [
        (page, target) for page, targets in links.items() for target in sorted(targets)
    ]:
        url, place = map(unquote, urldefrag(target))
        there = Path(urlparse(url).path).exists() and (
            not place or url not in places or place in places[url]
        )
        if url.startswith("file:") and not there:
            found.append((page, f"dead link: {url.rpartition('/')[2]}#{place}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shots", type=Path, metavar="DIR", help="where to leave pictures of the pages"
    )
    shots = parser.parse_args().shots
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not chromium or not (found := pages()):
        sys.exit("Install Chromium first." if not chromium else "Build the book first: make book")
    wrong, links, places = (
        defaultdict(lambda: defaultdict(list)),
        defaultdict(set),
        defaultdict(set),
    )
    with sync_playwright() as playwright:
        # its own pages only
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path, (size, (width, height)), mode in product(found, SIZES.items(), MODES):
            url, window = path.as_uri(), {"width": width, "height": height}
            context = browser.new_context(
                viewport=window, color_scheme=mode, reduced_motion="reduce"
            )
            context.route(OUTSIDE, lambda route: route.abort())
            page = context.new_page()
            here = look(page, url)
            for known, new in zip((links[url], places[url]), page.evaluate(LINKS), strict=True):
                known.update(new)
            if shots:
                shoot(
                    page,
                    str(
                        shots
                        / "-".join([*path.relative_to(HTML).with_suffix("").parts, size, mode])
                    ),
                )
            for finding in dict.fromkeys(here + click(page)):
                wrong[url][finding].append(f"{size} {mode}")
            context.close()
    for url, finding in dead(links, places):
        wrong[url][finding] = ["any window"]
    for path in found:
        if (megabytes := path.stat().st_size / 1e6) > LARGEST:
            wrong[path.as_uri()][f"{megabytes:.1f} MB are too large"] = ["any window"]
        here = wrong[path.as_uri()]
        print(f"{path.relative_to(HTML)}: {len(here) or 'nothing'} found")
        for finding, where in here.items():
            print(
                f"  {finding}  "
                f"({', '.join(where) if len(where) < len(SIZES) * len(MODES) else 'any window'})"
            )
    sys.exit(bool(any(wrong.values())))


if __name__ == "__main__":
    main()
