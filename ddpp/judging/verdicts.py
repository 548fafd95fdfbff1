"""Judge distilled sets from any code under one protocol, beside the same number of real images."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from ddpp.baselines import selection
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol, evaluate
from ddpp.foundation import files
from ddpp.foundation.errors import Error, check_kind, choose
from ddpp.foundation.identity import as_in_files, marks
from ddpp.foundation.provenance import provenance
from ddpp.foundation.text import aligned, show_mean
from ddpp.judging.opening import Opened, open_set
from ddpp.networks import ARCHITECTURES, NetworkConfig

RATES = (0.003, 0.01, 0.03, 0.1)  # tried on held-out images where a set brings no learning rate


@dataclass(frozen=True)
class Judged:
    """Accuracies in percent of a set, and of the same number of random real images per class, in
    each architecture.
    """

    path: str
    data: str
    images: int
    space: str  # of the pixels
    alpha: float  # learning rate that networks were trained with
    random_alpha: float  # learning rate that networks on the random images were trained with
    chosen: bool  # whether both were chosen on held-out images, as the set brought none
    accuracies: dict[str, list[float]]  # by architecture, one per network
    random: dict[str, list[float]]
    notes: tuple[str, ...]  # what was assumed
    asked: dict[str, object]  # how the networks were trained: protocol, width and seed as given
    distilled: DistilledDataset = field(repr=False, compare=False)  # as it was tested

    @property
    def name(self) -> str:
        """The file with its folder, because many files are called images_best.pt."""
        name = "/".join(Path(self.path).parts[-2:])
        return name.encode(errors="backslashreplace").decode()  # a figure takes UTF-8 alone

    def lines(self) -> list[list[str]]:
        """Rows of the table, one per architecture."""
        chosen = " (chosen)" if self.chosen else ""
        rate, theirs = (f"{alpha:.4g}{chosen}" for alpha in (self.alpha, self.random_alpha))
        about = [self.name, self.data, str(len(self.distilled)), self.space, rate]
        lines = []
        for name, values in self.accuracies.items():
            gain = statistics.fmean(values) - statistics.fmean(self.random[name])
            real = [show_mean(self.random[name]), theirs]
            lines.append([*about, name, show_mean(values), *real, f"{gain:+.1f}"])
        return lines


HEAD = ["set", "data", "images", "pixels", "learning rate", "network", "accuracy (%)"]
HEAD += ["random real images (%)", "their learning rate", "gain"]


def judge(
    *paths: str | Path,
    data: str | Path | None = None,
    space: str | None = None,
    architectures: str | type | Sequence[str | type] = ("convnet",),
    width: int | None = None,
    repeats: int = 5,
    protocol: Protocol | None = None,
    folder: str | Path = "runs/judge",
    root: str | Path = "data",
    device: str | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Judged]:
    """Test sets from any code under one protocol, beside the same number of random real images.

    - paths: files and folders, see `open_set`.
    - data, space, root, device: as in `open_set`, for all of them.
    - architectures, width: networks to train, by name or class. Default: the ConvNet, as wide as a
      file of ddpp says, else 128.
    - repeats: networks per set and architecture.
    - protocol: how they are trained. Default: 1,000 epochs, see `Protocol`.
    - folder: keeps the accuracy of each network, so that a stopped call resumes.
    - seed: of the networks and of the random images.
    - progress, say: whether progress bars are shown, and what hears every line.

    Returns one verdict per path. Where a set brings no learning rate, the best of four is chosen on
    held-out images with one ConvNet each, and the random images get the best of four, too. Beside a
    set with a rate of its own, they get 0.01. Raises Error for what cannot be read or tested. The
    sets before it are not tested again by the next call.
    """
    if not paths:
        raise Error("there is nothing to judge: name a file or folder")
    given = [architectures] if isinstance(architectures, str | type) else architectures
    names = [ARCHITECTURES.name_of(network) for network in given]
    for name in names:
        choose("network", name, ARCHITECTURES)
        if width is not None:
            NetworkConfig(name).of_width(width)
    protocol, folder = Protocol() if protocol is None else protocol, Path(folder)
    check_kind("protocol", protocol, Protocol)
    # read all before the first is tested, so that a wrong path is noticed now
    opened: dict[str | Path, Opened] = {}
    for path in paths:
        opened[path] = _sharing(
            open_set(path, data, space, root=root, device=device), opened.values()
        )
    judged = []
    for path, one in opened.items():
        say(f"\n{path}: {one.distilled!r}")
        for note in one.notes:
            say(f"  {note}")
        if width is not None:
            wider = one.distilled.network | {"width": width}
            one = replace(one, distilled=replace(one.distilled, network=wider))
        test = _Test(protocol, width, seed, progress, folder)
        judged.append(_judge(path, one, names, repeats, test))
        for note in judged[-1].notes[len(one.notes) :]:
            say(f"  {note}")
        for name, values in judged[-1].accuracies.items():
            theirs = show_mean(judged[-1].random[name])
            say(f"  {name}: {show_mean(values)} %, random real images {theirs} %")
    return judged


def _sharing(one: Opened, others: Iterable[Opened]) -> Opened:
    """Let a set use the data of another if they are the same to the bit: a GPU has room for few."""
    for data in (other.data for other in others):
        alike = (data.name, data.classes, data.identity)
        mine, theirs = one.data.whitening.tensors(), data.whitening.tensors()
        if alike == (one.data.name, one.data.classes, one.data.identity) and all(
            torch.equal(mine[name], theirs[name]) for name in mine
        ):
            return replace(one, data=data)
    return one


@dataclass(frozen=True)
class _Test:
    """How all sets are tested."""

    protocol: Protocol
    width: int | None  # if all networks get one
    seed: int
    progress: bool
    folder: Path

    def __call__(
        self, distilled: DistilledDataset, data: ImageData, name: str, repeats: int, scores: str
    ) -> list[float]:
        distilled = replace(distilled, iterates={})  # the final images alone
        result = evaluate(
            distilled,
            data,
            name,
            repeats,
            protocol=self.protocol,
            seed=self.seed,
            scores=self.folder / scores,
            progress=self.progress,
        )
        return result.final


def _judge(
    path: str | Path, one: Opened, architectures: Sequence[str], repeats: int, test: _Test
) -> Judged:
    distilled, data, notes, chosen = one.distilled, one.data, one.notes, False
    real = selection.random(data, _counts(distilled), distilled.network, test.seed)
    if not one.rated:
        (distilled, chosen), (real, _) = (_rated(x, data, test) for x in (distilled, real))
        if not chosen:
            rate = f"{float(distilled.alpha):.4g}"
            notes = (*notes, f"no learning rate, and no held-out images to choose it on: {rate}")
    each = lambda on: {name: test(on, data, name, repeats, "scores.json") for name in architectures}
    return Judged(
        path=str(path),
        data=data.name,
        images=len(distilled),
        space=one.space,
        alpha=float(distilled.alpha),
        random_alpha=float(real.alpha),
        chosen=chosen,
        accuracies=each(distilled),
        random=each(real),
        notes=notes,
        asked=_asked(test.protocol, test.width, test.seed),
        distilled=distilled,
    )


def _asked(protocol: Protocol, width: int | None, seed: int) -> dict[str, object]:
    """What the accuracies depend on beside the set, as the table's file has it."""
    asked = {"protocol": asdict(protocol), "width": width, "seed": seed}
    return as_in_files(asked | marks(augmentation=protocol.augment, settings=protocol))


