"""Membership inference: attacks on models, and how well they work.

Each of M models was made from a random half of the N audited images. An attack gives every model
and image a score, which is high where it believes that the image was in the model's half.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpp.foundation.errors import Error
from ddpp.foundation.seeds import generator

RATES = (0.01, 0.001)  # of false positives, at which true positives are reported
GRID = tuple(float(rate) for rate in torch.logspace(-4, 0, 33, dtype=torch.float64))
RESAMPLES = 1000  # of the bootstrap


def halves(images: int, models: int, seed: int) -> Tensor:
    """Draw which model is made from which images: a table of True and False, (models, images).

    Each image is in exactly half of the models, so a model has about half of the images.

    Raises Error for a number of models that is odd, or below six: then an image would be left with
    a single other model that has it, or that lacks it.

    >>> from ddpp.studies.membership import halves
    >>> halves(images=3, models=6, seed=0).sum(0)
    tensor([3, 3, 3])
    """
    if models % 2 or models < 6:
        raise Error(f"an audit cannot have {models} models: choose an even number from 6 on")
    rng = generator(seed, "halves")
    draws = torch.rand(models, images, generator=rng, dtype=torch.float32)
    return draws.argsort(0).argsort(0) < models // 2


def mislabel(labels: Tensor, classes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give some of the images another label, at random.

    - labels: the right ones (N,), from 0 to classes - 1.
    - count: of images that get a wrong label, the canaries.

    Returns the labels, and which are wrong, (N,) each. Raises Error for a count that is not there.
    """
    if not 0 <= count <= len(labels):
        raise Error(f"{count} of {len(labels)} images cannot be mislabelled: choose 0 to all")
    rng = generator(seed, "canaries")
    chosen = torch.randperm(len(labels), generator=rng)[:count].to(labels.device)
    shift = torch.randint(1, classes, (count,), generator=rng).to(labels)
    wrong = torch.zeros_like(labels, dtype=torch.bool)
    wrong[chosen] = True
    labels = labels.clone()
    labels[chosen] = (labels[chosen] + shift) % classes
    return labels, wrong


def scaled_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute log(p / (1 - p)) for the probability p of each image's label, (N,).

    - logits: (N, classes).
    - labels: (N,).

    It is the logit of the label over the log-sum-exp of the others, so nothing overflows. A high
    value is a low loss. Source: Carlini et al., IEEE S&P 2022, Eq. (4).
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own.flatten() - others.logsumexp(1)


def lira(scores: Tensor, members: Tensor, seed: int = 0) -> Tensor:
    """Attack each model with the likelihood ratio, the others being its shadow models.

    - scores: of each model and image, as `scaled_confidence`, (M, N).
    - members: which images each model was made from, (M, N).
    - seed: of the shadow models that are left out, see `balanced`.

    Returns the log-likelihood ratio of "in" to "out", (M, N). Source: the online attack of Carlini
    et al., IEEE S&P 2022, with one variance for all images, as there are few shadow models.
    """
    found = []
    for target in range(len(scores)):
        shadows = torch.arange(len(scores)) != target
        theirs, inside = scores[shadows], members[shadows]
        ins, outs = balanced(inside, generator(seed, "shadows", target))
        mean_in, variance_in = gaussians(theirs, ins)
        mean_out, variance_out = gaussians(theirs, outs)
        ratio = log_density(scores[target], mean_in, variance_in)
        found.append(ratio - log_density(scores[target], mean_out, variance_out))
    return torch.stack(found)


