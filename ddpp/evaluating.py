"""How good a distilled set is: train fresh networks on it and test them on real images.

The paper's protocol is the average of five networks trained from scratch. Which iterate of a
distillation is tested
makes a difference: MTT and its followers report the best of many on the test set. Here the final
iterate and the one chosen on a split held out from training are the results; the best on the test
set is an extra, named as what it is.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.data import ImageData, Split
from ddpp.data.augmentation import augment, draw
from ddpp.distilled import SQUARED_ERROR, DistilledDataset
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.identity import marks
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig, accuracy


@dataclass(frozen=True)
class Protocol:
    """How a fresh network is trained on a distilled set; the learning rate is the set's alpha.

    As MTT's code, except that there the momentum starts anew when the rate drops.
    """

    epochs: int = 1000  # passes over the distilled set; the rate drops tenfold after half of them
    batch: int = 256  # images per update
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True  # the differentiable augmentation A


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in percent, one per network: of the final iterate, and of the one chosen on
    held-out images.
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
        show = lambda values: f"{statistics.fmean(values):.1f} ± {spread(values):.1f} %"
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


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def evaluate(
    distilled: DistilledDataset,
    data: ImageData,
    architecture: str | None = None,
    repeats: int = 5,
    *,
    width: int | None = None,
    protocol: Protocol | None = None,
    best_on_test: bool = False,
    seed: int = 0,
    scores: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train `repeats` fresh networks on the distilled set and test each on data.test.

    Where the set has several iterates and the data a validation split, also the iterate on which
    one network reaches the highest validation accuracy. `data` must be preprocessed with the set's
    own whitening. With a path `scores`, the accuracy of each network is kept there, so that a
    stopped evaluation goes on with the next network. The networks are of the architecture and width
    that the set was distilled with, unless others are named.
    """
    protocol = protocol or Protocol()
    check_protocol(protocol, repeats)
    if distilled.classes != data.classes:
        raise Error(
            f"the distilled set has {len(distilled.classes)} classes, the data "
            f"{len(data.classes)}, or other names: "
            "evaluate on the data set that it was distilled from"
        )
    distilled = distilled.to(data.device)
    if not distilled.whitening.equals(data.whitening):
        raise Error(
            "the data was preprocessed in another way: load it with whitening=distilled.whitening"
        )
    own = NetworkConfig(**distilled.network)
    config = replace(
        own, name=architecture or own.name, width=own.width if width is None else width
    )
    network = data.network(config)
    # 0 is where it started: real images
    sets = {at: distilled.at(at) for at in distilled.iterates if at > 0}
    last = max(sets, default=0)
    held_out = data.validation if len(sets) > 1 else None
    validate = held_out is not None
    trainings = (
        repeats * (len(sets) if best_on_test and sets else 1 + validate) + len(sets) * validate
    )
    how = {
        "data": data.identity,
        "network": asdict(config),
        "protocol": asdict(protocol),
        "seed": seed,
    }
    how |= marks(network=config.name, augmentation=protocol.augment)
    known = _read_scores(scores)
    with tqdm(total=trainings, desc="evaluate", unit="network", disable=not progress) as bar:

        def score(on: DistilledDataset, split: Split, count: int, role: str) -> list[float]:
            tensors = [files.fingerprint(tensor) for tensor in (on.images, on.labels, on.alpha)]
            tensors += (
                [on.loss] if on.labels.is_floating_point() and on.loss != SQUARED_ERROR else []
            )
            keys = [
                files.identity({"how": how, "set": tensors, "role": role, "number": r})
                for r in range(count)
            ]
            for r, key in enumerate(keys):
                if key not in known:
                    known.update(_read_scores(scores))  # perhaps a run beside this one was faster
                if key not in known:
                    known[key] = accuracy(
                        network, train(network, on, protocol, seed, role, r), *split
                    )
                    _add_score(scores, key, known[key])
                bar.update()
                bar.set_postfix(accuracy=f"{known[key]:.1f} %")
            return [known[key] for key in keys]

        tested = {last: score(distilled, data.test, repeats, "test")}

        def test(step: int) -> list[float]:
            if step not in tested:
                tested[step] = score(sets[step], data.test, repeats, "test")
            return tested[step]

        result = Evaluation(tested[last])
        if held_out is not None:
            validation = {at: score(on, held_out, 1, "validation")[0] for at, on in sets.items()}
            step = max(validation, key=lambda at: validation[at])
            result = replace(result, selected=test(step), selected_step=step, validation=validation)
        if best_on_test and sets:
            step = max(sets, key=lambda at: statistics.fmean(test(at)))
            result = replace(result, best_on_test=test(step), best_on_test_step=step)
        bar.total = bar.n  # fewer than foreseen where one iterate is chosen twice
    return result


def _add_score(path: str | Path | None, key: str, score: float) -> None:
    if path is not None:
        files.check_writable(path)
        with files.lock(path, wait=True):
            files.write_json(path, _read_scores(path) | {key: score})


def _read_scores(path: str | Path | None) -> dict[str, float]:
    """The accuracies of the networks trained so far, by what they were trained on and how."""
    if path is None or not Path(path).exists():
        return {}
    try:
        return {str(key): float(score) for key, score in json.loads(Path(path).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise Error(f"{path} is not a file of accuracies: move it away") from None


def check_protocol(protocol: Protocol, repeats: int) -> None:
    """Raise an Error for an evaluation that cannot work."""
    for name, value in (
        ("repeats", repeats),
        ("epochs", protocol.epochs),
        ("batch", protocol.batch),
    ):
        if value < 1:
            raise Error(f"the evaluation's {name} is {value}: it must be at least 1")
    if not (0 <= protocol.momentum < 1 and 0 <= protocol.weight_decay < 1):
        raise Error("the evaluation's momentum and weight_decay must be at least 0 and below 1")


def train(
    network: Flat, distilled: DistilledDataset, protocol: Protocol, seed: int, *path: int | str
) -> Tensor:
    """A fresh network trained on the distilled set: its parameters (p,)."""
    images, labels, rate = distilled.images, distilled.labels, distilled.alpha
    theta = network.initial(derive(seed, *path))
    velocity = torch.zeros_like(theta)
    rng = generator(seed, *path, "batches")
    for epoch in range(protocol.epochs):
        if epoch == (protocol.epochs + 1) // 2:
            rate = rate / 10
        for index in torch.randperm(len(labels), generator=rng).split(protocol.batch):
            x = images[index]
            if protocol.augment:
                x = augment(x, draw(len(index), rng))
            loss = loss_on(network(theta.requires_grad_(), x), labels[index], distilled.loss)
            (gradient,) = torch.autograd.grad(loss, theta)
            theta = theta.detach()
            velocity = protocol.momentum * velocity + gradient + protocol.weight_decay * theta
            theta = theta - rate * velocity
    return theta


def loss_on(logits: Tensor, labels: Tensor, kind: str | None) -> Tensor:
    """The cross-entropy with labels (n,) or soft ones (n, classes), or the squared error: kind is
    the set's `loss`.
    """
    return F.mse_loss(logits, labels) if kind == SQUARED_ERROR else F.cross_entropy(logits, labels)
