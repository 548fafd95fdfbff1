"""A queue: a committed list of runs in order of value, which `ddpp reproduce --queue` works off."""

import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ddpp.experiments.lists import Run
from ddpp.experiments.recipes import recipe
from ddpp.foundation.errors import Error

OWN = ("name", "profile", "data", "ipc", "method", "steps", "seeds")


def read_queue(path: str | Path) -> list[Run]:
    """Read a queue from a TOML file.

    Each [[run]] has a name and the settings in which it differs from a recipe:

    - profile, data, ipc, method: as in `recipe`.
    - steps: a list of numbers, or one; each is a run of its own, which goes on with the one before.
    - seeds: a list; each is a run of its own. Default [0].
    - the tables teachers, distill and protocol, and all other settings of a Recipe.

    Runs are in the order of the file, seeds after one another, steps from few to many. Their names
    are NAME-STEPS-seedSEED. Raises Error for a file or a setting that cannot be read.
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
    base = recipe(**chosen)
    rest = {key: value for key, value in entry.items() if key not in OWN}
    base = _changed(base, rest, f"{name} in {path}")
    steps = entry.get("steps")
    counts = steps if isinstance(steps, list) else [steps]
    found: list[Run] = []
    for seed in entry.get("seeds", [0]):
        before = None
        for count in sorted(counts, key=lambda count: count or 0):
            settings = {"seed": seed} | ({} if count is None else {"steps": count})
            label = "" if count is None else f"-{count}"
            made = replace(base, distill=replace(base.distill, **settings))
            found.append(Run(f"{name}{label}-seed{seed}", made, continues=before))
            before = found[-1].name
    return found


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
