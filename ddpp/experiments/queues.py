"""A queue: a committed list of runs in order of value, which `ddpp reproduce --queue` works off."""

import itertools
import re
import tomllib
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from ddpp.evaluating import Protocol
from ddpp.experiments.comparing import in_name, parse_setting
from ddpp.experiments.lists import Run, seeded
from ddpp.experiments.methods import WithSteps
from ddpp.experiments.places import out_of
from ddpp.experiments.recipes import Recipe, recipe
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import of_state

CHOSEN = ("profile", "data", "ipc", "method")  # by which the recipe is looked up
ENTRIES = {  # the entries that are no settings of a Recipe: what they must be, also in words
    **dict.fromkeys(("name", "profile", "data", "method"), (str, "text, in quotes")),
    "ipc": (int, "a whole number"),
    "steps": (int | list[int], "a whole number, or a list of them"),
    "every": (int, "a whole number of steps"),
    "seeds": (list[int], "a list of whole numbers, as [0, 1]"),
    "each": (dict, "a table of lists"),
    "sets": (bool, "true or false"),
}
ABOVE = {  # settings of a method that a [[run]] has as entries of its own: how they are written
    "seed": "write seeds = [0, 1]",
    "ipc": "write one [[run]] for each number, with ipc = 10",  # the recipe depends on it
    "steps": "write steps = [500, 1000]",
    "iterates": "write every = 100, which says how many there are,",
}


