"""Corrections of the pages that Sphinx makes, for what a notebook or Markdown cannot say.

They come last, when titles, links and anchors are made from the text as it was written.
"""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.osutil import relative_uri

# White space at which a line must not end
TOGETHER = re.compile(
    r"""(?<=\d)\s(?=(?:%|[kMGT]i?B|h|s)(?!\w))  # 34 %, 2 GB
      | (?<=[\w)])\s(?=[±×=<>≈]\s?[+−-]?\d) | (?<=[±×=<>≈])\s(?=[+−-]?\d)  # 65.5 ± 0.3, ε = 8
      | (?<=\d)\s(?=to\s[+−-]?\d) | (?<=\d\sto)\s(?=[+−-]?\d)  # -0.2 to +0.4
    """,
    re.VERBOSE,
)
NUMBERED = re.compile(
    r"\b(Table|Fig\.|Eqs?\.|Section|Algorithm|[Cc]hapter|[Ee]xercise|[Ss]eed)\s(?=\(?\d|[IVX]+\b)"
)
AS_WRITTEN = (nodes.literal, nodes.math, nodes.FixedTextElement)
LONG_WORD = re.compile(r"(\S{25,})")  # a phone's line may not hold it
PART = re.compile(r"(?<=[/._(,])(?=[^\W_])")  # where one begins
SENTENCE = 40  # characters: a cell of a table with more holds no numbers
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


class Correction(SphinxPostTransform):
    default_priority = 400  # after those of Sphinx and MyST-NB
    formats = ("html",)


class NumbersKeepTheirUnits(Correction):
    def run(self, **kwargs) -> None:
        for text in list(self.document.findall(nodes.Text)):
            if not isinstance(text.parent, AS_WRITTEN):
                new = NUMBERED.sub("\\1\u00a0", TOGETHER.sub("\u00a0", text))
                if new != text:
                    text.parent.replace(text, nodes.Text(new))


class FormulasKeepTheirPunctuation(Correction):
    """Else a browser may end a line on both sides of a formula, even before a comma."""

    def run(self, **kwargs) -> None:
        for formula in list(self.document.findall(nodes.math)):
            parent, at = formula.parent, formula.parent.index(formula)
            parent[at] = whole = nodes.inline(classes=["together"])
            whole += formula
            for i, edge in ((at - 1, r"\S+\Z"), (at + 1, r"\A\S+")):
                text = parent[i] if 0 <= i < len(parent) else None
                if isinstance(text, nodes.Text) and (found := re.search(edge, text)):
                    whole.insert(0 if i < at else len(whole), nodes.Text(found[0]))
                    parent[i] = nodes.Text(re.sub(edge, "", text))


class LongCodeWraps(Correction):
    """A word of code stays on one line, as an option does with its dashes, unless it may be longer
    than a line. Then it is best cut between its parts.
    """

    def run(self, **kwargs) -> None:
        for code in self.document.findall(nodes.literal):
            words = LONG_WORD.split(code.astext())  # each second one is long
            if len(words) > 1:
                code.children = []
                for i, word in enumerate(words):
                    code += self.long(word) if i % 2 else nodes.Text(word)

    def long(self, word: str) -> nodes.inline:
        first, *others = map(nodes.Text, PART.split(word))
        whole = nodes.inline("", "", first, classes=["long"])
        for part in others:
            whole += [nodes.raw("", "<wbr>", format="html"), part]
        return whole


class SentencesInTablesAreMarked(Correction):
    def run(self, **kwargs) -> None:
        for cell in self.document.findall(nodes.entry):
            if len(cell.astext()) > SENTENCE:
                cell["classes"].append("prose")


class CommandsAreNoHeadings(Correction):
    """Markdown has no table without a head. The first column is the head of those that begin with
    a command.
    """

    def run(self, **kwargs) -> None:
        for head in list(self.document.findall(nodes.thead)):
            if head[0][0].astext() in ("Command", "Commands"):
                group, body = head.parent, head.parent[-1]
                group.remove(head)
                body.insert(0, head.children)
                group[0]["stub"] = 1


class BadgesNeedNoNetwork(Correction):
    def run(self, **kwargs) -> None:
        here = self.app.builder.get_target_uri(self.env.docname)
        for image in self.document.findall(nodes.image):
            if image["uri"] == BADGE:
                image["uri"] = relative_uri(here, "_static/colab-badge.svg")


def setup(app):
    for correction in Correction.__subclasses__():
        app.add_post_transform(correction)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
