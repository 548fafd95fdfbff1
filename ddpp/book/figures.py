"""Draw every figure of the book, in one style and one palette.

Each function takes data and returns a matplotlib Figure.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ddpp.distilled import DistilledDataset
from ddpp.evaluating import spread
from ddpp.experiments.auditing import Audit
from ddpp.experiments.comparing import Comparison, Difference
from ddpp.experiments.membership import GRID, Leak, gaussians
from ddpp.experiments.ranking import STATISTICS, Ranking
from ddpp.foundation.errors import Error
from ddpp.judging import Judged
from ddpp.pruning import keep_mask

if TYPE_CHECKING:  # figures need no notebook
    from IPython.display import HTML

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


def pictures(
    rows: Mapping[str, Tensor], titles: Sequence[str] = (), columns: int | None = None
) -> Figure:
    """Draw images in rows, each row with its name.

    - rows: {name: images (n, C, H, W) in [0, 1]}; rows may differ in length.
    - titles: texts over the columns; default: none.
    - columns: at most so many; what is left of each row is drawn in a second block below, and so
      on. Default: five where more than seven have titles, which would be too small on a phone.

    >>> import torch
    >>> from ddpp.book import figures
    >>> figure = figures.pictures({"noise": torch.rand(3, 3, 8, 8)}, titles=["a", "b", "c"])
    >>> figure.savefig("noise.png")
    """
    longest = max(len(images) for images in rows.values())
    columns = columns or (5 if titles and longest > 7 else longest)
    starts = range(0, longest, columns)
    side = min(WIDTH / columns, 1.0)
    height = len(starts) * (side * len(rows) + (0.3 if titles else 0.05))
    close = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure, axes = plt.subplots(
        len(rows) * len(starts),
        columns,
        figsize=(side * columns + 0.8, height),
        squeeze=False,
        layout=close,
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    for block, start in enumerate(starts):
        lines = axes[block * len(rows) :][: len(rows)]
        for line, (name, images) in zip(lines, rows.items(), strict=True):
            for axis, image in zip(line, images[start:].clamp(0, 1).cpu(), strict=False):
                axis.imshow(_channels_last(image), cmap="gray", vmin=0, vmax=1)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, title in zip(lines[0], titles[start:], strict=False):
            axis.set_title(title, fontsize=8)
    return figure


def progress(distilled: DistilledDataset) -> Figure:
    """Draw the first image of each class at every kept iterate, from the real image to the last.

    - distilled: a set with its iterates; at most ten classes are shown.

    Raises Error for a set without iterates.
    """
    if not distilled.iterates:
        raise Error("this set has no iterates to show: it was not distilled")
    first = {
        name: members[0]
        for name, members in zip(distilled.classes, distilled.by_class(), strict=True)
        if members
    }
    shown = list(first.values())[:10]
    rows = {
        f"step {step}" if step else "real": distilled.at(step).natural()[shown]
        for step in distilled.iterates
    }
    return pictures(rows, list(first)[:10])


def before_after(distilled: DistilledDataset, count: int = 5) -> Figure:
    """Draw the first images of each class: the real ones on the left, the distilled on the right.

    - distilled: a set with the images it started from; at most ten classes are shown.
    - count: images per class.

    Raises Error for a set without the images it started from.
    """
    if 0 not in distilled.iterates:
        raise Error("this set has no images from before to show: it was not distilled")
    sides = {"real": distilled.at(0), f"after {max(distilled.iterates)} steps": distilled}
    by_class = [members[:count] for members in distilled.by_class()[:10]]
    classes, count = len(by_class), max(len(members) for members in by_class)
    size = (WIDTH, WIDTH / (2 * count + 1) * classes + 0.3)
    figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")
    for axis, (name, side) in zip(axes, sides.items(), strict=True):
        images = side.natural()
        # white where a class has fewer images
        tiles = images.new_ones(classes, count, *images.shape[1:])
        for row, members in zip(tiles, by_class, strict=True):
            row[: len(members)] = images[members]
        tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1)  # a white line between images
        mosaic = _channels_last(tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2))
        axis.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=name)
        axis.grid(False)
        sns.despine(ax=axis, left=True, bottom=True)
    height = tiles.shape[-2]
    axes[0].set_yticks(
        [height * (c + 0.5) for c in range(classes)], distilled.classes[:classes], fontsize=8
    )
    return figure


def history(distilled: DistilledDataset) -> Figure:
    """Plot the losses, the share of parameters kept and alpha over the distillation steps.

    The losses are those with and without pruning.

    - distilled: a set made by matching trajectories, with its history.
    """
    figure, panels = plt.subplots(3, 1, figsize=(WIDTH, 5.6), sharex=True, layout="constrained")
    losses, kept, alpha = panels
    column = distilled.history
    losses.plot(column["unmasked"], lw=1, label="all parameters (MTT)")
    losses.plot(column["loss"], lw=1, label="effective ones, Eq. (8)")
    losses.set(title="matching loss", ylim=(0, None))
    losses.legend(fontsize=8)
    kept.plot(100 * column["kept"], lw=1, color="C2")
    kept.set(title="effective parameters (%)")
    alpha.plot(column["alpha"], lw=1, color="C3")
    alpha.set(title="learning rate α")
    alpha.set_xlabel("distillation step")
    return figure


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
        for name, (x, y, *half) in lines.items():
            axis.plot(x, y, marker="o", ms=3, lw=1.2, label=name)
            for band in map(np.asarray, half):
                axis.fill_between(x, np.asarray(y) - band, np.asarray(y) + band, alpha=0.15, lw=0)
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if all(float(at).is_integer() for x, *_ in lines.values() for at in x):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1 and (lines is columns[0] or lines.keys() != columns[0].keys()):
            axis.legend(fontsize=8)
    return figure


def plane(trajectories: Mapping[str, Tensor]) -> Figure:
    """Plot trajectories from a common start, in the plane in which they differ most.

    The plane is spanned by the first two principal directions of all displacements. The axes say
    which share of the squared displacements each direction has.

    - trajectories: {name: parameters (epochs, p)}; row 0 is the start.

    >>> import torch
    >>> from ddpp.book import figures
    >>> paths = {"teacher": torch.randn(4, 50).cumsum(0), "student": torch.randn(4, 50).cumsum(0)}
    >>> [line.get_label() for line in figures.plane(paths).axes[0].lines]
    ['teacher', 'student', 'start']
    """
    paths = {name: path - path[0] for name, path in trajectories.items()}
    points = torch.cat(list(paths.values())).double()
    _, _, axes = torch.linalg.svd(points, full_matrices=False)
    share = (points @ axes[:2].T).square().sum(0) / points.square().sum()
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for name, path in paths.items():
        x, y = (path.double() @ axes[:2].T).T
        axis.plot(x, y, "o-", ms=4, label=name)
        for epoch in range(1, len(x)):
            at = {"xy": (x[epoch], y[epoch]), "xytext": (3, 3), "textcoords": "offset points"}
            axis.annotate(str(epoch), fontsize=8, **at)
    axis.plot(0, 0, "k*", ms=10, label="start")
    axis.set(xlabel=f"direction 1 ({share[0]:.0%})", ylabel=f"direction 2 ({share[1]:.0%})")
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_miniature(
    figure: Figure, images: Tensor, names: Sequence[str], accuracies: Sequence[float], step: int
) -> None:
    """Draw small images as they are at one step, and below them the accuracy up to that step.

    - figure: where to draw; it is cleared first.
    - images: (steps + 1, n, H, W), grey values in [0, 1], one row per step.
    - names: of the n images.
    - accuracies: in percent, one per step.
    - step: the step that is drawn, from 0.
    """
    figure.clear()
    axes = figure.subplot_mosaic([[*names], ["below"] * len(names)], height_ratios=(1.3, 1))
    for name, image in zip(names, images[step].clamp(0, 1), strict=True):
        axes[name].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[name].set_title(name)
        axes[name].set_axis_off()
    below, edge = axes["below"], (min(accuracies) - 4, max(accuracies) + 4)
    below.plot(accuracies, color="0.8")
    below.plot(accuracies[: step + 1], lw=2)
    below.plot(step, accuracies[step], "o", color="C0")
    below.set(xlabel="distillation step", ylabel="accuracy (%)", ylim=edge)
    below.set_title(f"step {step}: {accuracies[step]:.0f} %")


def toward(path: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's displacement along the line from the start to a goal, and its distance
    from that line.

    The distances to the start and to the goal are exact in this plane. Those between two other
    points are at least what is drawn, because all sideways directions are drawn as one.

    - path: parameters (n, p); row 0 is the start.
    - goal: parameters (p,).

    >>> import torch
    >>> from ddpp.book import figures
    >>> path = torch.tensor([[0.0, 0.0, 0.0], [1.0, 3.0, 4.0]])
    >>> figures.toward(path, torch.tensor([2.0, 0.0, 0.0]))
    (tensor([0., 1.], dtype=torch.float64), tensor([0., 5.], dtype=torch.float64))
    """
    moved, line = (path - path[0]).double(), (goal - path[0]).double()
    along = moved @ (line / line.norm())
    return along, (moved - along[:, None] * (line / line.norm())).norm(dim=1)


