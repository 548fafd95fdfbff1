"""What the caller can mend: one exception, whose message is a sentence that says how."""

import difflib
from collections.abc import Iterable, Iterator


class Error(ValueError):
    """Bad input, a damaged file or a run that cannot go on; the message says what is wrong and what
    to do.
    """


def choose(kind: str, name: str, options: Iterable[str]) -> str:
    """`name` if it is one of `options`; otherwise an Error that offers the nearest right name."""
    options = list(options)
    if name in options:
        return name
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise Error(f"unknown {kind} '{name}': {hint}the choices are {', '.join(options)}")


def differences(then: dict, now: dict) -> str:
    """What differs between two nested dictionaries of settings, in words: at most three of them, by
    their path.
    """
    before, after = dict(_flat(then)), dict(_flat(now))
    found = []
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path):
            *_, group, name = "", *path
            what = f"the {name} has changed" if group == "custom" else _other(path, before, after)
            found.append(what)
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _flat(settings: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _flat(value, (*path, key))
    else:
        yield path, settings


def _other(path: tuple[str, ...], before: dict, after: dict) -> str:
    show = lambda found: repr(found[path])[:60] if path in found else "not there"
    return f"{'.'.join(path)} was {show(before)} and is {show(after)}"