def read_queue(path: str | Path) -> list[Run]:
    """Read a queue from a TOML file.

    Each [[run]] has a name and the settings in which it differs from a recipe:

    - profile, data, ipc, method: as in `recipe`.
    - steps: a list of numbers, or one. Each is a run of its own, which resumes from the one before.
      The first resumes from the last one of an earlier [[run]] that has the same name. Of a run
      that resumes from another, the last set is tested, and none is chosen.
    - every: an iterate is kept after so many steps each. Default: as the recipe has it.
    - seeds: a list. Each is a run of its own. Default [0]. In the smoke profile each has teachers
      of its own.
    - each: a table of lists of settings of the method. Each combination is a run of its own. A rule
      may have its epsilon with it, as `signed@0.1`. Seeds, images per class and steps have the
      entries above, and are not in the tables.
    - sets: false stores the reports alone, without the images. Default true.
    - the tables teachers, distill and protocol, and all other settings of a Recipe.

    Runs are in the order of the file, seeds after one another, steps from few to many. Their names
    are NAME-STEPS-seedSEED, or NAME-RULE-SETTING-seedSEED. Raises Error for a file or a setting
    that cannot be read.
    """
    try:
        content = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as e:
        raise Error(f"the queue {path} cannot be read: {e}") from None
    if other := sorted(content.keys() - {"run"}):
        raise Error(f"the queue {path} has {other[0]} outside of a [[run]]: write it into each")
    entries = content.get("run", [])
    if not _fits(entries, list[dict]):
        entries = []
    found: list[Run] = []
    longest: dict[str, Run] = {}  # of each name, without its steps
    for entry in entries:
        found += _runs(entry, path, longest)
    if not found:
        raise Error(f"the queue {path} has no [[run]]: write at least one, with a name")
    names = [run.name for run in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Error(f"the queue {path} has two runs {twice[0]}: rename one of them")
    at_work: dict[Path, Run] = {}
    for run in found:
        other = at_work.setdefault(out_of(run, ""), run)
        if other is not run:
            raise Error(
                f"{other.name} and {run.name} in {path} would work in one file: rename one of them"
            )
    return found


def _runs(entry: dict[str, Any], path: str | Path, longest: dict[str, Run]) -> list[Run]:
    """Return the runs of an entry, and enter the longest of each name."""
    _check_entry(entry, path)
    name = entry["name"]
    base = recipe(**{key: entry[key] for key in CHOSEN if key in entry})
    _check_tables(entry, base.profile, f"{name} in {path}")
    rest = {key: value for key, value in entry.items() if key not in ENTRIES}
    sets = entry.get("sets", True)
    counts = entry.get("steps", [None])
    counts = counts if isinstance(counts, list) else [counts]
    base = _changed(base, _with_steps(rest, counts), f"{name} in {path}")
    combinations = list(itertools.product(*_choices(entry.get("each", {}), f"{name} in {path}")))
    found: list[Run] = []
    for seed, chosen in itertools.product(entry.get("seeds", [0]), combinations):
        settings = {key: value for _, choice in chosen for key, value in choice.items()}
        made = seeded(_changed(base, {"distill": settings}, f"{name} in {path}"), seed)
        full = "".join([name, *(label for label, _ in chosen)])
        before = None if None in counts else longest.get(f"{full}-seed{seed}")
        for count in sorted(counts, key=lambda count: count or 0):
            label = ""
            if count is not None:
                made, label = _changed(made, _at_step(count, entry, path), name), f"-{count}"
            if before and (why := _cannot_go_on(before, made)):
                raise Error(f"{full} in {path} cannot go on with {before.name}: {why}")
            before = Run(f"{full}{label}-seed{seed}", made, continues=before, sets=sets)
            try:
                made.stored_teachers()
            except Error as e:
                raise Error(f"{before.name} in {path} cannot work: {e}") from None
            found.append(before)
        if None not in counts:
            longest[f"{full}-seed{seed}"] = found[-1]
    return found


def _check_entry(entry: dict[str, Any], path: str | Path) -> None:
    """Raise Error for an entry whose own settings, those beside its tables, cannot be read."""
    name = entry.get("name", "")
    if not name or not isinstance(name, str):
        raise Error(f'a [[run]] in {path} has no name: give it one, as name = "mine/first"')
    if not name.isprintable() or {"", ".", ".."} & {*name.split("/")}:
        raise Error(f"the name {name!r} in {path} cannot be one of a file: use letters and digits")
    for key, (kind, what) in ENTRIES.items():
        if key in entry and not _fits(entry[key], kind):
            raise Error(f"{key}, of {name} in {path}, must be {what}")
    for key in ("steps", "seeds"):
        if entry.get(key) == []:
            raise Error(f"{key}, of {name} in {path}, is an empty list")
    if "every" in entry and "steps" not in entry:
        raise Error(f"every, of {name} in {path}, needs steps beside it")


def _check_tables(entry: dict[str, Any], profile: str, where: str) -> None:
    """Raise Error for settings in the tables that other entries of the [[run]] would overwrite."""
    refused = [(table, key) for table in ("distill", "each") for key in ("seed", "ipc", "steps")]
    if "every" in entry:
        refused += [("distill", "iterates"), ("each", "iterates")]
    if profile == "smoke":  # teachers have the seed of their run
        refused.append(("teachers", "seed"))
    for table, key in refused:
        found = entry.get(table)
        if isinstance(found, dict) and key in found:
            raise Error(f"{key}, of {where}, cannot be in {table}: {ABOVE[key]} beside its name")


def _with_steps(settings: dict[str, Any], counts: list) -> dict[str, Any]:
    """Add the most steps to the settings of the method: the default of expand_steps follows."""
    own = settings.get("distill", {})
    if None in counts or not isinstance(own, dict):
        return settings
    return settings | {"distill": own | {"steps": max(counts)}}


def _at_step(count: int, entry: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the settings of the run with so many steps."""
    settings = {"steps": count}
    every = entry.get("every")
    if every is not None:
        if every < 1 or count % every:
            raise Error(
                f"{count} steps of {entry['name']} in {path} are not a multiple of every, which is "
                f"{every}: change one of them"
            )
        settings |= {"iterates": count // every}
    return {"distill": settings}


def _cannot_go_on(before: Run, made: Recipe) -> str:
    """Return why a run cannot resume from one with fewer steps, or an empty text if it can."""
    if not before.sets:
        return "that stores no sets. Give one number of steps, or leave sets out"
    if not getattr(made.distill, "lasting", True):
        return "its iterates depend on the number of steps"
    if cast(WithSteps, made.distill).steps <= cast(WithSteps, before.recipe.distill).steps:
        return "its steps must be more"
    then, now = _before_steps(before.recipe), _before_steps(made)
    return f"it has other settings ({differences(then, now)})" if then != now else ""


def _before_steps(recipe: Recipe) -> dict[str, Any]:
    """All that a set on the way is a function of, but for its step."""
    config = of_state({"config": asdict(recipe.distill)}, lasting=True)["config"]
    return asdict(replace(recipe, repeats=1, protocol=Protocol())) | {"distill": config}


def _choices(each: dict[str, Any], where: str) -> list[list[tuple[str, dict[str, Any]]]]:
    """For each setting that is varied: what each value adds to the name, and to the settings."""
    if not all(isinstance(values, list) and values for values in each.values()):
        raise Error(f"each, of {where}, must have a list of values for each setting")
    if "epsilon" in each and any("@" in str(rule) for rule in each.get("rule", [])):
        raise Error(f"each, of {where}, has epsilon twice: leave it out, or write rules without @")
    return [[_choice(key, value) for value in values] for key, values in each.items()]


def _choice(key: str, value: Any) -> tuple[str, dict[str, Any]]:
    if key != "rule":
        return re.sub(r"[^\w.@-]+", "-", f"-{key}{value}"), {key: value}
    match parse_setting(str(value)):
        case (rule, epsilon):
            return f"-{rule}-{in_name(epsilon)}", {"rule": rule, "epsilon": epsilon}
        case rule:
            return f"-{rule}", {"rule": rule}


def _changed(config: Any, changes: dict[str, Any], where: str) -> Any:
    """Change a config by a table of settings, and of settings of its parts."""
    hints = get_type_hints(type(config))
    names = [f.name for f in fields(config)]
    if unknown := sorted(changes.keys() - {*names}):
        raise Error(f"{where} has an unknown setting, {unknown[0]}: there are {', '.join(names)}")
    values, wrong = {}, ""
    for name, value in changes.items():
        part = getattr(config, name)
        if is_dataclass(part) and isinstance(value, dict):
            values[name] = _changed(part, value, where)
            continue
        values[name] = tuple(value) if isinstance(value, list) else value
        if is_dataclass(part) or not _fits(value, hints[name]):
            wrong = f"{name}, of {where}, cannot be {value!r}: see 'ddpp distill --help' for it"
    try:
        made = replace(config, **values)  # its own sentences say more
    except (TypeError, AttributeError) as e:
        raise Error(wrong or f"the settings of {where} cannot be used ({e})") from None
    if wrong:
        raise Error(wrong)
    return made


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value of TOML is of a type, as it is annotated."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:  # of one or more: a text stands for itself
        values = value if isinstance(value, list) else [value]
        return all(_fits(each, parts[0]) for each in values)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else origin or hint)
