"""The paper's experiments, and the ablation it lacks, as a list of runs.

A run is a recipe with a name, EXPERIMENT/NAME; or the evaluation of another run's set in another
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ddpp.experiments.recipes import Recipe, recipe
from ddpp.foundation.errors import Error
from ddpp.networks import NetworkConfig

SEEDS = (0, 1, 2)
MTT, PRUNED = ("none", 0.0), ("signed", 0.1)  # (rule, epsilon) of Table I's two rows
EPSILONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
# students that small come closer, so less is pruned
SMOKE_EPSILONS = (0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
CONTROLS = ("random", "largest", "smallest")
# where controls prune as many pairs as the paper's rule
CONTROLLED, SMOKE_CONTROLLED = (
    (0.1, 0.3),
    (0.1, 0.7),
)
CHOICES = ("random", "herding", "forgetting")
RIVALS = ("dm", "dsa", "cafe")  # distillation methods of Table I
ARCHITECTURES = ("convnet", "alexnet", "vgg11", "resnet18")  # of Table III
# where choosing takes hours at most
CPU_SETS = (("cifar10", 1), ("cifar10", 10), ("cifar100", 1), ("cifar100", 10))
SETS = (
    ("cifar10", 10),
    ("cifar10", 1),
    ("cifar10", 50),
    ("cifar100", 1),
    ("cifar100", 10),
    ("cifar100", 50),
)


@dataclass(frozen=True)
class Run:
    """One run of the list: its name, EXPERIMENT/NAME, and its settings."""

    name: str
    recipe: Recipe
    # the name of the run whose set is evaluated, in `network`; None: the recipe is run
    of: str | None = None
    network: NetworkConfig | None = None

    def report(self, results: str | Path) -> Path:
        """Where its result is, in the folder `results`."""
        return Path(results) / self.recipe.profile / f"{self.name}.json"


def runs(profile: str) -> list[Run]:
    """All runs of a profile, the most valuable first: one seed of everything, then the next seed.
    (Smoke: of each seed
    the rivals first, as the table of all methods is what this scale is for.)

    table1: the paper's rule, MTT (rule none) and their rivals for each data set and size; on the
    CPU only what takes
    hours there. table2: KIP and its transfer to a wider network. table3: other architectures.
    epsilon: thresholds, readings of the rule and controls, with ten images per class of CIFAR-10
    (smoke: with one). Runs of one seed share teachers, first images, batches and evaluation, so
    that their differences are paired. At smoke scale each seed has teachers of its own; else the
    same teachers serve all seeds, and rivals have one seed.
    """
    smoke = profile == "smoke"
    sets = {"smoke": [("cifar10-sample", n) for n in (1, 10, 50)], "cpu": [("cifar10", 1)]}.get(
        profile, SETS
    )

    def one(name: str, data: str, ipc: int, method: str, seed: int, **settings: object) -> Run:
        base = recipe(profile, data, ipc, method)
        teachers = replace(base.teachers, seed=seed if smoke else 0)
        distill = replace(base.distill, seed=seed, **settings)
        return Run(f"{name}-seed{seed}", replace(base, teachers=teachers, distill=distill))

    def trajectories(name: str, data: str, ipc: int, rule: str, epsilon: float, seed: int) -> Run:
        return one(name, data, ipc, "ddpp", seed, rule=rule, epsilon=epsilon)

    def table1(data: str, ipc: int, seed: int) -> list[Run]:
        both = (MTT, PRUNED)
        return [
            trajectories(f"table1/{data}-ipc{ipc}-{rule}", data, ipc, rule, epsilon, seed)
            for rule, epsilon in both
        ]

    def rivals(methods: Sequence[str], data: str, ipc: int, seed: int) -> list[Run]:
        return [
            one(f"table1/{data}-ipc{ipc}-{method}", data, ipc, method, seed) for method in methods
        ]

    def table2(data: str, ipc: int, seed: int) -> list[Run]:
        kip = one(f"table2/{data}-ipc{ipc}-kip", data, ipc, "kip", seed)
        return [kip, *elsewhere(kip, "table2", [replace(kip.recipe.teachers.network, width=1024)])]

    def ablation(seed: int) -> list[Run]:
        rest = [pair for pair in settings(profile) if pair not in (MTT, PRUNED)]  # those: table 1
        return [
            trajectories(f"epsilon/{rule}-{epsilon:g}", *home(profile), rule, epsilon, seed)
            for rule, epsilon in rest
        ]

    def table3(seed: int) -> list[Run]:
        own = recipe(profile, *home(profile)).teachers.network
        others = [replace(own, name=name) for name in ARCHITECTURES[1:]]
        return [
            run
            for base in table1(*home(profile), seed)
            for run in elsewhere(base, "table3", others)
        ]

    found = []
    for seed in SEEDS:
        blocks = [table1(*which, seed) for which in sets]
        if home(profile) in sets:
            blocks.insert(2, ablation(seed))
            blocks.insert(3, table3(seed))
        if smoke:
            blocks.insert(
                0,
                rivals(
                    ("random", "herding", "dc", *RIVALS, "kip", "iadd", "forgetting"),
                    *home(profile),
                    seed,
                ),
            )
        elif seed == 0:
            blocks += [
                rivals(CHOICES, *which, seed) for which in (CPU_SETS if profile == "cpu" else SETS)
            ]
            if profile != "cpu":
                blocks += [rivals(RIVALS, *which, seed) for which in SETS]
                blocks += [table2(*which, seed) for which in SETS[:2] + SETS[3:5]]
        found += [each for block in blocks for each in block]
    return found


def elsewhere(base: Run, experiment: str, networks: Sequence[NetworkConfig]) -> list[Run]:
    """The evaluation of a run's set in other networks."""
    own = base.recipe.teachers.network
    name, _, seed = base.name.partition("/")[2].rpartition("-seed")
    which = lambda network: network.name if network.name != own.name else f"width{network.width}"
    return [
        Run(f"{experiment}/{name}-{which(each)}-seed{seed}", base.recipe, base.name, each)
        for each in networks
    ]


def home(profile: str) -> tuple[str, int]:
    """The data set and the number of images per class of the ablation."""
    return ("cifar10-sample", 1) if profile == "smoke" else ("cifar10", 10)


def settings(profile: str) -> list[tuple[str, float]]:
    """The ablation's (rule, epsilon), in the order of its table; magnitude at 0 is none, that is
    MTT.
    """
    smoke = profile == "smoke"
    epsilons, controlled = (SMOKE_EPSILONS, SMOKE_CONTROLLED) if smoke else (EPSILONS, CONTROLLED)
    return [
        MTT,
        *(("signed", epsilon) for epsilon in epsilons),
        *(("magnitude", epsilon) for epsilon in epsilons[1:]),
        *((rule, epsilon) for epsilon in controlled for rule in CONTROLS),
    ]


def select(found: Sequence[Run], only: str | None) -> list[Run]:
    """The runs whose names match the pattern `only`, with * for anything; an Error if none does."""
    chosen = [each for each in found if only is None or fnmatchcase(each.name, only)]
    if not chosen:
        some = ", ".join(each.name for each in found[:3])
        raise Error(
            f"no run is named like '{only}': names are {some} ...; * stands for anything, --list "
            "shows all"
        )
    return chosen
