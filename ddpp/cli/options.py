"""What options look like: the names that they take, and the ones that commands share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from ddpp.baselines.ntk import KERNELS
from ddpp.data import STARTS
from ddpp.data.sources import SHA256
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import PROFILES, Recipe
from ddpp.networks import ARCHITECTURES
from ddpp.pruning import RULES
from ddpp.unrolling import ENGINES


def listing(names: Iterable[str]) -> Any:
    """Let the help of an option list the names that it takes."""
    return arg(metavar="{" + ",".join(names) + "}")


DATA = (*SHA256, "FILE.npz")
OWN_NAME = "PACKAGE.MODULE:NAME"
NAMES = {  # of the settings that take one
    **{"profile": PROFILES, "data": DATA, "method": METHODS, "rule": RULES},
    **{"engine": ("auto", *ENGINES), "kernel": KERNELS, "init": STARTS},
    "name": ARCHITECTURES,  # of a network
}
Settings = Annotated[Recipe, arg(name="")]  # its options have no prefix
Root = Annotated[Path, arg(help="folder of cifar10 and cifar100, which are downloaded if missing")]
Device = Annotated[str | None, arg(help="cpu, cuda or cuda:N; None: the GPU if there is one")]
