"""TGDD, trajectory-guided distribution matching (Ran et al., AAAI 2026).

At a snapshot of a teacher's training, distilled and real images of a class should have the same
mean features, as in DM. And a later snapshot of that teacher should classify the distilled images.
Nothing is differentiated twice.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from ddpp.baselines import common
from ddpp.baselines.common import Problem, State
from ddpp.baselines.dm import feature_distance
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.distilled.formation import check_formation, unfold
from ddpp.foundation.errors import Count, Error, NotNegative, Positive
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig
from ddpp.teachers import Teachers


@dataclass(frozen=True)
class TGDDConfig(common.BatchConfig):
    """The settings of TGDD. Steps and real images as in the published code, the others ours."""

    steps: Count = 10_000
    image_lr: Positive = 1.0
    batch_real: Count = 128
    epochs: Count = 50  # the teachers' snapshots after 0 ... so many epochs are used
    constraint: NotNegative = 1.0  # weight of the cross-entropy under the later snapshot
    # n: each image holds n x n smaller pictures, which are enlarged to train on (multi-formation)
    formation: Count = field(default=1, metadata={"since": 3})

    @property
    def teacher_epochs(self) -> int:
        """The last epoch of the teachers that is used."""
        return self.epochs


def distill(
    data: ImageData, teachers: Teachers, config: TGDDConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` by matching mean features along its `teachers`' trajectories.

    - data: the images that the teachers were trained on.
    - teachers: see `ddpp.train_teachers`. Five are enough, as published.
    - config: steps, learning rate, epochs and the weight of the cross-entropy (see TGDDConfig).
    - saving: checkpoints and progress bar.

    The history has, per step: loss and its parts features and cross_entropy, means over classes,
    and what was drawn: teacher, epoch and later. Raises Error for settings that cannot work, alone
    or with these teachers. Source: Ran et al., AAAI 2026.
    """
    teachers.check_data(data)
    if config.epochs > teachers.epochs:
        raise Error(
            f"epochs {config.epochs} reaches epoch {config.epochs}, but these teachers stop at "
            f"{teachers.epochs}: train them longer or lower it"
        )
    advance = lambda state, problem: step(state, problem, teachers)
    return common.distill("tgdd", advance, data, teachers, config, saving, config.formation)


def fits(data: ImageData, network: NetworkConfig, config: TGDDConfig) -> None:
    """Raise an Error for a class with too few images, images that cannot hold the pictures, or a
    network without features.
    """
    check_formation(config.formation, data.train.images)
    data.draw(config.ipc * config.formation**2, config.seed)
    data.network(network).check_features(data.train.images[:2])


def step(state: State, problem: Problem[TGDDConfig], teachers: Teachers) -> tuple[State, dict]:
    """Make one image update, and record the loss, its parts, and the snapshots."""
    config = problem.config
    rng = generator(config.seed, "tgdd", state.step)
    k, epoch, later = draw_snapshots(len(teachers), config.epochs, rng)
    images = state.images.detach().requires_grad_()
    pictures = unfold(images, config.formation)
    pairs = [problem.pair(pictures, label, rng) for label in range(len(problem.members))]
    theta = teachers.snapshot(k, epoch)
    features = feature_distance(problem.network, theta, pairs) / len(pairs)
    mine = torch.cat([mine for _, mine in pairs])
    logits = problem.network(teachers.snapshot(k, later), mine)
    entropy = F.cross_entropy(logits, problem.labels)
    # the sum over classes
    loss = len(pairs) * (features + config.constraint * entropy)
    after = common.descend(state, torch.autograd.grad(loss, images)[0], config)
    record = {
        "loss": loss.detach() / len(pairs),
        "features": features.detach(),
        "cross_entropy": entropy.detach(),
    }
    record |= {"teacher": k, "epoch": epoch, "later": later}
    return replace(after, step=state.step + 1), record


def draw_snapshots(count: int, epochs: int, rng: torch.Generator) -> tuple[int, int, int]:
    """Draw one of `count` teachers, an epoch of it below `epochs`, and a later one, up to it."""
    k = torch.randint(count, (), generator=rng)
    epoch = torch.randint(epochs, (), generator=rng)
    later = torch.randint(int(epoch) + 1, epochs + 1, (), generator=rng)
    return int(k), int(epoch), int(later)
