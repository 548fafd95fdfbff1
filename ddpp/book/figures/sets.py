"""Pictures of distilled sets, and of how they became what they are."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from ddpp.book.figures.charts import WIDTH, drawable, shares
from ddpp.distilled import DistilledDataset
from ddpp.foundation.errors import Error

if TYPE_CHECKING:  # figures need no notebook
    from IPython.display import HTML


def pictures(rows: Mapping[str, Tensor], titles: Sequence[str] = ()) -> Figure:
    """Draw images in rows, each row with its name.

    - rows: {name: images (n, C, H, W) in [0, 1]}; rows may differ in length.
    - titles: texts over the columns; default: none.

    Where more than seven have titles, which would be too small on a phone, only five stand in one
    line. The rest of each row is drawn in a second block below, and so on.

    >>> import torch
    >>> from ddpp.book import figures
    >>> figure = figures.pictures({"noise": torch.rand(3, 3, 8, 8)}, titles=["a", "b", "c"])
    >>> figure.savefig("noise.png")
    """
    longest = max(len(images) for images in rows.values())
    columns = 5 if titles and longest > 7 else longest
    starts = range(0, longest, columns)
    side = min(WIDTH / columns, 1.0)
    ratios = ([1] * len(rows) + [0.3]) * len(starts)  # an empty line after each block
    height = side * sum(ratios[:-1]) + len(starts) * (0.3 if titles else 0.05)
    inside = (0.01, 0.01, 0.98, 0.98)  # no name touches the edge
    close = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0, rect=inside)
    figure, axes = plt.subplots(
        len(ratios) - 1,
        columns,
        figsize=(side * columns + 0.8, height),
        height_ratios=ratios[:-1],
        squeeze=False,
        layout=close,
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    for block, start in enumerate(starts):
        lines = axes[block * (len(rows) + 1) :][: len(rows)]
        for line, (name, images) in zip(lines, rows.items(), strict=True):
            for axis, image in zip(line, images[start:].clamp(0, 1).cpu(), strict=False):
                axis.imshow(_channels_last(image), cmap="gray", vmin=0, vmax=1)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, title in zip(lines[0], titles[start:], strict=False):
            axis.set_title(title, fontsize=8 if columns > 5 else None)
    return figure


def progress(distilled: DistilledDataset) -> Figure:
    """Draw the first image of each class at every kept iterate, from where it began to the last.

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
    first_row = _began_as(distilled)
    rows = {
        f"step {step}" if step else first_row: distilled.at(step).natural()[shown]
        for step in distilled.iterates
    }
    return pictures(rows, list(first)[:10])


def _began_as(distilled: DistilledDataset) -> str:
    """What the images of a set were before the first step."""
    return distilled.provenance.get("config", {}).get("init", "real")


def before_after(distilled: DistilledDataset) -> Figure:
    """Draw the first five images of each class: on the left as they began, on the right distilled.

    - distilled: a set with the images it started from; at most ten classes are shown.

    Raises Error for a set without the images it started from.
    """
    if 0 not in distilled.iterates:
        raise Error("this set has no images from before to show: it was not distilled")
    sides = {
        _began_as(distilled): distilled.at(0),
        f"after {max(distilled.iterates)} steps": distilled,
    }
    by_class = [members[:5] for members in distilled.by_class()[:10]]
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
    axes[0].set_yticks([height * (c + 0.5) for c in range(classes)], distilled.classes[:classes])
    return figure


def history(distilled: DistilledDataset) -> Figure:
    """Plot the losses, the share of parameters kept and alpha over the distillation steps.

    The losses are those with and without pruning. Of more than 200 steps, each is a point, coloured
    by its start epoch, and lines are running means.

    - distilled: a set made by matching trajectories, with its history.
    """
    how = {"figsize": (WIDTH, 5.6), "height_ratios": (1.4, 1, 1), "layout": "constrained"}
    figure, (losses, share, alpha) = plt.subplots(3, 1, sharex=True, **how)
    column = {name: drawable(values) for name, values in distilled.history.items()}
    loss, kept = column["loss"], 100 * column["kept"]
    steps, epochs = np.arange(len(loss)), ([], [])
    width = len(loss) // 30 if len(loss) > 200 else 1  # of the running mean
    for axis, values in ((losses, loss), (share, kept)) if width > 1 else ():
        look = {"s": 3, "alpha": 0.3, "lw": 0, "rasterized": True}
        points = axis.scatter(steps, values, c=column["epoch"], cmap="flare", **look)
        epochs = points.legend_elements(fmt="start epoch {x:.0f}", alpha=1)
    mean = lambda values: np.convolve(values, np.full(width, 1 / width), "valid")
    middle = mean(steps)
    losses.plot(middle, mean(loss), lw=1.2, label="effective ones, Eq. (8)")
    losses.plot(middle, mean(column["unmasked"]), "--", lw=1.2, label="all (MTT)")
    losses.set(title="matching loss", ylim=(0, None))
    lines, names = losses.get_legend_handles_labels()
    losses.legend(lines + epochs[0], names + epochs[1], loc="upper right", ncols=2)
    share.plot(middle, mean(kept), lw=1.2)
    share.set(title="effective parameters (%)")
    alpha.plot(column["alpha"], lw=1.2)
    alpha.set(title="learning rate α", xlabel="distillation step")
    alpha.ticklabel_format(useOffset=False)
    return figure


def layers(distilled: DistilledDataset, names: list[str]) -> Figure:
    """Plot the share of parameters kept in each layer, for each start epoch.

    - distilled: a set made by matching trajectories. Shares are averaged over its steps.
    - names: of the layers, in the network's order.
    """
    epochs = distilled.history["epoch"]
    columns = {
        f"start epoch {epoch:.0f}": distilled.history["layers"][epochs == epoch].mean(0).tolist()
        for epoch in sorted(epochs.unique().tolist())
    }
    return shares(names, columns, "parameters kept (%), mean over steps")


def play(
    figure: Figure, draw: Callable[[int], object], frames: int, alt: str, seconds: float = 0.5
) -> "HTML":
    """Make a player of frames that needs no kernel and no network.

    It is matplotlib's player, started by a click, with three additions: a text for readers who do
    not see the image, a name for the slider, and buttons without an icon font. Its form has no
    name, so it is no landmark of the page. The figure is closed.

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
    html = re.sub('<form title="[^"]*" aria-label="[^"]*"', "<form", html)
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
    image = drawable(image)
    return (image[:3].permute(1, 2, 0) if len(image) >= 3 else image[0]).numpy()