def draw_approach(
    axis: Axes, teacher: Tensor, students: Mapping[str, Tensor], title: str = ""
) -> None:
    """Draw a teacher's path and students from the same start, in the plane of `toward`.

    The dotted circle around the teacher's last point is as far from it as the start: on it the
    matching loss without pruning is 1.

    - axis: where to draw; it is cleared first.
    - teacher: its parameters after each epoch (epochs, p).
    - students: {name: parameters after each update (J + 1, p)}.
    - title: over the plane.
    """
    axis.clear()
    goal = teacher[-1]
    x, y = toward(teacher, goal)
    length = float(x[-1])
    axis.add_patch(Circle((length, 0), length, fill=False, ls=":", color="0.5"))
    axis.annotate(
        "loss 1", (length, length), xytext=(0, 3), textcoords="offset points", ha="center"
    )
    axis.plot(x, y, "s-", color="0.3", ms=6, label="teacher, epochs")
    looks = (("^", "C3", 8, "none"), ("o", "C0", 4, "C0"))
    for (name, path), (marker, color, size, face) in zip(students.items(), looks, strict=False):
        x, y = toward(path, goal)
        axis.plot(x, y, marker=marker, color=color, ms=size, mfc=face, lw=1, label=name)
    axis.plot(0, 0, "k*", ms=13, label="start")
    axis.plot(length, 0, "P", color="k", ms=10, label="goal")
    axis.set(
        xlabel="displacement toward the goal",
        ylabel="distance from that line",
        xlim=(-0.25 * length, 1.25 * length),
        ylim=(-0.06 * length, 1.3 * length),
        aspect="equal",
    )
    axis.set_title(title)


