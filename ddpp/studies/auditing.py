"""Privacy audits: what does a set, or a network trained on it, say of the images it was made from?

A pool of images is audited, some of which are canaries with a wrong label. Many models are made,
each from a random half of the pool alone: teachers, distilled set, and networks. Then every model
is attacked by an attacker who has learned from the others. Source: the design of Carlini et
al., IEEE S&P 2022, with the mislabelled canaries of Aerni, Zhang & Tramer, CCS 2024.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpp.baselines.selection import LEARNING_RATE
from ddpp.data import ImageData, Split
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import train
from ddpp.experiments.lists import seeded
from ddpp.experiments.places import teachers_in
from ddpp.experiments.recipes import Recipe, nothing_held_out
from ddpp.experiments.run import Experiment, whole
from ddpp.foundation import files
from ddpp.foundation.errors import (
    Count,
    Error,
    NotNegative,
    Positive,
    Whole,
    check_bounds,
    differences,
)
from ddpp.foundation.identity import as_in_files, settings
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import derive
from ddpp.networks import NetworkConfig, accuracy, in_batches
from ddpp.studies import membership, private
from ddpp.studies.membership import Leak, leak
from ddpp.studies.private import Guarantee, Noise
from ddpp.studies.reports import refuse_other, write_report

KIND = "audited model"
REPORT = "audit.json"
SAME = 1e-3  # how far apart, as a share of its length, an image is from itself at most


@dataclass(frozen=True)
class Design:
    """How large an audit is. A number that cannot work raises an Error."""

    images: Count = 100  # audited images per class, of which a model is made from about half
    canaries: Whole = 200  # how many of them get a wrong label
    models: Count = 16  # an even number from 6 on
    whole: bool = False  # networks train on the whole half, and nothing is distilled
    # learning rate of networks on the whole half; only with whole
    rate: Positive = field(default=LEARNING_RATE, metadata={"since": 3})
    # differential privacy: the noise of DP-SGD, in units of max_norm; 0: none; only with whole
    noise: NotNegative = field(default=0.0, metadata={"since": 3})
    # to which the gradient of an image is shortened; only with noise
    max_norm: Positive = field(default=1.0, metadata={"since": 3})

    def __post_init__(self):
        check_bounds(self, "the audit's ")
        membership.halves(1, self.models, 0)  # refuses too few
        for name, needed in (("rate", "whole"), ("noise", "whole"), ("max_norm", "noise")):
            if getattr(self, name) != getattr(Design, name) and not getattr(self, needed):
                raise Error(
                    f"the audit's {name} has no meaning without {needed}: set {needed}, or leave "
                    f"{name} out"
                )


@dataclass(frozen=True)
class Pool:
    """The audited images, and which models are made from which of them."""

    data: ImageData  # its training images are the audited ones, labelled as audited
    canaries: Tensor  # which images have a wrong label, (N,)
    members: Tensor  # which images a model is made from, (M, N)

    def half(self, model: int) -> ImageData:
        """The images that a model is made from, as a data set of its own.

        It is named by which images these are, and not by their whitened pixels, whose last bits
        depend on the machine.
        """
        members = self.members[model]
        images, labels = (part[members] for part in self.data.train)
        own = _sha256(self.data.sha256, files.fingerprint(members), files.fingerprint(labels))
        return replace(self.data, train=Split(images, labels), sha256=own, loaded={})

    def noise(self, design: Design) -> Noise | None:
        """The noise of each training, the same for all halves. None where there is none."""
        if not design.noise:
            return None
        return Noise(design.noise, design.max_norm, images=len(self.canaries) // 2)


def draw_pool(data: ImageData, design: Design, seed: int) -> Pool:
    """Draw the audited images from the training images, the canaries, and the models' halves.

    Raises Error for a class with too few images, and for too many or too few canaries.
    """
    images, labels = data.draw(design.images, seed)
    labels, canaries = membership.mislabel(labels, len(data.classes), design.canaries, seed)
    members = membership.halves(len(labels), design.models, seed).to(labels.device)
    for which, kind in ((canaries, "canaries"), (canaries | True, "images")):
        if which.any() and not (members[:, which].any(1) & ~members[:, which].all(1)).all():
            raise Error(f"a half has none or all of the {kind}: audit more {kind}")
    what = (*data.replaced.values(), str(data.held_out), str(design.images), str(seed))
    own, train = _sha256(data.sha256, *what), Split(images, labels)
    pool = replace(data, train=train, validation=None, sha256=own, loaded={})
    return Pool(pool, canaries, members)


def _sha256(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """What an attacker sees of M models, for each of N images. Tensors (M, N) but for two."""

    members: Tensor  # which images the model was made from
    canaries: Tensor  # which images have a wrong label, (N,)
    confidence: Tensor  # scaled, of networks trained on the model's set
    distance: Tensor  # to the nearest image of the set with the same label
    start: Tensor  # which images the set started from, or consists of
    accuracies: Tensor  # of the networks, on test images, in percent, (M,)

    def attacks(self) -> dict[str, Tensor]:
        """The scores of each attack, (M, N)."""
        return {
            "loss": self.confidence,
            "lira": membership.lira(self.confidence, self.members),
            "nearest": -self.distance,
            "closer": membership.closer(self.distance),
        }


@dataclass(frozen=True)
class Audit:
    """What an audit found, see `Leak`: by attack, for members among all images or the canaries.

    Attacks on networks are "loss" and "lira", on the set itself "nearest" and "closer". `start` is
    how well the latter find the images that the set started from. It is empty if the set started
    from noise, or if each of its images holds several pictures.
    """

    accuracies: tuple[float, ...]  # of each model's networks, on test images, in percent
    all: dict[str, Leak]
    canaries: dict[str, Leak]
    start: dict[str, Leak]
    # of networks with noise: what holds for any attack on a model
    guarantee: Guarantee | None = field(default=None, metadata={"since": 3})

    def lines(self) -> list[str]:
        """The leaks as text, one per line."""
        groups = {"all images": self.all, "canaries": self.canaries, "first images": self.start}
        lines = [f"{'':21}   AUC (95 % interval)      TPR at 1 %, 0.1 % FPR"]
        for group, found in groups.items():
            for attack, one in found.items():
                low, high = one.auc_interval
                rates = ", ".join(f"{100 * rate:.1f} %" for rate in one.tpr)
                name = f"{group}, {attack}"
                lines.append(f"{name:21}   {one.auc:.3f} ({low:.3f} to {high:.3f})   {rates}")
        return lines + ([str(self.guarantee)] if self.guarantee else [])


def audit(
    recipe: Recipe,
    folder: str | Path,
    design: Design = Design(),
    *,
    teachers: str | Path | None = None,
    root: str | Path = "data",
    device: str | None = None,
    saving: Saving = Saving(),
) -> Audit:
    """Audit what a method's sets reveal of the images that they were made from.

    - recipe: the data, the method with its settings, the teachers, and the protocol and repeats of
      the networks that are attacked. Nothing is held out. The method's seed is the seed of the
      whole audit.
    - folder: of sets, models and the report. The same call resumes from what is there.
    - design: how many images, canaries and models.
    - teachers: the folder in which the halves' teachers are, which audits can share. Default:
      `folder`.
    - root, device: as in `load_data`.
    - saving: `report` is called with a line after each model.

    The whitening is fitted on the whole data set. All models share it, and it counts as known.
    Raises Error for settings that cannot work, and for a folder of another audit.
    """
    recipe, path = nothing_held_out(recipe, "an audit"), Path(folder) / REPORT
    data = recipe.load(root, device)
    asked = {"recipe": asdict(recipe), "design": settings(design), "data": data.identity}
    asked = as_in_files(asked | recipe.marks())
    files.check_writable(path)
    with files.lock(path, wait=False):
        refuse_other(path, asked, f"{folder} holds the audit", "choose another folder")
        pool = draw_pool(data, design, recipe.distill.seed)
        _check(recipe, pool, design)
        promise = _guarantee(recipe, pool, design)
        at = Path(folder), Path(teachers or folder)
        numbers = range(design.models)
        models = [_Model(recipe, pool, design, asked, m, *at, saving) for m in numbers]
        found = judge(gather(pool, [model.seen() for model in models]))
        found = replace(found, guarantee=promise)
        write_report(path, {"asked": asked, "found": settings(found)}, data.device)
    return found


def _check(recipe: Recipe, pool: Pool, design: Design) -> None:
    """Raise an Error for settings that a half, or the noise, does not fit, before any is used."""
    recipe.stored_teachers()  # refuses settings that cannot work
    data = pool.data
    if design.noise:
        private.check(data.network(recipe.teachers.network), recipe.protocol, data.shape)
    for model in range(0 if design.whole else design.models):
        recipe.check_fits(pool.half(model))


def _guarantee(recipe: Recipe, pool: Pool, design: Design) -> Guarantee | None:
    """What noise guarantees of a model, whose networks are attacked together."""
    noise, delta = pool.noise(design), 1 / len(pool.canaries)
    if noise is None:
        return None
    return private.guarantee(noise, recipe.protocol, delta, recipe.repeats)


def gather(pool: Pool, models: Sequence[Mapping[str, Tensor]]) -> Seen:
    """Put together what an attacker sees of each model."""
    names = ("confidence", "distance", "start", "accuracies")
    columns = {name: torch.stack([model[name] for model in models]) for name in names}
    return Seen(members=pool.members.cpu(), canaries=pool.canaries.cpu(), **columns)


def judge(seen: Seen) -> Audit:
    """Measure every attack, for all images, for canaries, and for the images a set started from."""
    attacks, groups = seen.attacks(), {"all": torch.ones_like(seen.canaries)}
    if seen.canaries.any():
        groups["canaries"] = seen.canaries
    found = {
        group: {name: leak(s[:, which], seen.members[:, which]) for name, s in attacks.items()}
        for group, which in groups.items()
    }
    on_set = {name: attacks[name] for name in ("nearest", "closer")}
    start = {name: leak(s, seen.start) for name, s in on_set.items() if seen.start.any()}
    return Audit(tuple(seen.accuracies.tolist()), found["all"], found.get("canaries", {}), start)


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Compute the Euclidean distance of each image to the nearest of the others, (n,).

    - images: (n, C, H, W).
    - others: (m, C, H, W), at least one. A copy has the distance 0 exactly.
    """
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(images.flatten(1), others.flatten(1), compute_mode=exact).amin(1)


