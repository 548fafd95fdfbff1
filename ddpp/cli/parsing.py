"""From the words of a command line to the call that they ask for."""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import zip_longest
from typing import Annotated, Any

import tyro
from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from ddpp.cli.commands import Command, compare, evaluate, remember
from ddpp.cli.options import NAMES, OWN_NAME, listing
from ddpp.data.augmentation import OPERATIONS
from ddpp.distilling import DistillConfig
from ddpp.evaluating import Protocol
from ddpp.experiments.recipes import Recipe, recipe
from ddpp.foundation.errors import Error
from ddpp.studies.remembering import for_tasks


def parse(command: Command, words: Sequence[str], prog: str) -> Callable[[], int | None]:
    """The call that the words of a command line ask for, not yet made.

    Of the commands with a recipe the words are read in two passes. The first reads only profile,
    data, ipc and method, which decide the types and defaults of all other options. The second reads
    everything.
    """
    registry, base = ConstructorRegistry(), None
    words = respell(words, command)
    if "recipe" in inspect.signature(command).parameters:
        asked = [word for word in words if word not in ("-h", "--help")]
        base, _ = tyro.cli(recipe, args=asked, prog=prog, return_unknown_args=True)
        if isinstance(base.distill, DistillConfig):  # each rank matches a trajectory
            ranks = int(os.environ.get("WORLD_SIZE", 1))
            base = replace(base, distill=replace(base.distill, trajectories=ranks))
        if command is remember:
            base = for_tasks(base)
    registry.struct_rule(functools.partial(_settings, base))

    @functools.wraps(command)
    def later(*args: Any, **options: Any) -> Callable[[], int | None]:
        return functools.partial(command, *args, **options)

    try:
        return tyro.cli(later, args=words, prog=prog, registry=registry)
    except _Refused as e:
        raise e.why from None


class _Refused(Exception):
    """Carries an Error of a config past tyro, which puts a box around every ValueError."""

    def __init__(self, why: Error):
        self.why = why


def _settings(base: Recipe | None, info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's rule for a dataclass, with names listed, and `base` as the default of a recipe."""
    if not is_dataclass(info.type) or _settings in info.markers:
        return None  # leave it to tyro's own rule
    default = base if base and info.type is Recipe else info.default
    info = replace(info, default=default, markers=(*info.markers, _settings))
    spec = ConstructorRegistry.get_struct_spec(info)
    assert isinstance(spec, StructConstructorSpec)
    listed = []
    for each in spec.fields:
        if each.name == "distill":  # of the method's own type; its options have no prefix
            each = replace(each, type=Annotated[type(each.default), arg(name="")])
        elif each.name in NAMES:
            own = each.name in ("rule", "name")  # in Python, functions as well
            names = [*NAMES[each.name], *([OWN_NAME] if own else [])]
            each = replace(each, type=Annotated[str if own else each.type, listing(names)])
        elif each.name == "augment" and each.type is not bool:
            some = arg(metavar="{True,False," + ",".join(OPERATIONS) + "} ...")
            each = replace(each, type=Annotated[bool | tuple[str, ...], some])
        if is_dataclass(each.type):  # without the example in its docstring
            each = replace(each, helptext=str(each.type.__doc__).splitlines()[0])
        listed.append(each)

    @functools.wraps(spec.instantiate)
    def instantiate(*args: Any, **options: Any) -> Any:
        try:
            return spec.instantiate(*args, **options)
        except Error as e:
            raise _Refused(e) from e

    return replace(spec, fields=tuple(listed), instantiate=instantiate)


def respell(words: Sequence[str], command: Command) -> list[str]:
    """Give options their present spelling, and name it.

    Those of `evaluate` had no prefix once, and the augmentation could only be switched.
    """
    old = {f"--{no}{f.name.replace('_', '-')}" for f in fields(Protocol) for no in ("", "no-")}
    switch = re.compile(r"--(protocol|teachers)\.(no-)?augment")
    new, told = [], {}
    for word, following in zip_longest(words, words[1:], fillvalue="--"):
        option, equals, value = word.partition("=")
        known = option.replace("_", "-")
        if command is evaluate and known in old:
            known = told[option] = f"--protocol.{known[2:]}"
        found = switch.fullmatch(known)
        if found and not equals and following.startswith("--"):
            new += [f"--{found[1]}.augment", str(not found[2])]
            told[option] = " ".join(new[-2:])
        else:
            new.append(told.get(option, option) + equals + value)
    if command is compare:
        new = _gathered(new)
    if told:
        say("; ".join(f"{option} is spelled {spelling} now" for option, spelling in told.items()))
    return new


def _gathered(words: Sequence[str]) -> list[str]:
    """Gather each --rule NAME of `compare` into one --rules NAME NAME ..."""
    rules, others, wanted = [], [], False
    for word in words:
        if wanted:
            rules, wanted = [*rules, word], False
        elif word == "--rule":
            wanted = True
        elif word.startswith("--rule="):
            rules.append(word.partition("=")[2])
        else:
            others.append(word)
    if sum(word.partition("=")[0] == "--rules" for word in others) + bool(rules) > 1:
        raise Error("rules are given twice: name all after one --rules, or each after a --rule")
    # a last --rule without a name is refused as it stands
    return [*others, *(["--rules", *rules] if rules else []), *(["--rule"] if wanted else [])]


def say(line: str) -> None:
    """Print a line on stderr, as ddpp's."""
    print(f"ddpp: {line}", file=sys.stderr)