def approach(teacher: Tensor, frames: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Draw panels of `draw_approach`, one below the other.

    - teacher: its parameters after each epoch (epochs, p).
    - frames: {title: students}, one panel each.
    """
    figure, axes = plt.subplots(
        len(frames),
        1,
        figsize=(4.2, 3.6 * len(frames) + 0.9),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, students) in zip(axes[:, 0], frames.items(), strict=True):
        draw_approach(axis, teacher, students, title)
        axis.label_outer()
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def means(points: Tensor, orders: Mapping[str, Tensor]) -> Figure:
    """Plot how fast the running mean of points, taken in some order, nears the mean of all.

    One panel per order shows the points, numbered as they are taken, and the path of their running
    mean. The last panel shows the distance between that mean and the mean of all points.

    - points: (N, 2).
    - orders: {name: indices (n,) of the points taken, in order}.
    """
    rows = (len(orders) + 2) // 2
    size = (WIDTH, WIDTH / 2 * rows)
    figure, axes = plt.subplots(rows, 2, figsize=size, layout="constrained")
    panels, last = axes.flat, axes.flat[len(orders)]
    for axis in axes.flat[len(orders) + 1 :]:
        axis.set_visible(False)
    mean = points.mean(0)
    for i, (axis, (name, order)) in enumerate(zip(panels, orders.items(), strict=False)):
        counts = range(1, len(order) + 1)
        running = points[order].cumsum(0) / torch.tensor(counts)[:, None]
        axis.scatter(*points.T, s=4, color="0.8")
        axis.plot(*running.T, lw=1, color=f"C{i}")
        for k, (x, y) in zip(counts, points[order].tolist(), strict=True):
            axis.annotate(
                k, (x, y), ha="center", va="center", fontsize=8, color=f"C{i}", weight="bold"
            )
        axis.plot(*mean, "k*", ms=9)
        axis.set(title=name, xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        sns.despine(ax=axis, left=True, bottom=True)
        last.plot(
            counts, (running - mean).norm(dim=1), "o-", ms=3, lw=1.2, color=f"C{i}", label=name
        )
    last.set(title="distance from the mean", xlabel="points taken", ylim=(0, None))
    last.locator_params("x", integer=True)
    last.legend(fontsize=8)
    return figure


def pairs(
    student: Tensor, teacher: Tensor, epsilons: Sequence[float], rules: Sequence[str]
) -> Figure:
    """Draw parameter pairs as points: kept, pruned with opposite signs, pruned by the threshold.

    - student, teacher: their parameters (p,).
    - epsilons: thresholds, one row for each.
    - rules: names of pruning rules, one column for each.
    """
    size = (WIDTH, WIDTH / len(rules) * len(epsilons) + 0.5)
    figure, axes = plt.subplots(
        len(epsilons),
        len(rules),
        figsize=size,
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, epsilon in zip(axes, epsilons, strict=True):
        for axis, rule in zip(row, rules, strict=True):
            draw_pairs(axis, student, teacher, epsilon, rule)
    for axis in axes[-1]:
        axis.set_xlabel("student", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("teacher", fontsize=8)
    return figure


def draw_pairs(
    axis: Axes, student: Tensor, teacher: Tensor, epsilon: float, rule: str, points: int = 2000
) -> None:
    """Draw one panel of `pairs`: the middle of the plane, where pairs leave the cone.

    - axis: where to draw; it is cleared first.
    - student, teacher: their parameters (p,).
    - epsilon, rule: the pruning rule and its threshold.
    - points: how many pairs are drawn at most; the share in the title counts all of them.
    """
    axis.clear()
    keep = keep_mask(student, teacher, epsilon, rule).cpu()
    x, y = student.cpu(), teacher.cpu()
    edge = 0.4 * float(y.abs().median())
    seen = ((x.abs() < edge) & (y.abs() < edge)).nonzero().flatten()
    some = seen[:: max(1, len(seen) // points)]
    opposite = x[some] * y[some] < 0
    looks = (
        (keep[some], {"s": 4, "marker": "o", "color": "C0", "lw": 0}),
        (~keep[some] & opposite, {"s": 9, "marker": "x", "color": "C3", "lw": 0.7}),
        (~keep[some] & ~opposite, {"s": 9, "marker": "^", "color": "C1", "lw": 0}),
    )
    for chosen, look in looks:
        axis.scatter(x[some[chosen]], y[some[chosen]], rasterized=True, **look)
    if rule in ("signed", "magnitude"):
        for slope in (epsilon, -epsilon) if rule == "magnitude" else (epsilon,):
            ends = [-edge, edge]
            axis.plot(ends, [slope * end for end in ends], color="grey", lw=0.8)
            axis.plot([slope * end for end in ends], ends, color="grey", lw=0.8)
    axis.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    axis.set_title(f"{rule}, ε = {epsilon:g}\n{(~keep).float().mean():.1%} pruned", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=4)


def by_hand(student: Tensor, teacher: Tensor, found: Mapping[str, Mapping]) -> Figure:
    """Draw the pairs that two rules prune, how many they are, and how far the gradient turns.

    - student, teacher: their parameters (p,).
    - found: for each rule {"epsilon", "pruned", "angle"}, lists of the same length.
    """
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, WIDTH * 0.95), layout="constrained")
    for axis, rule in zip(axes[0], ("signed", "largest"), strict=True):
        draw_pairs(axis, student, teacher, 0.1, rule)
        axis.set(xlabel="student", ylabel="teacher")
    counts, angles = axes[1]
    for i, (rule, each) in enumerate(found.items()):
        x, style = each["epsilon"], ("-", "--", ":")[i % 3]
        share = [100 * pruned / len(student) for pruned in each["pruned"]]
        counts.plot(x, share, style, lw=1.5, color=f"C{i}", label=rule)
        angles.plot(x, each["angle"], style, lw=1.5, color=f"C{i}", label=rule)
    counts.set(xlabel="epsilon", ylabel="pairs pruned (%)", ylim=(0, 100))
    angles.set(xlabel="epsilon", ylabel="turn of the gradient (°)", ylim=(0, 90))
    angles.legend(fontsize=8)
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


def layers(distilled: DistilledDataset, names: list[str]) -> Figure:
    """Plot the share of parameters kept in each layer, for each start epoch.

    - distilled: a set made by matching trajectories; shares are averaged over its steps.
    - names: of the layers, in the network's order.
    """
    epochs = distilled.history["epoch"]
    columns = {
        f"start epoch {epoch:.0f}": distilled.history["layers"][epochs == epoch].mean(0).tolist()
        for epoch in sorted(epochs.unique().tolist())
    }
    return shares(names, columns, "parameters kept (%), mean over steps")


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
    others = torch.arange(len(scores)) != target
    for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
        for color, name, chosen in (("C0", "in", members), ("C3", "out", ~members)):
            mean, variance = gaussians(scores[others], chosen[others])
            center, deviation = float(mean[image]), float(variance) ** 0.5
            x = np.linspace(center - 3 * deviation, center + 3 * deviation, 100)
            axis.plot(x, np.exp(-(((x - center) / deviation) ** 2) / 2), color=color)
            points = scores[others & chosen[:, image], image].cpu()
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

    - found: by `experiments.rank`.
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
    """
    sets = list(next(iter(found.values())).proxies)
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


def play(
    figure: Figure, draw: Callable[[int], object], frames: int, alt: str, seconds: float = 0.5
) -> "HTML":
    """Make a player of frames that needs no kernel and no network.

    It is matplotlib's player, started by a click, with three additions: a text for readers who do
    not see the image, a name for the slider, and buttons without an icon font. The figure is
    closed.

    - figure: what is drawn on.
    - draw: draws a frame on the figure, given its index, from 0.
    - frames: number of frames.
    - alt: says in words what the frames show.
    - seconds: per frame.
    """
    from IPython.display import HTML

    with plt.rc_context({"savefig.dpi": 90, "animation.embed_limit": 6}):
        player = FuncAnimation(
            figure,
            draw,  # pyright: ignore[reportArgumentType] what it returns is of use with `blit` alone
            frames=frames,
            interval=1000 * seconds,
        )
        html = player.to_jshtml(default_mode="once")
    plt.close(figure)
    html = re.sub(r'<link rel="stylesheet"[^>]*>', "", html)
    html = html.replace("<img id=", f'<img alt="{alt}" id=')
    html = html.replace('type="range"', 'type="range" aria-label="frame"')
    for icon, sign in ICONS.items():
        html = html.replace(f'<i class="fa {icon}"></i>', sign)
    return HTML(html)


ICONS = {
    "fa-minus": "−",
    "fa-fast-backward": "|◂",
    "fa-step-backward": "◂",
    "fa-play fa-flip-horizontal": "◀",
    "fa-pause": "❚❚",
    "fa-play": "▶",
    "fa-step-forward": "▸",
    "fa-fast-forward": "▸|",
    "fa-plus": "+",
}


def _channels_last(image: Tensor) -> np.ndarray:
    """Turn an image (C, H, W) into an array for imshow: (H, W, 3), or (H, W) for fewer channels."""
    return (image[:3].permute(1, 2, 0) if len(image) >= 3 else image[0]).numpy()
