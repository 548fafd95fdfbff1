"""Figures of what comparisons, audits and rankings found."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ddpp.book.figures.charts import WIDTH, drawable
from ddpp.book.figures.sets import pictures
from ddpp.experiments.comparing import Comparison
from ddpp.foundation.stats import Difference, spread
from ddpp.judging import Judged
from ddpp.studies.auditing import Audit
from ddpp.studies.membership import GRID, Leak, gaussians
from ddpp.studies.ranking import STATISTICS, TRUTH, Ranking


def ablation(lines: Sequence[dict]) -> Figure:
    """Plot paired differences to MTT, share of parameters kept and final loss against epsilon.

    The differences are drawn as in `comparison`, one row for each rule and epsilon. The grey lines
    are rule none, that is, MTT.

    - lines: from `tables.summarize`.
    """
    points = [line for line in lines if line["rule"] != "none" and line["mean"] is not None]
    rules = list(dict.fromkeys(line["rule"] for line in points))
    points.sort(key=lambda line: rules.index(line["rule"]))
    figure, (gains, kept, loss) = plt.subplots(
        3,
        1,
        figsize=(WIDTH, 4.4 + 0.22 * len(points)),
        height_ratios=(0.22 * len(points), 1.4, 1.4),
        layout="constrained",
    )
    for row, point in enumerate(points):
        color = f"C{rules.index(point['rule'])}"
        _draw_differences(gains, row, Difference(tuple(point["gains"])), color)
    _name_rows(gains, [(point["rule"], point["epsilon"]) for point in points])
    gains.set_title("test accuracy minus MTT's (points)")
    for i, rule in enumerate(rules):
        style = "-" if rule in ("signed", "magnitude") else ""  # of the others there are too few
        look = {"ls": style, "marker": "os^Dv"[i % 5], "mfc": "none", "lw": 1.2, "label": rule}
        own = [point for point in points if point["rule"] == rule]
        for axis, key, scale in ((kept, "kept", 100), (loss, "unmasked", 1)):
            x, y = [p["epsilon"] for p in own], [scale * p[key] for p in own]
            axis.plot(x, y, color=f"C{i}", **look)
    kept.set_title("effective parameters (%)")
    kept.sharex(loss)
    kept.label_outer()
    loss.set(title="loss over all parameters", xlabel="epsilon")
    loss.locator_params("x", nbins=10)
    base = next((line for line in lines if line["rule"] == "none"), None)
    if base and base["unmasked"] is not None:
        loss.axhline(base["unmasked"], color="grey", lw=1, label="none (MTT)")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_differences(axis: Axes, row: int, found: Difference, color: str = "C0") -> None:
    """Draw one row: a dot for each seed, and a square with a bar for mean and 95 % interval."""
    axis.plot(found.values, [row] * len(found.values), "o", ms=4, color=color, alpha=0.5)
    if found.half is not None:
        look = {"fmt": "s", "ms": 4, "capsize": 2, "lw": 1.2, "color": "black"}
        axis.errorbar(found.mean, row - 0.25, xerr=found.half, **look)


def _name_rows(axis: Axes, settings: Sequence[tuple[str, float]]) -> None:
    """Name the rows of differences, each a rule with its epsilon, and draw the line at zero."""
    axis.set(
        yticks=range(len(settings)),
        yticklabels=[f"{rule}, {epsilon:g}" for rule, epsilon in settings],
        ylim=(len(settings) - 0.5, -0.7),
    )
    axis.axvline(0, color="grey", lw=1)


def turning(found: Mapping, factors: Sequence[str], masks: Sequence[str]) -> Figure:
    """Draw how far masks turn the gradient of the images, one panel per factor.

    - found: the content of a file of tools/map.py.
    - factors: one panel each, as "J, student steps"; "epsilon" takes rules without their own. In
      the first, the lines are named.
    - masks: one line each, as "signed@0.1".
    """
    size = (WIDTH, 1.7 * len(factors))
    figure, axes = plt.subplots(
        len(factors), 1, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, factor in zip(axes.flat, factors, strict=True):
        points = [point for point in found["points"] if point["factor"] == factor]
        named = {mask.partition("@")[0] for mask in masks} if factor == "epsilon" else masks
        ends = []
        for mask in masks:
            name = mask.partition("@")[0] if factor == "epsilon" else mask
            if name not in named:
                continue
            named = {*named} - {name}
            line = [(p["value"], row) for p in points for row in p["rows"] if _is(row, name)]
            if line:
                style = "-" if name.startswith("sign") else ":"
                x, y = [value for value, _ in line], [row["angle"] for _, row in line]
                color = f"C{masks.index(mask)}"
                axis.plot(x, y, "o" + style, ms=3, lw=1.4, color=color)
                ends.append((y[-1], x[-1], mask.removesuffix("@0").replace("@", ", "), color))
        values = sorted({point["value"] for point in points})
        even = factor.startswith(("K", "epsilon")) or 0 in values
        axis.set(xlabel=factor, xscale="symlog" if 0 in values else "linear" if even else "log")
        shown = values[-6:]  # more have no room
        axis.set_xticks(shown, [f"{v:g}" for v in shown])
        axis.minorticks_off()
        if axis is axes[0, 0]:
            height = -8.0
            for y, x, label, color in sorted(ends):
                height = max(y, height + 8)  # a line of text is as high as 8 degrees
                how = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
                axis.annotate(label, (x, height), color=color, **how)
    figure.supylabel("turn of the gradient (°)")
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
            _draw_differences(axis, rows.index(setting), difference)
        _name_rows(axis, rows)
        axis.set_title(title)
    base = next(iter(found.values())).base[0]
    name = "MTT" if base == "none" else base
    axes[-1, 0].set_xlabel(f"difference from {name}\nin test accuracy (points)")
    return figure


def ceiling(reports: Mapping[str, Mapping]) -> Figure:
    """Draw the accuracy of a set between random real images and the teachers that it matches.

    - reports: by name, as a run writes them; each has "random", "distilled" and "teachers".
    """
    size = (WIDTH, 1 + 0.5 * len(reports))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    looks = (
        ("random", "final", "random real images", {"fmt": "o", "mfc": "white", "color": "grey"}),
        ("distilled", "final", "distilled images", {"fmt": "o", "color": "C0"}),
        ("teachers", "accuracies", "teachers, at the last epoch matched", {"fmt": "D"}),
    )
    for part, key, label, look in looks:
        values = [report[part][key] for report in reports.values()]
        x, bars = [sum(v) / len(v) for v in values], [spread(v) for v in values]
        how: dict[str, Any] = {"color": "C1", "ms": 6, "capsize": 3} | look
        axis.errorbar(x, range(len(values)), xerr=bars, label=label, **how)
    axis.set(
        yticks=range(len(reports)),
        yticklabels=list(reports),
        ylim=(len(reports) - 0.5, -0.5),
        xlabel="test accuracy (%)",
    )
    figure.legend(loc="outside lower center")
    return figure


def shadows(scores: Tensor, members: Tensor, images: Mapping[str, int], target: int) -> Figure:
    """Draw what the likelihood ratio attack compares, one panel below the other.

    - scores: of models and images, (M, N).
    - members: which images each model was made from, (M, N).
    - images: of each panel, by its title.
    - target: the model that is attacked, a dashed line. The others are dots, with their Gaussians.
    """
    size = (WIDTH, 0.7 + 1.7 * len(images))
    figure, axes = plt.subplots(
        len(images), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    scores, members = drawable(scores), drawable(members)
    others = torch.arange(len(scores)) != target
    looks = (("C0", "in", members, -0.2), ("C1", "out", ~members, -0.1))
    for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
        for color, name, chosen, y in looks:
            mean, variance = gaussians(scores[others], chosen[others])
            center, deviation = float(mean[image]), float(variance) ** 0.5
            x = np.linspace(center - 4 * deviation, center + 4 * deviation, 100)
            axis.plot(x, np.exp(-(((x - center) / deviation) ** 2) / 2), color=color)
            points = scores[others & chosen[:, image], image]
            axis.plot(points, [y] * len(points), "o", ms=5, color=color, label=name)
        axis.axvline(float(scores[target, image]), color="black", ls="--", lw=1.2, label="target")
        axis.axhline(0, color="grey", lw=1)
        axis.set(title=title, yticks=[], ylim=(-0.3, 1.1))
    axes[-1, 0].set_xlabel("scaled confidence in the label")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def rocs(columns: Mapping[str, Mapping[str, Audit]]) -> Figure:
    """Draw the curves of the likelihood ratio attack on logarithmic axes.

    One panel is for all images, and the one below for canaries.

    A name with " from " has the colour of the words before it. Curves from noise are dashed.

    - columns: audits by name, for each column of panels, by its title.
    """
    how = {"figsize": (WIDTH, 5.4), "sharex": True, "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(2, len(columns), squeeze=False, **how)
    groups = (("all", "all images"), ("canaries", "canaries"))
    for column, (title, audits) in zip(axes.T, columns.items(), strict=True):
        methods = list(dict.fromkeys(name.partition(" from ")[0] for name in audits))
        for axis, (group, images) in zip(column, groups, strict=True):
            for name, one in audits.items():
                found: Leak = getattr(one, group)["lira"]
                least = 1 / found.negatives  # below a single false positive is nothing to see
                curve = zip(GRID, found.curve, strict=True)
                points = [(x, y) for x, y in curve if x >= least and y]
                method, _, start = name.partition(" from ")
                look = {"ls": "--" if start == "noise" else "-", "lw": 1.4, "label": name}
                axis.plot(*zip(*points, strict=True), color=f"C{methods.index(method)}", **look)
            axis.plot([1e-4, 1], [1e-4, 1], color="grey", lw=1, ls=":", label="a guess")
            axis.set(xscale="log", yscale="log", xlim=(5e-4, 1), ylim=(5e-4, 1.1))
            axis.set_title(f"{title}: {images}")
            axis.set(xlabel="false positives (rate)", ylabel="true positives (rate)")
            axis.label_outer()
        column[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), handlelength=1.5)
    return figure


def ranking(found: Ranking, names: Sequence[str] = ()) -> Figure:
    """Plot what each network learns from a small set against what it learns from all images.

    Colours and markers show the normalizations.

    - found: by `studies.rank`.
    - names: of the sets, one panel each, one below the other. Default: all.
    """
    shown = list(names) or list(found.proxies)
    size = (WIDTH, 0.6 + 2 * len(shown))
    figure, axes = plt.subplots(
        len(shown), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    truth, of = found.truth.mean(0), [one.norm for one in found.candidates]
    for axis, name in zip(axes.flat, shown, strict=True):
        proxy = found.proxies[name].mean(0)
        for i, value in enumerate(dict.fromkeys(of)):
            kept = torch.tensor([one == value for one in of])
            look = {"color": f"C{i}", "mfc": "none", "ms": 6, "mew": 1.4, "label": str(value)}
            axis.plot(truth[kept], proxy[kept], "os^Dv"[i % 5], **look)
        axis.set_title(f"trained on: {name}")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5)
    axes[-1, 0].set_xlabel("test accuracy after training on all images (%)")
    figure.supylabel("held-out accuracy after training on the set (%)")
    return figure


def correlations(found: Mapping[str, Ranking]) -> Figure:
    """Draw rank correlations with their 95 % intervals: a panel of Spearman's, one of Kendall's.

    - found: rankings by name, as of all networks and of some of them; each has a marker.

    Where all images were trained on more than once, the last row is how well they do it again.
    """
    first = next(iter(found.values()))
    sets = [*first.proxies, *([TRUTH] if len(first.truth) > 1 else [])]
    size = (WIDTH, 0.7 + (0.5 + 0.4 * len(sets)) * 2)
    figure, axes = plt.subplots(2, 1, figsize=size, sharex=True, layout="constrained")
    for axis, name in zip(axes, ("Spearman", "Kendall"), strict=True):
        for i, (label, one) in enumerate(found.items()):
            for y, which in enumerate(sets):
                value, low, high = one.estimate(which, STATISTICS[name])
                look = {"fmt": "os^Dv"[i % 5], "ms": 5, "capsize": 3, "color": f"C{i}"}
                at = y + 0.2 * (i - (len(found) - 1) / 2)
                bars = [[value - low], [high - value]]
                axis.errorbar(value, at, xerr=bars, label=label if not y else None, **look)
        axis.set(yticks=range(len(sets)), yticklabels=sets, ylim=(len(sets) - 0.5, -0.5))
        axis.set_title(name)
    axes[-1].set_xlabel("rank correlation")
    if len(found) > 1:
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def judged(verdicts: Sequence[Judged]) -> Figure:
    """Draw the first image of each class of each set, at most ten, in natural colours.

    - verdicts: by `ddpp.judge`.
    """
    rows = {}
    for one in verdicts:
        first = [members[0] for members in one.distilled.by_class() if members][:10]
        accuracy = statistics.fmean(next(iter(one.accuracies.values())))
        name = f"{one.name[-24:]}\n{accuracy:.1f} %"
        rows[f"{name} " if name in rows else name] = one.distilled.natural()[first]
    return pictures(rows)
