"""A page that goes with a distilled set, fit for the Hugging Face Hub."""

import math
from collections.abc import Mapping

from ddpp.data.sources import SHA256
from ddpp.distilled import DistilledDataset
from ddpp.distilled.checks import SQUARED_ERROR
from ddpp.evaluating import Evaluation

CARD_HEAD = "---\npretty_name:"  # how a page about a set begins
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", math.inf: "100K<n<1M"}  # the Hub's
YOURS = "PATH/TO/DATA.npz"  # where the data are, if they are somebody's own
LICENCES = {
    "cifar10": "CIFAR-10 (A. Krizhevsky, 2009)",
    "cifar100": "CIFAR-100 (A. Krizhevsky, 2009)",
}


def card(
    distilled: DistilledDataset,
    report: Mapping | None = None,
    file: str = "distilled.safetensors",
    picture: str = "picture.png",
) -> str:
    """Write the card of a set in Markdown, with the metadata that the Hub reads.

    - distilled: the set.
    - report: what `ddpp distill` wrote beside it, for the accuracy to expect. Default: unknown.
    - file: the set's name beside the card.
    - picture: the picture's name beside the card.
    """
    made = distilled.provenance
    data = made.get("data", {}).get("name", "an unnamed data set")
    title = f"{len(distilled)} images distilled from {data}"
    known = data in SHA256
    parts = [_head(title, len(distilled)), f"# {title}", f"![{title}]({picture})"]
    parts += [_what(distilled, data)]
    parts += ["## Train on it", _use(distilled, file, known)]
    parts += ["## What to expect", _expected(report, file, known)]
    parts += ["## How it was made", _made(made)]
    parts += ["## Licence and privacy", _licence(data)]
    return "\n\n".join(parts) + "\n"


def _head(title: str, size: int) -> str:
    category = next(name for below, name in SIZES.items() if size < below)
    lines = [f"{CARD_HEAD} {title}", "license: other", "tags:"]
    lines += ["- dataset-distillation", "- image-classification"]
    lines += ["task_categories:", "- image-classification"]
    lines += ["size_categories:", f"- {category}", "---"]
    return "\n".join(lines)


def _what(distilled: DistilledDataset, data: str) -> str:
    shape = "x".join(map(str, distilled.images.shape[1:]))
    each = {len(members) for members in distilled.by_class()}
    per_class = f"{each.pop()} per class" if len(each) == 1 else "unequally many per class"
    if distilled.formation > 1:
        per_class += f", each of {distilled.formation**2} pictures"
    labels = _labels(distilled)
    kind = "whitened with ZCA" if distilled.whitening.kind == "zca" else "standardized by channel"
    return (
        f"These {len(distilled)} images ({shape}, {per_class}, {labels}) were optimized so that a "
        f"network trained on them alone learns much of what it would learn from {data}. They are "
        f"{kind}; the file also holds the learning rate to train with, "
        f"{float(distilled.alpha):.4f}, the whitening, the names of the "
        f"{len(distilled.classes)} classes, and all settings of the run."
    )


def _labels(distilled: DistilledDataset) -> str:
    if distilled.loss == SQUARED_ERROR:
        return "labels that are targets of a regression, for the squared error"
    return "soft labels" if distilled.labels.is_floating_point() else "hard labels"


def _use(distilled: DistilledDataset, file: str, known: bool) -> str:
    arguments = f'"{file}"' if known else f'"{file}", "{YOURS}"'
    code = f"""```python
import ddpp

opened = ddpp.open_set({arguments})
distilled, data = opened.distilled, opened.data
result = ddpp.evaluate(distilled, data, repeats=1)  # trains a network, tests it on real images
print(result.mean, "% of the test images are right")
"""
    if distilled.formation > 1:
        code += "distilled = distilled.unfolded()  # the pictures in each image, enlarged\n"
    code += "images, labels = distilled.images, distilled.labels"
    code += "  # or train your own way, with distilled.alpha\n```"
    return code if known else f"For `{YOURS}` give the file of the data.\n\n{code}"


def _expected(report: Mapping | None, file: str, known: bool) -> str:
    test = f"Test yourself: `ddpp evaluate {file}" + ("`" if known else f" --data {YOURS}`")
    if not report:
        return f"Nobody wrote down an accuracy for this file. {test}."
    ours, real = (Evaluation(**report[which]) for which in ("distilled", "random"))
    networks = f"mean and deviation of {len(ours.final)} networks"
    return (
        f"Test accuracy {ours.mean:.1f} ± {ours.std:.1f} % ({networks}). The same number of "
        f"random real images gives {real.mean:.1f} ± {real.std:.1f} %. {test} should come within "
        "the deviation. "
        f"Measured on {report['device']}, torch {report['versions']['torch']}, commit "
        f"{report['commit']}, {report['finished']}."
    )


def _made(made: Mapping) -> str:
    config = made.get("config", {})
    rows = {"method": made.get("method")} | config
    if teachers := made.get("teachers"):
        rows |= {"teachers": made.get("teacher_count"), "network": teachers.get("network")}
    rows |= {"mean of the sets after steps": made.get("mean_of")}
    rows |= {"data": made.get("data"), "machines": made.get("made_on")}
    lines = ["| setting | value |", "|---|---|"]
    lines += [f"| {key} | `{value}` |" for key, value in rows.items() if value is not None]
    return "\n".join(lines)


def _licence(data: str) -> str:
    base = str(data).removesuffix("-sample")
    source = LICENCES.get(base, f"'{data}'")
    return (
        f"The images derive from {source}, so its terms apply to them. Distilled images are made "
        "from real ones. They may show them, or reveal who or what was in the data. Do not publish "
        "a set made of data that you would not publish."
    )
