"""Pictures of the method: paths of parameters, and which pairs a rule keeps."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ddpp.book.figures.charts import WIDTH, drawable
from ddpp.pruning import keep_mask


def plane(trajectories: Mapping[str, Tensor]) -> Figure:
    """Plot trajectories from a common start, in the plane that holds most of them.

    It is the plane with the largest share of the squared displacements. The axes say which share
    each direction has.

    - trajectories: {name: parameters (epochs, p)}; row 0 is the start.

    >>> import torch
    >>> from ddpp.book import figures
    >>> paths = {"teacher": torch.randn(4, 50).cumsum(0), "student": torch.randn(4, 50).cumsum(0)}
    >>> [line.get_label() for line in figures.plane(paths).axes[0].lines]
    ['teacher', 'student', 'start']
    """
    paths = {name: drawable(path - path[0]) for name, path in trajectories.items()}
    points = torch.cat(list(paths.values())).double()
    _, _, axes = torch.linalg.svd(points, full_matrices=False)
    share = (points @ axes[:2].T).square().sum(0) / points.square().sum()
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for name, path in paths.items():
        x, y = (path.double() @ axes[:2].T).T
        axis.plot(x, y, "o-", ms=4, label=name)
        for epoch in range(1, len(x)):
            at = {"xy": (x[epoch], y[epoch]), "xytext": (3, 3), "textcoords": "offset points"}
            axis.annotate(str(epoch), fontsize="small", **at)
    axis.plot(0, 0, "k*", ms=10, label="start")
    axis.set(xlabel=f"direction 1 ({share[0]:.0%})", ylabel=f"direction 2 ({share[1]:.0%})")
    axis.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=2)
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
    for name, image in zip(names, drawable(images[step].clamp(0, 1)), strict=True):
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
    teacher = drawable(teacher)
    goal = teacher[-1]
    x, y = toward(teacher, goal)
    length = float(x[-1])
    axis.add_patch(Circle((length, 0), length, fill=False, ls=":", color="0.5"))
    axis.annotate(
        "loss 1", (length, length), xytext=(0, 3), textcoords="offset points", ha="center"
    )
    axis.plot(x, y, "s-", color="0.3", ms=6, label="teacher, epochs")
    looks = (("^", "C1", 8, "none"), ("o", "C0", 4, "C0"))
    for (name, path), (marker, color, size, face) in zip(students.items(), looks, strict=False):
        x, y = toward(drawable(path), goal)
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
        figsize=(WIDTH, 3.6 * len(frames) + 0.9),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, students) in zip(axes[:, 0], frames.items(), strict=True):
        draw_approach(axis, teacher, students, title)
        axis.label_outer()
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def means(points: Tensor, orders: Mapping[str, Tensor]) -> Figure:
    """Plot how fast the running mean of points, taken in some order, nears the mean of all.

    One panel per order shows the points taken, the first four with their numbers, and the path of
    their running mean. The last panel shows the distance between that mean and the mean of all.

    - points: (N, 2).
    - orders: {name: indices (n,) of the points taken, in order}.
    """
    points, orders = drawable(points), {name: drawable(order) for name, order in orders.items()}
    names = [*orders, *[""] * (len(orders) % 2)]
    mosaic: list = [*zip(names[::2], names[1::2], strict=True), ("below", "below")]
    size = (WIDTH, WIDTH / 2 * len(mosaic))
    figure, axes = plt.subplot_mosaic(mosaic, figsize=size, empty_sentinel="", layout="constrained")
    mean, below = points.mean(0), axes["below"]
    for i, (name, order) in enumerate(orders.items()):
        axis, color, counts = axes[name], f"C{i}", range(1, len(order) + 1)
        running = points[order].cumsum(0) / torch.tensor(counts)[:, None]
        axis.scatter(*points.T, s=4, color="0.8")
        axis.scatter(*points[order].T, s=12, color=color)
        axis.plot(*mean, "*", ms=11, mfc="white", mec="black")
        axis.plot(*running.T, lw=1.4, color=color)
        for k, at in enumerate(points[order[:4]].tolist(), 1):
            side = {"xytext": (-4, 2), "ha": "right"} if k < 3 else {"xytext": (4, 2)}
            how = {"textcoords": "offset points", "color": color, "weight": "bold"}
            axis.annotate(str(k), at, **side, **how)
        axis.set(title=name, xticks=[], yticks=[])
        axis.set_aspect("equal", adjustable="datalim")
        sns.despine(ax=axis, left=True, bottom=True)
        distance = (running - mean).norm(dim=1)
        below.plot(counts, distance, "o-", ms=3, lw=1.2, color=color, label=name)
    below.set(title="distance from the mean", xlabel="points taken", ylim=(0, None))
    below.locator_params("x", integer=True)
    below.legend()
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
        axis.set_xlabel("student")
    for axis in axes[:, 0]:
        axis.set_ylabel("teacher")
    return figure


def draw_pairs(axis: Axes, student: Tensor, teacher: Tensor, epsilon: float, rule: str) -> None:
    """Draw one panel of `pairs`: the middle of the plane, where pairs leave the cone.

    - axis: where to draw; it is cleared first.
    - student, teacher: their parameters (p,).
    - epsilon, rule: the pruning rule and its threshold.

    Fewer than 4,000 pairs are drawn. The share in the title counts all of them.
    """
    axis.clear()
    keep = drawable(keep_mask(student, teacher, epsilon, rule))
    x, y = drawable(student), drawable(teacher)
    edge = 0.4 * float(y.abs().median())
    seen = ((x.abs() < edge) & (y.abs() < edge)).nonzero().flatten()
    some = seen[:: max(1, len(seen) // 2000)]
    opposite = x[some] * y[some] < 0
    looks = (
        (keep[some], {"s": 4, "marker": "o", "color": "C0", "lw": 0}),
        (~keep[some] & opposite, {"s": 16, "marker": "x", "color": "black", "lw": 0.9}),
        (~keep[some] & ~opposite, {"s": 16, "marker": "^", "color": "C3", "lw": 0}),
    )
    for chosen, look in looks:
        axis.scatter(x[some[chosen]], y[some[chosen]], rasterized=True, **look)
    if rule in ("signed", "magnitude"):
        for slope in (epsilon, -epsilon) if rule == "magnitude" else (epsilon,):
            ends = [-edge, edge]
            axis.plot(ends, [slope * end for end in ends], color="grey", lw=0.8)
            axis.plot([slope * end for end in ends], ends, color="grey", lw=0.8)
    axis.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    axis.set_title(f"{rule}, ε = {epsilon:g}\n{(~keep).float().mean():.1%} pruned")
    axis.locator_params(nbins=4)


def by_hand(student: Tensor, teacher: Tensor, found: Mapping[str, Mapping]) -> Figure:
    """Draw the pairs that two rules prune, how many they are, and how far the gradient turns.

    - student, teacher: their parameters (p,).
    - found: for each rule {"epsilon", "pruned", "angle"}, lists of the same length.
    """
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, WIDTH * 1.15), layout="constrained")
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
    figure.legend(*angles.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
