"""How good a distilled set is: train fresh networks on it and test them on real images.

The paper reports the average of five networks trained from scratch. Which iterate of a distillation
is tested makes a difference: MTT and its followers report the best of many on the test set. Here
the results are the final iterate and the one chosen on a held-out split of the training images. The
best on the test set is given beside them, labelled as such.
"""

import json
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpp.data import ImageData, Split
from ddpp.data.augmentation import (
    Augmentation,
    as_augmentation,
    augment,
    check_operations,
    draw_epoch,
)
from ddpp.distilled import DistilledDataset
from ddpp.distilled.checks import SQUARED_ERROR
from ddpp.distilled.format import marks_in
from ddpp.foundation import files
from ddpp.foundation.devices import check_training
from ddpp.foundation.errors import Count, Error, Share, as_whole, check_bounds, check_kind
from ddpp.foundation.identity import as_in_files, marks
from ddpp.foundation.seeds import derive, generator
from ddpp.foundation.stats import spread
from ddpp.foundation.text import show_mean
from ddpp.networks import ARCHITECTURES, Flat, NetworkConfig, accuracy

S = TypeVar("S")  # of a score: an accuracy, or several numbers


@dataclass(frozen=True)
class Protocol:
    """How a fresh network is trained on a distilled set. The learning rate is the set's alpha.

    As in MTT's code, but for two differences: there the momentum restarts when the rate drops, and
    there are 1,001 epochs (book/deviations.md, "Epochs and learning rate"). A number that cannot
    work raises an Error.

    >>> import ddpp
    >>> ddpp.Protocol(epochs=200).momentum
    0.9
    """

    epochs: Count = 1000  # passes over the distilled set; the rate drops tenfold after half of them
    batch: Count = 256  # images per update
    momentum: Share = 0.9
    weight_decay: Share = 5e-4
    augment: Augmentation = True  # A: all operations, none (False), or some: ("color", "crop")

    def __post_init__(self):
        check_bounds(self, "the evaluation's ")
        object.__setattr__(self, "augment", as_augmentation(self.augment))

    def update(
        self, theta: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make one step of SGD with momentum and weight decay.

        - theta, velocity, gradient: (p,) each.
        - rate: the learning rate, a scalar.

        Returns theta and the velocity after it.
        """
        velocity = self.momentum * velocity + gradient + self.weight_decay * theta
        return theta - rate * velocity, velocity


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in percent, one per network: of the final and of the selected iterate.

    >>> import ddpp
    >>> result = ddpp.Evaluation(final=[42.0, 43.0])
    >>> result.mean, round(result.std, 3)
    (42.5, 0.707)
    """

    final: list[float]
    selected: list[float] | None = None
    selected_step: int | None = None
    validation: dict[int, float] | None = None  # the held-out accuracy of each iterate
    # chosen on the test set: optimistic, for comparing with papers
    best_on_test: list[float] | None = None
    best_on_test_step: int | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.final)

    @property
    def std(self) -> float:
        """Sample standard deviation over networks (0 for one network)."""
        return spread(self.final)

    def lines(self) -> list[str]:
        """The results as text, one per line."""
        show = lambda values: f"{show_mean(values)} %"
        lines = [f"final iterate:            {show(self.final)} of {len(self.final)} networks"]
        if self.selected:
            lines.append(
                f"selected on validation:   {show(self.selected)} (step {self.selected_step})"
            )
        if self.best_on_test:
            lines.append(
                f"best on the test set:     {show(self.best_on_test)} (step "
                f"{self.best_on_test_step}, the best of the "
                "kept iterates; how papers choose, optimistic)"
            )
        return lines

    def to_dict(self) -> dict:
        return asdict(self)