@dataclass(frozen=True)
class _Model:
    """One model of an audit: a half, its set, its networks, and what an attacker sees of them."""

    recipe: Recipe
    pool: Pool
    design: Design
    asked: dict  # all settings of the audit
    number: int
    folder: Path
    teachers: Path
    saving: Saving

    def seen(self) -> Mapping[str, Tensor]:
        """What an attacker sees: read, or made and written."""
        path = self.folder / f"model{self.number:02d}.safetensors"
        meta = {"asked": self.asked, "model": self.number}
        if path.exists():
            found, known = files.read(path, KIND)
            if known != meta:
                raise Error(
                    f"{path} is of another audit ({differences(known, meta)}): choose "
                    "another folder"
                )
            return found
        found = self.attacked(self.made())
        files.write(path, KIND, found, meta)
        score = f"{float(found['accuracies']):.1f} %"
        self.saving.report(f"model {self.number + 1} of {self.design.models}: {score}")
        return found

    @property
    def seed(self) -> int:
        """The seed of all that is random in this model."""
        return derive(self.recipe.distill.seed, "audited model", self.number)

    def made(self) -> DistilledDataset:
        """The set of this half, read, or made and written. With `whole` it is the half itself."""
        half, recipe = self.pool.half(self.number), seeded(self.recipe, self.seed, True)
        config = recipe.stored_teachers()
        if self.design.whole:
            rate, network = self.design.rate, config.network
            return DistilledDataset.from_tensors(*half.train, rate, half, network=network)
        out = self.folder / f"set{self.number:02d}.safetensors"
        at = teachers_in(self.teachers, config, half)
        made = Experiment(recipe, out, given=half, teachers_folder=at, saving=self.saving)
        return whole(made.distilled())

    def attacked(self, made: DistilledDataset) -> dict[str, Tensor]:
        """Train networks on a set, then ask them and the set about each audited image."""
        data, confidences, scores = self.pool.data, [], []
        images, labels = data.train
        network, noise = data.network(NetworkConfig(**made.network)), self.pool.noise(self.design)
        for number in range(self.recipe.repeats):
            path = self.seed, "audit", number
            if noise:
                theta = private.train(network, made, self.recipe.protocol, noise, *path)
            else:
                theta = train(network, made, self.recipe.protocol, *path)
            logits = in_batches(network, lambda x, at=theta: network(at, x), images)
            if not logits.isfinite().all():
                advice = "rate" if self.design.whole else "alpha0, or alpha"
                raise Error(
                    f"the networks of model {self.number + 1} diverged, and would seem to reveal "
                    f"nothing: their learning rate is {float(made.alpha):.2g}, lower it ({advice})"
                )
            confidences.append(membership.scaled_confidence(logits, labels))
            scores.append(accuracy(network, theta, *data.test))
        distance, pictures = torch.full_like(confidences[0], torch.inf), made.unfolded()
        for label in labels.unique():
            mine, theirs = labels == label, pictures.hard_labels == label
            theirs = theirs if theirs.any() else ~theirs  # a half of a few images may lack a class
            distance[mine] = nearest(images[mine], pictures.images[theirs])
        first, _ = made.iterates.get(0, (made.images, made.alpha))
        # a set that was made with other threads has other last bits
        same = nearest(images, first) < SAME * images.flatten(1).norm(dim=1)
        found = {
            "confidence": torch.stack(confidences).mean(0),
            "distance": distance,
            "start": same,
            "accuracies": torch.tensor(scores).mean(),
        }
        return {name: tensor.cpu() for name, tensor in found.items()}  # as they are read


def read_audit(path: str | Path) -> Audit:
    """Read the audit in a report. Raises Error for another file."""
    try:
        found = json.loads(Path(path).read_text())["found"]
        groups = {
            group: {attack: Leak(**_tuples(one)) for attack, one in found[group].items()}
            for group in ("all", "canaries", "start")
        }
        known = found.get("guarantee")
        promise = Guarantee(**known) if known else None
        return Audit(tuple(found["accuracies"]), **groups, guarantee=promise)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Error(f"{path} is not the report of an audit: give the path of one") from None


def _tuples(value: Any) -> Any:
    """Turn the lists of JSON, also those within others, into tuples."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
