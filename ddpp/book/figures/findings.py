"""Figures of what comparisons, audits and rankings found."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpp.book.figures.charts import WIDTH, drawable
from ddpp.book.figures.sets import pictures
from ddpp.evaluating import spread
from ddpp.experiments.comparing import Comparison, Difference
from ddpp.judging import Judged
from ddpp.studies.auditing import Audit
from ddpp.studies.membership import GRID, Leak, gaussians
from ddpp.studies.ranking import STATISTICS, TRUTH, Ranking


def ablation(lines: Sequence[dict]) -> Figure:
    """Plot paired differences to MTT, share of parameters kept and final loss against epsilon.

    Each small dot is one seed. Where there are several, a larger one with a bar is their mean with
    its 95 % interval. The grey line is rule none, that is, MTT.

    - lines: from `tables.summarize`.
    """
    figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 8), sharex=True, layout="constrained")
    titles = (
        "accuracy minus MTT's (points)",
        "effective parameters (%)",
        "loss over all parameters",
    )
    rules = list(dict.fromkeys(line["rule"] for line in lines if line["rule"] != "none"))
    for i, rule in enumerate(rules):
        points = [line for line in lines if line["rule"] == rule and line["mean"] is not None]
        color, marker = f"C{i}", "os^Dv"[i % 5]
        shift = 0.012 * (i - (len(rules) - 1) / 2)  # side by side, not on one another
        for point in points:
            x, found = point["epsilon"] + shift, Difference(tuple(point["gains"]))
            axes[0].plot([x] * len(found.values), found.values, marker, ms=2.5, color=color)
            if len(found.values) > 1:
                look = {"fmt": marker, "ms": 5, "mfc": "white", "capsize": 2, "lw": 1.2}
                axes[0].errorbar(x, found.mean, found.half, color=color, **look)
        style = "-" if rule in ("signed", "magnitude") else ":"
        for axis, key, scale in ((axes[1], "kept", 100), (axes[2], "unmasked", 1)):
            x, y = [p["epsilon"] for p in points], [scale * p[key] for p in points]
            axis.plot(x, y, marker + style, ms=4, lw=1.2, color=color, label=rule)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
    axes[2].set_xlabel("epsilon")
    axes[0].axhline(0, color="grey", lw=1)
    base = next((line for line in lines if line["rule"] == "none"), None)
    if base and base["unmasked"] is not None:
        axes[2].axhline(base["unmasked"], color="grey", lw=1, label="none (MTT)")
    figure.legend(
        *axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return figure


def turning(found: Mapping, factors: Sequence[str], masks: Sequence[str]) -> Figure:
    """Draw how far masks turn the gradient of the images, one panel per factor.

    - found: the content of a file of tools/map.py.
    - factors: one panel each, as "J, student steps"; "epsilon" takes rules without their own.
    - masks: one line each, as "signed@0.1".
    """
    rows = (len(factors) + 1) // 2
    size = (WIDTH, 2.2 * rows + 0.5)
    figure, axes = plt.subplots(rows, 2, figsize=size, sharey=True, layout="constrained")
    for axis, factor in zip(axes.flat, factors, strict=False):
        points = [point for point in found["points"] if point["factor"] == factor]
        named = {mask.partition("@")[0] for mask in masks} if factor == "epsilon" else masks
        for mask in masks:
            name = mask.partition("@")[0] if factor == "epsilon" else mask
            if name not in named:
                continue
            named = {*named} - {name}
            line = [(p["value"], row) for p in points for row in p["rows"] if _is(row, name)]
            if line:
                style = "-" if name.startswith("sign") else ":"
                x, y = [value for value, _ in line], [row["angle"] for _, row in line]
                label = mask.removesuffix("@0").replace("@", ", ε = ")
                look = {"color": f"C{masks.index(mask)}", "label": label}
                axis.plot(x, y, "o" + style, ms=3, lw=1.2, **look)
        values = sorted({point["value"] for point in points})
        even = factor.startswith(("K", "epsilon")) or 0 in values
        axis.set(xlabel=factor, xscale="symlog" if 0 in values else "linear" if even else "log")
        shown = values if len(values) < 7 else values[2::2]
        axis.set_xticks(shown, [f"{v:g}" for v in shown], fontsize=7)
        axis.minorticks_off()
    for axis in axes.flat[len(factors) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("turn of the gradient (°)", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _is(row: Mapping, name: str) -> bool:
    mask = row["mask"]
    return mask == name or ("@" not in name and mask.partition("@")[0] == name)


def comparison(found: Comparison) -> Figure:
    """Draw the paired differences of each rule to the base: dots, mean and 95 % interval.

    - found: by `ddpp.compare`.
    """
    return comparisons({"": found})


def comparisons(found: Mapping[str, Comparison]) -> Figure:
    """Draw several comparisons of the same rules, one below the other, see `comparison`.

    - found: by name, which is the panel's title.
    """
    rows = list(dict.fromkeys(setting for one in found.values() for setting in one.differences))
    size = (WIDTH, 0.6 + (0.4 + 0.4 * len(rows)) * len(found))
    figure, axes = plt.subplots(
        len(found), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, one) in zip(axes.flat, found.items(), strict=True):
        for setting, difference in one.differences.items():
            y, values = rows.index(setting), difference.values
            axis.plot(values, [y] * len(values), "o", ms=4, color="C0", alpha=0.5)
            look = {"fmt": "s", "ms": 5, "capsize": 3, "color": "C3"}
            axis.errorbar(difference.mean, y - 0.2, xerr=difference.half, **look)
        axis.axvline(0, color="grey", lw=1)
        axis.set_title(title, fontsize=9)
    axes[0, 0].set(
        yticks=range(len(rows)),
        yticklabels=[f"{rule}, {epsilon:g}" for rule, epsilon in rows],
        ylim=(len(rows) - 0.5, -0.6),
    )
    base = next(iter(found.values())).base[0]
    figure.supxlabel(f"difference from {base} in test accuracy (points)", fontsize=10)
    return figure


def ceiling(reports: Mapping[str, Mapping]) -> Figure:
    """Draw the accuracy of a set between random real images and the teachers that it matches.

    - reports: by name, as a run writes them; each has "random", "distilled" and "teachers".
    """
    size = (WIDTH, 1 + 0.5 * len(reports))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    looks = (
        ("random", "final", "random real images", {"fmt": "o", "mfc": "white", "color": "C7"}),
        ("distilled", "final", "distilled images", {"fmt": "o", "color": "C0"}),
        ("teachers", "accuracies", "teachers, at the last epoch matched", {"fmt": "D"}),
    )
    for part, key, label, look in looks:
        values = [report[part][key] for report in reports.values()]
        x, bars = [sum(v) / len(v) for v in values], [spread(v) for v in values]
        how: dict[str, Any] = {"color": "C3", "ms": 6, "capsize": 3} | look
        axis.errorbar(x, range(len(values)), xerr=bars, label=label, **how)
    axis.set(
        yticks=range(len(reports)),
        yticklabels=list(reports),
        ylim=(len(reports) - 0.5, -0.5),
        xlabel="test accuracy (%)",
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def shadows(scores: Tensor, members: Tensor, images: Mapping[str, int], target: int) -> Figure:
    """Draw what the likelihood ratio attack compares, one panel below the other.

    - scores: of models and images, (M, N).
    - members: which images each model was made from, (M, N).
    - images: of each panel, by its title.
    - target: the model that is attacked, a dashed line; the others are dots, with their Gaussians.
    """
    size = (WIDTH, 0.7 + 1.7 * len(images))
    figure, axes = plt.subplots(
        len(images), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    scores, members = drawable(scores), drawable(members)
    others = torch.arange(len(scores)) != target
    for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
        for color, name, chosen in (("C0", "in", members), ("C3", "out", ~members)):
            mean, variance = gaussians(scores[others], chosen[others])
            center, deviation = float(mean[image]), float(variance) ** 0.5
            x = np.linspace(center - 3 * deviation, center + 3 * deviation, 100)
            axis.plot(x, np.exp(-(((x - center) / deviation) ** 2) / 2), color=color)
            points = scores[others & chosen[:, image], image]
            axis.plot(points, [0] * len(points), "o", ms=5, color=color, label=name)
        axis.axvline(float(scores[target, image]), color="black", ls="--", lw=1.2, label="target")
        axis.set_title(title, fontsize=9)
        axis.set(yticks=[], ylim=(-0.1, 1.1))
    axes[-1, 0].set_xlabel("scaled confidence in the label")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def rocs(audits: Mapping[str, Audit], attack: str = "lira") -> Figure:
    """Draw the curves of an attack on logarithmic axes: for all images, and for canaries below.

    - audits: by name.
    - attack: which one.
    """
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 7.5), sharex=True, layout="constrained")
    groups = (("all", "all audited images"), ("canaries", "canaries: images with a wrong label"))
    for axis, (group, title) in zip(axes, groups, strict=True):
        for i, (name, one) in enumerate(audits.items()):
            found: Leak = getattr(one, group)[attack]
            least = 1 / found.negatives  # below a single false positive there is nothing to see
            points = [(x, y) for x, y in zip(GRID, found.curve, strict=True) if x >= least and y]
            style = ("-", "--", ":")[i // 4 % 3]
            axis.plot(*zip(*points, strict=True), style, color=f"C{i}", lw=1.4, label=name)
        axis.plot([1e-4, 1], [1e-4, 1], color="grey", lw=1, label="a guess")
        axis.set(xscale="log", yscale="log", xlim=(5e-4, 1), ylim=(5e-4, 1.1))
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("true positives (rate)", fontsize=9)
    axes[1].set_xlabel("false positives (rate)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def ranking(found: Ranking, names: Sequence[str] = (), factor: str = "norm") -> Figure:
    """Plot what each network learns from a small set against what it learns from all images.

    - found: by `studies.rank`.
    - names: of the sets, one panel each, one below the other. Default: all.
    - factor: the field of Candidate that colours and markers show.
    """
    shown = list(names) or list(found.proxies)
    size = (WIDTH, 0.6 + 2.5 * len(shown))
    figure, axes = plt.subplots(
        len(shown), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    truth, of = found.truth.mean(0), [getattr(one, factor) for one in found.candidates]
    for axis, name in zip(axes.flat, shown, strict=True):
        proxy = found.proxies[name].mean(0)
        for i, value in enumerate(dict.fromkeys(of)):
            kept = torch.tensor([one == value for one in of])
            look = {"color": f"C{i}", "mfc": "none", "ms": 6, "mew": 1.4, "label": str(value)}
            axis.plot(truth[kept], proxy[kept], "os^Dv"[i % 5], **look)
        axis.set_title(f"trained on: {name}", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, fontsize=8)
    axes[-1, 0].set_xlabel("test accuracy after training on all images (%)", fontsize=9)
    figure.supylabel("held-out accuracy after training on the set (%)", fontsize=9)
    return figure


def correlations(
    found: Mapping[str, Ranking], statistics: Sequence[str] = ("Spearman", "Kendall")
) -> Figure:
    """Draw rank correlations with their 95 % intervals, one panel for each statistic.

    - found: rankings by name, as of all networks and of some of them; each has a marker.
    - statistics: names in STATISTICS.

    Where all images were trained on more than once, the last row is how well they do it again.
    """
    first = next(iter(found.values()))
    sets = [*first.proxies, *([TRUTH] if len(first.truth) > 1 else [])]
    size = (WIDTH, 0.7 + (0.5 + 0.4 * len(sets)) * len(statistics))
    figure, axes = plt.subplots(
        len(statistics), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, statistics, strict=True):
        for i, (label, one) in enumerate(found.items()):
            for y, which in enumerate(sets):
                value, low, high = one.estimate(which, STATISTICS[name])
                look = {"fmt": "os^Dv"[i % 5], "ms": 5, "capsize": 3, "color": f"C{i}"}
                at = y + 0.2 * (i - (len(found) - 1) / 2)
                bars = [[value - low], [high - value]]
                axis.errorbar(value, at, xerr=bars, label=label if not y else None, **look)
        axis.set(yticks=range(len(sets)), yticklabels=sets, ylim=(len(sets) - 0.5, -0.5))
        axis.set_title(name, fontsize=9)
    if len(found) > 1:
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def judged(verdicts: Sequence[Judged]) -> Figure:
    """Draw the first image of each class of each set, at most ten, in natural colours.

    - verdicts: by `ddpp.judge`.
    """
    rows = {}
    for one in verdicts:
        first = [members[0] for members in one.distilled.by_class() if members][:10]
        accuracy = next(iter(one.lines()))[6].partition(" ")[0]
        name = f"{one.name[-24:]}\n{accuracy} %"
        rows[f"{name} " if name in rows else name] = one.distilled.natural()[first]
    return pictures(rows)
