r"""Formulas as MathML, made when the book is built: a page shows them without network and without
JavaScript.

latex2mathml does the work; here is what Sphinx needs of it, and corrections for what browsers do
not read (columnalign) or latex2mathml does not know (aligned). A formula that cannot be converted
is a warning, and so fails a strict build. \tag{8} puts (8) at the right: the number that a formula
has in the paper, which no counter would give it. The font is STIX Two Math (SIL Open Font License),
which ziamath brings along, cut to what formulas use.
"""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import ziamath
from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

SPACE = "{http://www.w3.org/1998/Math/MathML}"
FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
GLYPHS = (  # Latin, accents, Greek, letters and arrows, operators, brackets, letters of mathematics
    "U+20-7E,U+A0-FF,U+2C6,U+2DC,U+300-338,U+391-3F6,U+2016,U+2026,U+2032-2034,U+2100-214F,U+2190-21D5,U+2200-22FF,"
    "U+23DE,U+23DF,U+27E8,U+27E9,U+1D400-1D467,U+1D49C-1D4CF,U+1D538-1D56B,U+1D6A8-1D71B"
)
OPERATORS = {";": ";", ":": ":", "~": "∼", "′": "′", "±": "±", "…": "…", "log": "log"}
SPACES = {  # before and after an operator, as in TeX; browsers put more
    **dict.fromkeys("|/∂", ("0", "0")),
    **dict.fromkeys(("…", "⋯", "log"), ("0", "0.167em")),
    **dict.fromkeys(("max", "min"), ("0.167em", "0")),
}
ACCENTS = {"~": "˜", "^": "ˆ", "¯": "¯"}
TAG = re.compile(r"\\tag\{([^{}]*)\}")
BARE = re.compile(r"\\mathcal ([A-Za-z])")  # which latex2mathml marks for styling alone
ALIGNED = re.compile(r"\\(begin|end)\{align(ed)?\}")

log = logging.getLogger(__name__)
ET.register_namespace("", SPACE[1:-1])


def to_mathml(tex: str, display: bool) -> str:
    """The <math> element of a formula; ValueError where it cannot be made."""
    tex = BARE.sub(r"\\mathcal{\1}", tex)
    tex = ALIGNED.sub(r"\\\1{align*}", tex).replace(r"\mathrm{", r"\text{")
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{align*}}{tex}\end{{align*}}"
    try:
        math = ET.fromstring(convert(tex, display="block" if display else "inline"))
    except Exception as e:  # latex2mathml has an exception for everything; a stray & makes bad XML
        raise ValueError(f"{type(e).__name__} {e}") from e
    for element in math.iter():
        _correct(element)
    unknown = [text for text in math.itertext() if "\\" in text]
    if unknown or math.find(f".//{SPACE}mspace[@linebreak]") is not None:
        raise ValueError(
            f"latex2mathml does not know {unknown[0] if unknown else 'an environment'}"
        )
    return ET.tostring(math, encoding="unicode")


def _correct(element: ET.Element) -> None:
    tag, text = element.tag.removeprefix(SPACE), element.text
    if tag == "mi" and text in OPERATORS:
        tag, element.tag, text = "mo", f"{SPACE}mo", OPERATORS[text]
        element.text = text
    if tag == "mo" and text in SPACES:
        element.attrib |= dict(zip(("lspace", "rspace"), SPACES[text], strict=True))
    # as large as the text; \left and \right say so themselves
    if tag == "mo" and text in ("|", "‖"):
        element.attrib = {"stretchy": "false"} | element.attrib
    if tag == "mover" and element[1].text in ACCENTS:
        element.set("accent", "true")
        element[1].text = ACCENTS[element[1].text]
    if tag == "mtd" and "columnalign" in element.attrib:  # not in MathML Core
        element.set("style", f"text-align: {element.attrib.pop('columnalign')}")
    if tag == "mrow" and [child.text for child in element] == [","]:  # 1{,}000
        element[0].attrib |= {"lspace": "0", "rspace": "0"}


def visit_inline(translator, node: nodes.math) -> None:
    _write(translator, node, "span", display=False)


def visit_block(translator, node: nodes.math_block) -> None:
    _write(translator, node, "div", display=True)


def _write(translator, node, tag: str, display: bool) -> None:
    tex = node.astext().strip()
    given = TAG.search(tex)
    try:
        math = to_mathml(TAG.sub("", tex), display)
    except ValueError as e:
        log.warning("a formula cannot be shown: %s: %s", e, tex, location=node)
        math = f"<code>{translator.encode(tex)}</code>"
    focus = {"tabindex": "0"} if display else {}  # what may scroll must be reachable by keyboard
    translator.body.append(
        translator.starttag(node, tag, "", CLASS="math notranslate nohighlight", **focus)
    )
    translator.body.append(math)
    if given:
        translator.body.append(f'<span class="eqno">({given[1]})</span>')
    elif node.get("number"):
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(f"</{tag}>")
    raise nodes.SkipNode


def _make_small_letters_available(path: Path) -> None:
    """The font has its letters for small sizes, and a low prime, for the script "math" alone, which
    Chromium does not ask for.
    """
    font = TTFont(path)
    table = font["GSUB"].table
    ssty = [record.FeatureTag for record in table.FeatureList.FeatureRecord].index("ssty")
    for record in table.ScriptList.ScriptRecord:
        features = record.Script.DefaultLangSys.FeatureIndex
        features += [ssty] * (ssty not in features)
    font.save(path)


def add_static_files(app) -> None:
    made = Path(app.doctreedir) / "mathml"
    if not (made / "formulas.woff").exists():
        made.mkdir(parents=True, exist_ok=True)
        options = [f"--unicodes={GLYPHS}", "--layout-features+=ssty", "--flavor=woff"]
        options.append("--name-IDs=*")  # with the licence, which must stay in every copy
        subset.main([str(FONT), *options, f"--output-file={made / 'formulas.woff'}"])
        _make_small_letters_available(made / "formulas.woff")
    app.config.html_static_path += [str(Path(__file__).parent / "static"), str(made)]


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    app.connect("builder-inited", add_static_files)
    app.add_css_file("mathml.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