def balanced(inside: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose for each image as many models that have it as models that lack it, at random.

    Each image is in half of the models. So a member lacks one "in" among its shadow models, and any
    other image lacks one "out". The mean of fewer scores has the larger error, and where nothing
    leaks a comparison of both means would err more often than a guess.

    - inside: which models have the image, (M, N).
    - rng: what is drawn from.

    Returns which models count as "in", and which as "out", (M, N) each.
    """
    least = torch.minimum(inside.sum(0), (~inside).sum(0))
    draws = torch.rand(inside.shape, generator=rng, dtype=torch.float32).to(inside.device)
    ins = (draws + ~inside).argsort(0).argsort(0) < least
    outs = (draws + inside).argsort(0).argsort(0) < least
    return ins, outs


def gaussians(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to each image's scores: the means (N,), and a variance that all share, ().

    - scores: of models and images, (M, N).
    - chosen: which of them count, (M, N): at least one for each image, two for some.
    """
    count = chosen.sum(0)
    mean = (scores * chosen).sum(0) / count
    squares = ((scores - mean).square() * chosen).sum()
    return mean, squares / (count - 1).sum()


def log_density(scores: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Compute the logarithm of Gaussian densities, without its constant."""
    return -((scores - mean).square() / variance + variance.log()) / 2


def closer(distances: Tensor) -> Tensor:
    """Score how much closer an image is to a model's set than to the sets of the other models.

    - distances: of each image to the nearest image of the set, (M, N).

    Returns the mean distance to the other sets, minus the distance, (M, N).
    """
    return (distances.sum(0) - distances) / (len(distances) - 1) - distances


def roc(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the rates of false and of true positives, one point per threshold, from 0 to 1.

    - scores: of any shape; those at or above a threshold are called positive.
    - positive: which of them are, of the same shape: at least one is, and one is not.
    """
    scores, order = scores.flatten().sort(descending=True)
    hits = positive.flatten()[order]
    last = torch.ones_like(hits)
    last[:-1] = scores[1:] != scores[:-1]  # equal scores fall together
    true, false = hits.double().cumsum(0)[last], (~hits).double().cumsum(0)[last]
    zero = torch.zeros(1, dtype=torch.float64, device=scores.device)
    return torch.cat([zero, false / false[-1]]), torch.cat([zero, true / true[-1]])


def area(fpr: Tensor, tpr: Tensor) -> float:
    """Compute the area under a ROC curve: how often a random positive is above a random negative.

    0.5 is a guess.
    """
    return float(torch.trapezoid(tpr, fpr))


def tpr_at(rate: float, fpr: Tensor, tpr: Tensor) -> float:
    """Look up the largest rate of true positives with at most `rate` false ones."""
    return float(tpr[fpr <= rate].max())


@dataclass(frozen=True)
class Leak:
    """How well an attack works. Intervals hold 95 % of a bootstrap over models and images."""

    auc: float
    auc_interval: tuple[float, float]
    tpr: tuple[float, ...]  # at the RATES of false positives
    tpr_intervals: tuple[tuple[float, float], ...]
    curve: tuple[float, ...]  # rates of true positives, at the rates of false ones in GRID
    aucs: tuple[float, ...]  # of each model alone
    positives: int  # pairs of a model and an image
    negatives: int


def leak(scores: Tensor, positive: Tensor, seed: int = 0) -> Leak:
    """Measure an attack over all models and images, (M, N) each.

    - scores: of the attack.
    - positive: what it should find.
    - seed: of the bootstrap, which draws models and images anew, and sets the thresholds anew.

    Raises Error where there is nothing to find, or nothing else, in a model.
    """
    if not (positive.any(1) & ~positive.all(1)).all():
        raise Error("an attack can be measured only where each model has members and others")
    scores, positive = scores.cpu().double(), positive.cpu()
    fpr, tpr = roc(scores, positive)
    rng, drawn = generator(seed, "bootstrap"), []
    for _ in range(RESAMPLES):
        rows, columns = (torch.randint(n, (n,), generator=rng) for n in scores.shape)
        found = positive[rows][:, columns]
        if found.all() or not found.any():  # of a few images; such a draw has no curve
            continue
        again = roc(scores[rows][:, columns], found)
        drawn.append([area(*again), *(tpr_at(rate, *again) for rate in RATES)])
    ends = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975]), 0).T.tolist()
    intervals = [(low, high) for low, high in ends]
    return Leak(
        auc=area(fpr, tpr),
        auc_interval=intervals[0],
        tpr=tuple(tpr_at(rate, fpr, tpr) for rate in RATES),
        tpr_intervals=tuple(intervals[1:]),
        curve=tuple(tpr_at(rate, fpr, tpr) for rate in GRID),
        aucs=tuple(area(*roc(s, p)) for s, p in zip(scores, positive, strict=True)),
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
    )
