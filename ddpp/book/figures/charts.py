"""Charts of any numbers, and the style of all figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

from ddpp.foundation.stats import spread

WIDTH = 4.2  # inches: text of 8 points is 9 pixels high on a phone, where figures have 357
# apart for the colour-blind as well, and dark enough on white
PALETTE = ("#0173b2", "#d55e00", "#029e73", "#cc78bc", "#333333", "#8c6239")


def use_style() -> None:
    """Set the book's style: colour-blind palette, quiet axes, readable on a phone."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE, font_scale=0.75)
    plt.rcParams |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.h_pad": 0.08,  # a title keeps off the label above it
        "figure.dpi": 135,
        "figure.labelsize": "medium",
        "savefig.dpi": 180,
    }


def drawable(value: Any) -> Any:
    """Return what matplotlib can draw: tensors from a GPU, also inside lists, come to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return [drawable(one) for one in value] if isinstance(value, (list, tuple)) else value


def curves(panels: Sequence[tuple[str, str, str]], *columns: Mapping[str, tuple]) -> Figure:
    """Plot curves in panels, one below the other. A name has the same colour in all of them.

    - panels: (title, x label, y label) of each. They share an axis on which all have one label.
    - columns: the curves of each panel, {name: (x, y)}, or (x, y, half the length of error bars).

    >>> from ddpp.book import figures
    >>> figure = figures.curves([("loss", "step", "")], {"train": ([0, 1, 2], [2.3, 1.9, 1.6])})
    >>> figure.axes[0].get_title()
    'loss'
    """
    _, share_x, share_y = (len(set(labels)) == 1 for labels in zip(*panels, strict=True))
    how = {"figsize": (WIDTH, 0.3 + 2 * len(panels)), "sharex": share_x, "sharey": share_y}
    figure, axes = plt.subplots(len(panels), 1, squeeze=False, layout="constrained", **how)
    names = list(dict.fromkeys(name for lines in columns for name in lines))
    explained = set()
    for axis, (title, xlabel, ylabel), lines in zip(axes.flat, panels, columns, strict=True):
        for name, line in lines.items():
            x, y, *half = (np.asarray(drawable(part), dtype=float) for part in line)
            i = names.index(name)
            if half:  # side by side, not on one another
                x = x + 0.02 * np.ptp(x) * (i - (len(names) - 1) / 2)
            look = {"ms": 3.5, "lw": 1.2, "capsize": 2, "color": f"C{i}", "label": name}
            axis.errorbar(x, y, *half, marker="os^Dv"[i % 5] if len(x) < 50 else "", **look)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        known = columns if share_x else [lines]
        at = sorted({float(one) for each in known for x, *_ in each.values() for one in x})
        if all(one.is_integer() for one in at):
            whole = FixedLocator(at) if len(at) <= 8 else MaxNLocator(integer=True)
            axis.xaxis.set_major_locator(whole)
        if share_x:
            axis.label_outer()
        if len(lines) > 1 and not lines.keys() <= explained:
            axis.legend()
            explained |= lines.keys()
    return figure


def shares(names: Sequence[str], columns: Mapping[str, Sequence[float]], xlabel: str) -> Figure:
    """Plot a share in percent for each name, a layer for example, with a marker for each column.

    - names: from top to bottom.
    - columns: {label: shares in [0, 1], one per name}.
    - xlabel: text below the axis.

    >>> from ddpp.book import figures
    >>> figure = figures.shares(["conv", "linear"], {"kept": [0.9, 0.4]}, "parameters kept (%)")
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [90.0, 40.0]
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.26 * len(names) + 0.8), layout="constrained")
    for i, (label, values) in enumerate(columns.items()):
        percent = [100 * float(v) for v in values]
        y = [row + 0.3 * (i - (len(columns) - 1) / 2) for row in range(len(names))]
        axis.plot(percent, y, "os^Dv"[i % 5], mfc="none", mew=1.4, color=f"C{i}", label=label)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel)
    axis.invert_yaxis()
    axis.legend()
    return figure


def scores(columns: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plot the mean of each group of test accuracies, with their standard deviation as a bar.

    - columns: {name on the x axis: {set: accuracies in percent}}. Every name has the same sets.

    >>> from ddpp.book import figures
    >>> accuracies = {"ConvNet": {"MTT": [46.0, 47.0], "pruned": [46.5, 47.5]}}
    >>> figures.scores(accuracies).axes[0].get_ylabel()
    'test accuracy (%)'
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6), layout="constrained")
    sets = list(next(iter(columns.values())))
    for i, label in enumerate(sets):
        x = [column + 0.12 * (i - (len(sets) - 1) / 2) for column in range(len(columns))]
        values = [each[label] for each in columns.values()]
        y, bars = [statistics.fmean(v) for v in values], [spread(v) for v in values]
        axis.errorbar(x, y, bars, fmt="os^Dv"[i % 5], ms=5, capsize=3, color=f"C{i}", label=label)
    axis.set(
        xticks=range(len(columns)),
        xticklabels=list(columns),
        ylabel="test accuracy (%)",
        xlim=(-0.5, len(columns) - 0.5),
    )
    axis.legend()
    return figure