def _counts(distilled: DistilledDataset) -> list[int]:
    """How many random images of each class a set is compared with: the same number as its own."""
    if not distilled.labels.is_floating_point():
        return [len(members) for members in distilled.by_class()]
    # the largest entry of a learned label need not be the class: so evenly
    each, more = divmod(len(distilled), len(distilled.classes))
    return [each + (label < more) for label in range(len(distilled.classes))]


def _rated(
    distilled: DistilledDataset, data: ImageData, test: _Test
) -> tuple[DistilledDataset, bool]:
    """Give a set the learning rate that does best on held-out images, and return whether there are
    any.
    """
    if data.validation is None:
        return distilled, False
    held_out = replace(data, test=data.validation, validation=None, loaded={})
    rated = [
        replace(distilled, alpha=torch.tensor(rate).to(distilled.alpha), iterates={})
        for rate in RATES
    ]
    # scores of their own: these are not of test images
    scores = [test(one, held_out, "convnet", 1, "held-out-scores.json")[0] for one in rated]
    return rated[scores.index(max(scores))], True


def refuse_loss(
    paths: Sequence[str | Path],
    folder: str | Path,
    architectures: Sequence[str],
    repeats: int,
    protocol: Protocol,
    width: int | None,
    seed: int,
) -> None:
    """Raise an Error if a table in the folder has sets, architectures or accuracies that the new
    one would lack.
    """
    path, asked = Path(folder) / "judged.json", _asked(protocol, width, seed)
    try:
        sets = json.loads(path.read_text())["sets"] if path.exists() else []
        known = [
            (one["path"], name, len(values), dict(one.get("asked", asked)))
            for one in sets
            for name, values in dict(one["accuracies"]).items()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise Error(f"{path} is where the table belongs, but is another file: move it") from None
    for one, name, count, before in known:
        advice = "ask for them, too, as what is known is not tested again, or "
        if one not in {*map(str, paths)}:
            lost = f"other sets, such as {one}"
        elif name not in architectures:
            lost = f"other architectures, such as {name}"
        elif count > repeats:
            lost = f"more accuracies ({count} of {name}) than --repeats {repeats} gives"
        elif before != asked:
            other = [name for name in asked | before if before.get(name) != asked.get(name)]
            lost, advice = f"accuracies with another {' and '.join(other)}", ""
        else:
            continue
        raise Error(
            f"{path} has {lost}, which would be lost: {advice}choose another folder with --out"
        )


def report(judged: Sequence[Judged], folder: str | Path, device: torch.device) -> str:
    """Write verdicts as CSV and JSON into a folder, and return them as a table of text."""
    lines = [HEAD, *(line for one in judged for line in one.lines())]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    files.write_text(Path(folder) / "judged.csv", text.getvalue())
    rows = [{f.name: getattr(one, f.name) for f in fields(one)} for one in judged]
    rows = [{name: value for name, value in row.items() if name != "distilled"} for row in rows]
    content = {"sets": rows} | provenance(device)
    files.write_json(Path(folder) / "judged.json", content)
    return aligned(lines)
