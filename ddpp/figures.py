"""Every figure of the book: a function from data to a matplotlib Figure, in one style and one palette."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from ddpp.distilled import DistilledDataset
from ddpp.errors import Error

WIDTH = 7.0  # inches: fits the book's column


def use_style() -> None:
    """Set the book's style: colour-blind palette, quiet axes, readable on a phone."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "savefig.dpi": 150}


def progress(distilled: DistilledDataset) -> Figure:
    """The first image of each class (ten at most) at every kept iterate, from the real image to the final one."""
    if not distilled.iterates:
        raise Error("this set has no iterates to show: it was not distilled")
    steps, columns = list(distilled.iterates), range(min(len(distilled.classes), 10))
    side = WIDTH / len(columns)
    figure, axes = plt.subplots(
        len(steps), len(columns), figsize=(WIDTH + 0.6, side * len(steps) + 0.3), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for row, step in zip(axes, steps, strict=True):
        images = distilled.at(step).natural()[:: distilled.ipc].permute(0, 2, 3, 1).numpy()
        for axis, c in zip(row, columns, strict=True):
            axis.imshow(images[c, ..., :3] if images.shape[-1] >= 3 else images[c, ..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            sns.despine(ax=axis, left=True, bottom=True)
        row[0].set_ylabel(f"step {step}" if step else "real", rotation=0, ha="right", va="center", fontsize=8)
    for axis, c in zip(axes[0], columns, strict=True):
        axis.set_title(distilled.classes[c], fontsize=8)
    return figure


def history(distilled: DistilledDataset) -> Figure:
    """Loss with and without pruning, the share of parameters kept, and alpha, over the distillation steps."""
    figure, (losses, kept, alpha) = plt.subplots(1, 3, figsize=(WIDTH, 2.4), layout="constrained")
    column = distilled.history
    losses.plot(column["unmasked"], lw=1, label="all parameters (MTT)")
    losses.plot(column["loss"], lw=1, label="effective ones, Eq. (8)")
    losses.set(title="matching loss", ylim=(0, None))
    losses.legend(fontsize=7)
    kept.plot(100 * column["kept"], lw=1, color="C2")
    kept.set(title="effective parameters (%)")
    alpha.plot(column["alpha"], lw=1, color="C3")
    alpha.set(title="learning rate α")
    for axis in (losses, kept, alpha):
        axis.set_xlabel("distillation step")
    return figure


def layers(distilled: DistilledDataset, names: list[str]) -> Figure:
    """The share of parameters kept in each layer, averaged over the distillation steps, by start epoch."""
    epochs = distilled.history["epoch"]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.28 * len(names) + 0.8), layout="constrained")
    for i, epoch in enumerate(sorted(epochs.unique().tolist())):
        share = 100 * distilled.history["layers"][epochs == epoch].mean(0)
        axis.plot(share, range(len(names)), "o", color=f"C{i % 10}", label=f"start epoch {epoch:.0f}")
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel="parameters kept (%), mean over steps")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure
