"""A queue: a committed list of runs in order of value, which `ddpp reproduce --queue` works off."""

import itertools
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ddpp.experiments.comparing import parse_setting
from ddpp.experiments.lists import Run, seeded
from ddpp.experiments.recipes import recipe
from ddpp.foundation.errors import Error

OWN = ("name", "profile", "data", "ipc", "method", "steps", "seeds", "each", "sets")


def read_queue(path: str | Path) -> list[Run]:
    """Read a queue from a TOML file.

    Each [[run]] has a name and the settings in which it differs from a recipe:

    - profile, data, ipc, method: as in `recipe`.
    - steps: a list of numbers, or one. Each is a run of its own, which resumes from the one before.
    - seeds: a list. Each is a run of its own. Default [0]. In the smoke profile each has teachers
      of its own.
    - each: a table of lists of settings of the method. Each combination is a run of its own. A rule
      may have its epsilon with it, as `signed@0.1`.
    - sets: false stores the reports alone, without the images. Default true.
    - the tables teachers, distill and protocol, and all other settings of a Recipe.

    Runs are in the order of the file, seeds after one another, steps from few to many. Their names
    are NAME-STEPS-seedSEED, or NAME-RULE-SETTING-seedSEED. Raises Error for a file or a setting
    that cannot be read.
    """
    try:
        entries = tomllib.loads(Path(path).read_text()).get("run", [])
    except (OSError, ValueError) as e:
        raise Error(f"the queue {path} cannot be read: {e}") from None
    found = [run for entry in entries for run in _runs(entry, path)]
    names = [run.name for run in found]
    if not names or len(set(names)) < len(names):
        raise Error(f"the queue {path} has no [[run]], or two of one name")
    return found


def _runs(entry: dict[str, Any], path: str | Path) -> list[Run]:
    name = str(entry.get("name", ""))
    if not name:
        raise Error(f"a [[run]] in {path} has no name")
    chosen = {key: entry[key] for key in ("profile", "data", "ipc", "method") if key in entry}
    if not isinstance(sets := entry.get("sets", True), bool):
        raise Error(f"sets, of {name} in {path}, must be true or false")
    base = recipe(**chosen)
    rest = {key: value for key, value in entry.items() if key not in OWN}
    base = _changed(base, rest, f"{name} in {path}")
    steps = entry.get("steps")
    counts = steps if isinstance(steps, list) else [steps]
    if len(counts) > 1 and not sets:
        raise Error(
            f"{name} in {path} stores no sets, and longer runs go on with those of shorter ones: "
            "give one number of steps, or leave sets out"
        )
    combinations = list(itertools.product(*_choices(entry.get("each", {}), f"{name} in {path}")))
    found: list[Run] = []
    for seed, chosen in itertools.product(entry.get("seeds", [0]), combinations):
        settings = {key: value for _, choice in chosen for key, value in choice.items()}
        made = seeded(_changed(base, {"distill": settings}, f"{name} in {path}"), seed)
        full, before = "".join([name, *(label for label, _ in chosen)]), None
        for count in sorted(counts, key=lambda count: count or 0):
            label = ""
            if count is not None:
                made, label = _changed(made, {"distill": {"steps": count}}, name), f"-{count}"
            found.append(Run(f"{full}{label}-seed{seed}", made, continues=before, sets=sets))
            before = found[-1].name
    return found


def _choices(each: dict[str, Any], where: str) -> list[list[tuple[str, dict[str, Any]]]]:
    """For each setting that is varied: what each value adds to the name, and to the settings."""
    if not all(isinstance(values, list) and values for values in each.values()):
        raise Error(f"each, of {where}, must have a list of values for each setting")
    return [[_choice(key, value) for value in values] for key, values in each.items()]


def _choice(key: str, value: Any) -> tuple[str, dict[str, Any]]:
    if key != "rule":
        return f"-{key}{value}", {key: value}
    match parse_setting(str(value)):
        case (rule, epsilon):
            return f"-{rule}-{epsilon:g}", {"rule": rule, "epsilon": epsilon}
        case rule:
            return f"-{rule}", {"rule": rule}


def _changed(config: Any, changes: dict[str, Any], where: str) -> Any:
    """Change a config by a table of settings, and of settings of its parts."""
    names = {f.name for f in fields(config)}
    if unknown := sorted(changes.keys() - names):
        raise Error(f"{where} has an unknown setting, {unknown[0]}: there are {', '.join(names)}")
    values = {}
    for name, value in changes.items():
        part = getattr(config, name)
        if is_dataclass(part) and isinstance(value, dict):
            value = _changed(part, value, where)
        values[name] = tuple(value) if isinstance(value, list) else value
    return replace(config, **values)
