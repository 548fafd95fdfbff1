"""The runs of the paper's experiments, and of the ablation that it lacks.

A run is a recipe with a name, EXPERIMENT/NAME, or the evaluation of another run's set in another
network.
"""

import re
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
# students of smoke scale come closer to their teachers, so less is pruned
SMOKE_EPSILONS = (0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
CONTROLS = ("random", "largest", "smallest")
# thresholds at which controls prune as many pairs as the paper's rule
CONTROLLED, SMOKE_CONTROLLED = (0.1, 0.3), (0.1, 0.7)
CHOICES = ("random", "herding", "forgetting")
RIVALS = ("dm", "dsa", "cafe")  # distillation methods of Table I
SMOKE_RIVALS = ("random", "herding", "dc", *RIVALS, "tgdd", "kip", "bptt", "iadd", "forgetting")
TRANSFERRED = ("convnet", "alexnet", "vgg11", "resnet18")  # of Table III
# sets for which choosing images takes hours at most
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
    # the run with fewer steps that this one goes on with; None: it begins anew
    continues: "Run | None" = None
    sets: bool = True  # whether its images are stored beside its report

    def report_path(self, results: str | Path) -> Path:
        """Return the path of its result, in the folder `results`."""
        return Path(results) / self.recipe.profile / f"{self.name}.json"


def runs(profile: str) -> list[Run]:
    """List all runs of a profile, the most valuable first: one seed of everything, then the next.

    - profile: smoke, cpu, colab or paper.

    The experiments are:

    - table1: the paper's rule, MTT (rule none) and their rivals for each data set and size. On the
      CPU only what takes hours there.
    - table2: KIP and its transfer to a wider network.
    - table3: other architectures.
    - epsilon: thresholds, readings of the rule and controls, with ten images per class of CIFAR-10
      (smoke: with one).

    Runs of one seed share teachers, first images, batches and evaluation: their differences are
    paired. At smoke scale each seed has its own teachers, and its rivals come first, because this
    scale is for the table of all methods. At other scales the same teachers serve all seeds, and
    rivals have one seed.

    >>> from ddpp.experiments import runs
    >>> runs("paper")[0].name
    'table1/cifar10-ipc10-none-seed0'
    """
    lists = _Lists(profile)
    return [run for seed in SEEDS for run in lists.of_seed(seed)]


@dataclass(frozen=True)
class _Lists:
    """The experiments of a profile, each as a list of runs of one seed."""

    profile: str

    @property
    def sets(self) -> Sequence[tuple[str, int]]:
        """(data set, images per class) of Table I."""
        if self.profile == "smoke":
            return [("cifar10-sample", ipc) for ipc in (1, 10, 50)]
        return [("cifar10", 1)] if self.profile == "cpu" else SETS

    def of_seed(self, seed: int) -> list[Run]:
        """List all runs of a seed, the most valuable first."""
        blocks = [self.table1(data, ipc, seed) for data, ipc in self.sets]
        if home(self.profile) in self.sets:
            blocks[2:2] = [self.ablation(seed), self.table3(seed)]
        if self.profile == "smoke":
            blocks.insert(0, self.rivals(SMOKE_RIVALS, *home(self.profile), seed))
        elif seed == 0:
            chosen = CPU_SETS if self.profile == "cpu" else SETS
            blocks += [self.rivals(CHOICES, data, ipc, seed) for data, ipc in chosen]
            if self.profile != "cpu":
                blocks += [self.rivals(RIVALS, data, ipc, seed) for data, ipc in SETS]
                blocks += [self.table2(data, ipc, seed) for data, ipc in SETS[:2] + SETS[3:5]]
        return [run for block in blocks for run in block]

    def table1(self, data: str, ipc: int, seed: int) -> list[Run]:
        """List MTT and the paper's rule."""
        return [
            self._trajectories(f"table1/{data}-ipc{ipc}-{pair[0]}", data, ipc, pair, seed)
            for pair in (MTT, PRUNED)
        ]

    def rivals(self, methods: Sequence[str], data: str, ipc: int, seed: int) -> list[Run]:
        """List the other rows of Table I."""
        return [
            self._run(f"table1/{data}-ipc{ipc}-{method}", data, ipc, method, seed)
            for method in methods
        ]

    def table2(self, data: str, ipc: int, seed: int) -> list[Run]:
        """List KIP, and its evaluation in a wider network."""
        kip = self._run(f"table2/{data}-ipc{ipc}-kip", data, ipc, "kip", seed)
        return [kip, *elsewhere(kip, "table2", [replace(kip.recipe.teachers.network, width=1024)])]

    def table3(self, seed: int) -> list[Run]:
        """List the evaluations of Table I's sets in other architectures."""
        own = recipe(self.profile, *home(self.profile)).teachers.network
        others = [replace(own, name=name) for name in TRANSFERRED[1:]]
        return [
            run
            for base in self.table1(*home(self.profile), seed)
            for run in elsewhere(base, "table3", others)
        ]

    def ablation(self, seed: int) -> list[Run]:
        """List thresholds, readings and controls, without the settings that Table I has already."""
        return [
            self._trajectories(f"epsilon/{rule}-{epsilon:g}", *home(self.profile), pair, seed)
            for pair in ablation_settings(self.profile)
            if pair not in (MTT, PRUNED)
            for rule, epsilon in [pair]
        ]

    def _trajectories(
        self, name: str, data: str, ipc: int, pair: tuple[str, float], seed: int
    ) -> Run:
        run = self._run(name, data, ipc, "ddpp", seed)
        rule, epsilon = pair
        distill = replace(run.recipe.distill, rule=rule, epsilon=epsilon)
        return replace(run, recipe=replace(run.recipe, distill=distill))

    def _run(self, name: str, data: str, ipc: int, method: str, seed: int) -> Run:
        return Run(f"{name}-seed{seed}", seeded(recipe(self.profile, data, ipc, method), seed))


def seeded(recipe: Recipe, seed: int, own_teachers: bool = False) -> Recipe:
    """Give a recipe a seed.

    Teachers have it, too, in the smoke profile, or with own_teachers. Else all seeds share them.
    """
    own = own_teachers or recipe.profile == "smoke"
    teachers = replace(recipe.teachers, seed=seed) if own else recipe.teachers
    return replace(recipe, teachers=teachers, distill=replace(recipe.distill, seed=seed))


def elsewhere(base: Run, experiment: str, networks: Sequence[NetworkConfig]) -> list[Run]:
    """List the evaluations of a run's set in other networks.

    - base: the run that makes the set.
    - experiment: the first part of the new names.
    - networks: one evaluation for each. Its name says in what the network differs from the set's.

    >>> from dataclasses import replace
    >>> from ddpp.experiments import elsewhere, runs
    >>> base = runs("paper")[0]
    >>> own = base.recipe.teachers.network
    >>> elsewhere(base, "deep", [replace(own, depth=4)])[0].name
    'deep/cifar10-ipc10-none-depth4-seed0'
    """
    own = base.recipe.teachers.network
    name, _, seed = base.name.partition("/")[2].rpartition("-seed")
    names = [f"{experiment}/{name}-{_which(network, own)}-seed{seed}" for network in networks]
    return [
        Run(name, base.recipe, base.name, network)
        for name, network in zip(names, networks, strict=True)
    ]


def _which(network: NetworkConfig, own: NetworkConfig) -> str:
    """Say in what a network differs from another one, or its width if it does not differ."""
    found = [re.sub(r"[^\w.-]", "-", str(network.name))] if network.name != own.name else []
    for size in ("width", "depth"):
        if getattr(network, size) != getattr(own, size):
            found.append(f"{size}{getattr(network, size)}")
    return "-".join(found) or f"width{network.width}"


def home(profile: str) -> tuple[str, int]:
    """Return the data set and the images per class of the ablation."""
    return ("cifar10-sample", 1) if profile == "smoke" else ("cifar10", 10)


def ablation_settings(profile: str) -> list[tuple[str, float]]:
    """List the ablation's (rule, epsilon), in the order of its table.

    Magnitude at 0 is none, that is MTT.
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
    """Return the runs whose names match a pattern.

    - found: runs to choose from, see `runs`.
    - only: the pattern, with * for anything; None: all runs.

    Raises Error if no name matches.

    >>> from ddpp.experiments import runs, select
    >>> [run.name for run in select(runs("smoke"), "table1/*-ipc50-signed-seed0")]
    ['table1/cifar10-sample-ipc50-signed-seed0']
    """
    chosen = [run for run in found if only is None or fnmatchcase(run.name, only)]
    if not chosen:
        some = ", ".join(run.name for run in found[:3])
        raise Error(
            f"no run is named like '{only}': names are {some} ...; * stands for anything, --list "
            "shows all"
        )
    return chosen