def evaluate(
    distilled: DistilledDataset,
    data: ImageData,
    architecture: str | Callable[..., nn.Module] | NetworkConfig | None = None,
    repeats: int = 5,
    *,
    width: int | None = None,
    protocol: Protocol | None = None,
    best_on_test: bool = False,
    seed: int = 0,
    scores: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train fresh networks on a distilled set and test each of them on data.test.

    If the set has several iterates and the data a held-out split, one network is trained on each
    iterate and scored on that split. The best iterate is tested as well (`selected`).

    - distilled: the set, with its iterates.
    - data: the images it was distilled from, preprocessed with the set's own whitening.
    - architecture, width: of the networks, a name or a class of your own, see `NetworkConfig`, or
      such a config. Default: as the set was distilled with.
    - repeats: networks per tested iterate.
    - protocol: how they are trained. Default: 1,000 epochs, see `Protocol`.
    - best_on_test: whether the best iterate on data.test is reported, too, as papers do.
    - seed: of the networks. The same seed gives the same accuracies, on one machine's CPU.
    - scores: a file that keeps the accuracy of each network, so that a stopped call resumes.
    - progress: whether a progress bar is shown.

    Raises Error for settings that cannot work, and for data of other classes or another whitening.
    Source: the protocol of MTT's code (Cazenavette et al., CVPR 2022).

    >>> import ddpp
    >>> from ddpp.baselines import selection
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> real = selection.random(data, ipc=1, network={"width": 1})
    >>> quick = ddpp.Protocol(epochs=1)
    >>> result = ddpp.evaluate(real, data, repeats=2, protocol=quick, progress=False)
    >>> len(result.final)
    2
    """
    repeats = as_whole(repeats, "the evaluation's repeats")
    seed = as_whole(seed, "the evaluation's seed")
    if repeats < 1:
        raise Error(f"the evaluation's repeats is {repeats}: it must be at least 1")
    protocol = Protocol() if protocol is None else protocol
    check_kind("distilled", distilled, DistilledDataset)
    check_kind("data", data, ImageData)
    check_kind("protocol", protocol, Protocol)
    distilled = distilled.to(data.device).unfolded()
    check_pair(distilled, data)
    config = NetworkConfig(**distilled.network)
    if isinstance(architecture, NetworkConfig):
        config = architecture
    elif architecture:
        config = replace(config, name=architecture)
    else:
        _check_network(distilled, config)
    if width is not None:
        config = config.of_width(width)
    some = distilled.provenance.get("config", {}).get("augment")
    if isinstance(some, list | tuple) and protocol.augment is True:
        warnings.warn(
            f"the set was made with the operations {', '.join(some)} alone, and is tested with "
            f"all: give the protocol augment={tuple(some)} to leave out the others",
            stacklevel=2,
        )
    if other := made_from_other_images(distilled, data):
        warnings.warn(other, stacklevel=2)
        data = replace(data, validation=None)  # to choose on
    with tqdm(desc="evaluate", unit="network", disable=not progress) as bar:
        scorer = _Scorer(data, config, protocol, seed, scores, bar)
        return _judge(distilled, data, repeats, best_on_test, scorer)


def _check_network(distilled: DistilledDataset, config: NetworkConfig) -> None:
    """Raise Error if the set was made with a network of this name that was another one."""
    for name, mark in as_in_files({"custom": ARCHITECTURES.marks(config.name)})["custom"].items():
        if marks_in(distilled.provenance, name.removeprefix("network ")) - {mark}:
            raise Error(
                f"the {name} is not the one that the set was made with: to test it in this one, "
                f"give --architecture {config.name}, in Python architecture={config.name}"
            )


def made_from_other_images(distilled: DistilledDataset, data: ImageData) -> str:
    """Return a sentence if a set was made from other images than these, else an empty text."""
    source = _source(distilled)
    if data.has_images_of(source.get("sha256", data.sha256)):
        return ""
    return (
        f"the set was made from other images than those of {data.name}: its test or held-out "
        "images may be among them, so the accuracy may be too high, and no iterate is chosen"
    )


def _source(distilled: DistilledDataset) -> dict:
    """What a set says of the images that it was made from."""
    made_from = distilled.provenance.get("teachers", distilled.provenance)
    return made_from.get("data", made_from.get("images", {}))


def check_pair(distilled: DistilledDataset, data: ImageData) -> None:
    """Raise Error if the set was made from other data."""
    if distilled.classes != data.classes:
        raise Error(
            f"the distilled set has {len(distilled.classes)} classes, the data "
            f"{len(data.classes)}, or other names: evaluate on the data set that it was distilled "
            "from"
        )
    if not distilled.whitening.equals(data.whitening):
        raise Error(
            "the data was preprocessed in another way: load it with whitening=distilled.whitening"
        )
    source = _source(distilled)
    alike = "sha256" in source and data.has_images_of(source["sha256"])
    if alike and source.get("validation", data.held_out) < data.held_out:
        raise Error(
            f"the set was made with a validation share of {source['validation']}, here it is "
            f"{data.held_out}: load the data with validation={source['validation']}, or images "
            "that it was made from would choose among its iterates"
        )


def _judge(
    distilled: DistilledDataset,
    data: ImageData,
    repeats: int,
    best_on_test: bool,
    scorer: "_Scorer",
) -> Evaluation:
    """Test the final iterate, and those chosen on held-out and on test images."""
    # 0 is where it started
    sets = {at: distilled.at(at) for at in distilled.iterates if at > 0}
    last = max(sets, default=0)
    if last and not _is_last(distilled, sets[last]):
        warnings.warn(
            "the images or alpha of this set are not those of the last step that is kept with it, "
            "as they were replaced: no iterate is chosen",
            stacklevel=3,
        )
        sets, last = {}, 0
    held_out = data.validation if len(sets) > 1 else None
    validations = len(sets) if held_out else 0
    tests = len(sets) if best_on_test and sets else 1 + bool(held_out)
    scorer.bar.total = tests * repeats + validations

    @cache
    def test(step: int) -> list[float]:
        on = distilled if step == last else sets[step]
        return scorer.accuracies(on, data.test, repeats, "test")

    result = Evaluation(test(last))
    if held_out:
        validation = {
            at: scorer.accuracies(on, held_out, 1, "validation")[0] for at, on in sets.items()
        }
        step = max(validation, key=lambda at: validation[at])
        result = replace(result, selected=test(step), selected_step=step, validation=validation)
    if best_on_test and sets:
        step = max(sets, key=lambda at: statistics.fmean(test(at)))
        result = replace(result, best_on_test=test(step), best_on_test_step=step)
    scorer.bar.total = scorer.bar.n  # fewer than foreseen where one iterate is chosen twice
    return result


def _is_last(distilled: DistilledDataset, iterate: DistilledDataset) -> bool:
    """Whether an iterate is the set itself."""
    same = torch.equal(distilled.images, iterate.images)
    return same and torch.equal(distilled.alpha, iterate.alpha)


@dataclass(frozen=True)
class _Scorer:
    """Train and score networks of one kind. Read the accuracies that `scores` has already."""

    data: ImageData
    config: NetworkConfig
    protocol: Protocol
    seed: int
    scores: str | Path | None
    bar: tqdm

    def accuracies(self, on: DistilledDataset, split: Split, count: int, role: str) -> list[float]:
        """Train `count` networks on a set, and score each on a split, in percent."""
        of = self._account(on) | {"role": role}
        keys = [files.identity(of | {"number": number}) for number in range(count)]
        return [self._accuracy(on, split, role, *each) for each in enumerate(keys)]

    def _accuracy(
        self, on: DistilledDataset, split: Split, role: str, number: int, key: str
    ) -> float:
        def make() -> tuple[float, Tensor]:
            network = self.data.network(self.config)
            theta = train(network, on, self.protocol, self.seed, role, number)
            return accuracy(network, theta, *split), theta

        score = score_once(self.scores, key, float, number, float(on.alpha), make)
        self.bar.update()
        self.bar.set_postfix(accuracy=f"{score:.1f} %")
        return score

    def _account(self, on: DistilledDataset) -> dict:
        """Return all that an accuracy depends on, but for its role and number."""
        how = {
            "data": self.data.identity,
            "network": asdict(self.config),
            "protocol": asdict(self.protocol),
            "seed": self.seed,
        }
        how |= marks(
            network=self.config.name, augmentation=self.protocol.augment, settings=self.protocol
        )
        trained_on: list[str | None] = [
            files.fingerprint(tensor) for tensor in (on.images, on.labels, on.alpha)
        ]
        if on.labels.is_floating_point() and on.loss != SQUARED_ERROR:
            trained_on.append(on.loss)
        return as_in_files({"how": how, "set": trained_on})


def score_once(
    scores: str | Path | None,
    key: str,
    kind: Callable[[Any], S],
    number: int,
    rate: float,
    make: Callable[[], tuple[S, Tensor]],
) -> S:
    """Return a network's score: from a file, or by training, and then the file has it, too.

    Several runs may do this at once. A network whose parameters say nothing any more is warned of,
    by a later call as well.

    - scores: the file, which need not be there. None: nothing is kept.
    - key: names all that the score depends on.
    - kind: what a score is: float, an accuracy, or tuple, several numbers.
    - number, rate: of the network, counted from 0, and its learning rate.
    - make: trains it, and returns its score and its parameters.
    """
    known = _read_scores(scores, kind)  # each time: a run beside this may have been faster
    lost = f"{key} diverged"  # beside the score
    if key not in known:
        if scores is not None:
            files.check_writable(scores)
        score, theta = make()
        known = {key: score} | ({} if theta.isfinite().all() else {lost: score})
        if scores is not None:
            files.check_writable(scores)
            with files.lock(scores, wait=True):
                files.write_json(scores, _read_scores(scores, kind) | known)
    if lost in known:
        warnings.warn(
            f"network {number + 1} diverged at the learning rate {rate:.2g}, and counts as one "
            "that always guesses the first class: lower the rate",
            stacklevel=3,
        )
    return known[key]


def _read_scores(path: str | Path | None, kind: Callable[[Any], S]) -> dict[str, S]:
    """Read the scores so far, by their keys. None, or a file that is not there: there are none."""
    if path is None or not Path(path).exists():
        return {}
    try:
        return {str(key): kind(score) for key, score in json.loads(Path(path).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise Error(f"{path} is not a file of scores: move it away") from None


def train(
    network: Flat, distilled: DistilledDataset, protocol: Protocol, seed: int, *path: int | str
) -> Tensor:
    """Train a fresh network on the distilled set, and return its parameters (p,).

    - protocol: how it is trained. The learning rate is the set's alpha.
    - seed, path: what its initialization, batches and augmentation are drawn from.
    """
    check_training()
    distilled = distilled.to(network.device).unfolded()
    images, labels, rate = distilled.images, distilled.labels, distilled.alpha
    check_operations(protocol.augment, images.shape[1:], images.device)
    network.check_batches(len(labels), protocol.batch)
    theta = network.initial(derive(seed, *path))
    velocity = torch.zeros_like(theta)
    rng = generator(seed, *path, "batches")
    for epoch in range(protocol.epochs):
        if epoch == (protocol.epochs + 1) // 2:
            rate = rate / 10
        order = torch.randperm(len(labels), generator=rng).to(labels.device)
        batches = order.split(protocol.batch)
        draws = draw_epoch(batches, rng, protocol.augment, images)
        for index, how in zip(batches, draws, strict=True):
            x = images[index]
            if how:
                x = augment(x, how)
            loss = loss_on(network(theta.requires_grad_(), x), labels[index], distilled.loss)
            (gradient,) = torch.autograd.grad(loss, theta)
            theta, velocity = protocol.update(theta.detach(), velocity, gradient, rate)
    return theta


def loss_on(logits: Tensor, labels: Tensor, kind: str | None) -> Tensor:
    """Return the loss on logits (n, classes), a scalar.

    - labels: indices (n,), or soft labels (n, classes).
    - kind: the set's `loss`: cross-entropy, unless it says the squared error.
    """
    return F.mse_loss(logits, labels) if kind == SQUARED_ERROR else F.cross_entropy(logits, labels)
