"""Charts of any numbers, and the style of all figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ddpp.evaluating import spread

WIDTH = 5.2  # inches: text of 8 points can be read on a phone


def use_style() -> None:
    """Set the book's style: colour-blind palette, quiet axes, readable on a phone."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 110,
        "savefig.dpi": 150,
    }


def drawable(value: Any) -> Any:
    """Return what matplotlib can draw: tensors from a GPU, also inside lists, come to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return [drawable(one) for one in value] if isinstance(value, (list, tuple)) else value


def curves(panels: Sequence[tuple[str, str, str]], *columns: Mapping[str, tuple]) -> Figure:
    """Plot curves in panels, one below the other.

    - panels: (title, x label, y label) of each panel.
    - columns: the curves of each panel, {name: (x, y)}, or (x, y, half the width of a band).

    >>> from ddpp.book import figures
    >>> figure = figures.curves([("loss", "step", "")], {"train": ([0, 1, 2], [2.3, 1.9, 1.6])})
    >>> figure.axes[0].get_title()
    'loss'
    """
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(WIDTH, 2.5 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (title, xlabel, ylabel), lines in zip(axes.flat, panels, columns, strict=True):
        for name, line in lines.items():
            x, y, *half = map(drawable, line)
            axis.plot(x, y, marker="o", ms=3, lw=1.2, label=name)
            for band in map(np.asarray, half):
                axis.fill_between(x, np.asarray(y) - band, np.asarray(y) + band, alpha=0.15, lw=0)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if all(float(at).is_integer() for x, *_ in lines.values() for at in x):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1 and (lines is columns[0] or lines.keys() != columns[0].keys()):
            axis.legend(fontsize=8)
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
        axis.plot(percent, range(len(names)), "os^Dv"[i % 5], color=f"C{i}", label=label)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel)
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure


def scores(
    columns: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str = "test accuracy (%)"
) -> Figure:
    """Plot the mean of each group of values, with their standard deviation as an error bar.

    - columns: {name on the x axis: {set: values}}; every name has the same sets.
    - ylabel: text beside the axis.

    >>> from ddpp.book import figures
    >>> accuracies = {"ConvNet": {"MTT": [46.0, 47.0], "pruned": [46.5, 47.5]}}
    >>> figures.scores(accuracies).axes[0].get_ylabel()
    'test accuracy (%)'
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
    sets = list(next(iter(columns.values())))
    for i, label in enumerate(sets):
        x = [column + 0.12 * (i - (len(sets) - 1) / 2) for column in range(len(columns))]
        values = [each[label] for each in columns.values()]
        y, bars = [statistics.fmean(v) for v in values], [spread(v) for v in values]
        axis.errorbar(x, y, bars, fmt="os^Dv"[i % 5], ms=5, capsize=3, color=f"C{i}", label=label)
    axis.set(
        xticks=range(len(columns)),
        xticklabels=list(columns),
        ylabel=ylabel,
        xlim=(-0.5, len(columns) - 0.5),
    )
    axis.legend(fontsize=8)
    return figure
