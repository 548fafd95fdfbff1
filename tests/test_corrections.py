"""What the book's own extensions of Sphinx make of a page."""

import re
import warnings
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

EXTENSIONS = Path(__file__).parents[1] / "book" / "_ext"
SPACE = "\u00a0"
PAGE = r"""# Title

It is 34 % in 2 GB, or 65.5 ± 0.3 (-0.2 to +0.4) by Eq. (8) and Table I, not `34 % 2 GB`.
The share $p'$, and ($x$) end nothing. Use `ddpp distill --queue FILE` and
`results/sets/cifar10-ipc1-ddpp/distilled.safetensors`.

$$a \pm b = \{0, \ldots, |c|/d\}$$

| Command | `ddpp distill` |
|---|---|
| **Seeds** | 0, and a sentence that has far more letters than any number could have |

![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page's HTML, in a folder of the book, and the folder of what was built."""
    source, out = tmp_path_factory.mktemp("book"), tmp_path_factory.mktemp("html")
    (source / "part").mkdir()
    (source / "index.md").write_text("# Book\n\n```{toctree}\npart/page\n```\n")
    (source / "part" / "page.md").write_text(PAGE)
    options = {
        "extensions": ["myst_parser", "mathml", "corrections"],
        "myst_enable_extensions": ["dollarmath"],
        "html_theme": "basic",
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Sphinx and what draws formulas
        patch.syspath_prepend(EXTENSIONS)
        app = Sphinx(source, None, out, out / "trees", "html", options, status=None)
        app.build()
    return (out / "part" / "page.html").read_text(), out


def test_a_number_keeps_its_unit_and_its_interval_and_code_is_as_it_was(built):
    for words in ("34 %", "2 GB", "65.5 ± 0.3", "-0.2 to +0.4", "Eq. (8)", "Table I"):
        assert words.replace(" ", SPACE) in built[0]
    assert "34 % 2 GB" in re.sub(r"<[^>]*>", "", built[0])


def test_a_formula_keeps_its_punctuation(built):
    page = re.sub(r"<math.*?</math>", "*", built[0], flags=re.DOTALL)
    found = re.findall(r'<span class="together">(.)?<span[^>]*>\*</span>(.)?</span>', page)
    assert found == [("", ","), ("(", ")")]


def test_only_a_long_word_of_code_may_be_cut(built):
    found = re.findall(r'<span class="long">(<span class="pre">.*?</span>)</span>', built[0])
    assert [re.sub("<(?!wbr).*?>", "", word) for word in found] == [
        "results/<wbr>sets/<wbr>cifar10-ipc1-ddpp/<wbr>distilled.<wbr>safetensors"
    ]


def test_a_command_is_no_heading_and_a_sentence_is_marked(built):
    table = built[0][built[0].index("<table") : built[0].index("</table>")]
    assert "<thead" not in table and "ddpp" in table
    assert re.findall(r'<td class="prose">', table) and table.count("prose") == 1


def test_a_badge_needs_no_network(built):
    assert 'src="../_static/colab-badge.svg"' in built[0]
    assert "colab.research.google.com" not in built[0]


def test_operators_are_operators_with_the_spaces_of_tex(built):
    shown = built[0][built[0].index("<math", built[0].index("FILE")) :]
    for sign in "±…|/":
        assert re.search(rf"<mo[^>]*>{re.escape(sign)}</mo>", shown), sign
    assert all('lspace="0"' in mo for mo in re.findall(r"<mo[^>]*>[|/]</mo>", shown))


def test_the_font_has_a_low_prime_whatever_the_script(built):
    (path,) = built[1].rglob("_static/formulas.woff")
    table = TTFont(path)["GSUB"].table
    tags = [record.FeatureTag for record in table.FeatureList.FeatureRecord]
    for record in table.ScriptList.ScriptRecord:
        assert "ssty" in {tags[i] for i in record.Script.DefaultLangSys.FeatureIndex}
