"""What the caller can mend: one exception, whose message is a sentence that says how."""

import difflib
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    SupportsIndex,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

if TYPE_CHECKING:  # it is nowhere else
    from _typeshed import DataclassInstance


class Error(ValueError):
    """Bad input, a damaged file or a run that cannot continue. The message says what is wrong, and
    what to do.
    """


def choose(kind: str, name: object, options: Iterable[str]) -> str:
    """`name` if it is one of `options`, otherwise an Error that offers the nearest right name."""
    options = list(options)
    if name in options:
        return str(name)
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise Error(f"unknown {kind} '{name}': {hint}the choices are {', '.join(options)}")


@dataclass(frozen=True)
class Bound:
    """What a number of a config must be: at least `least`, above `above`, below `below`."""

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf

    def broken_by(self, value: float) -> bool:
        return not (value >= self.least and self.above < value < self.below)

    def __str__(self) -> str:
        if self.above == 0:
            return "positive"
        below = f" and below {self.below:g}" if self.below < math.inf else ""
        return f"at least {self.least:g}{below}"


Count = Annotated[int, Bound(least=1)]
Whole = Annotated[int, Bound(least=0)]
Positive = Annotated[float, Bound(above=0)]
NotNegative = Annotated[float, Bound(least=0)]
Share = Annotated[float, Bound(least=0, below=1)]


def check_bounds(config: "DataclassInstance", whose: str = "") -> None:
    """Raise an Error for the first number of a config that its annotation excludes; NaN and
    infinity are always excluded. NumPy's numbers become Python's, which files can hold, also in a
    list of numbers. A 1 becomes 1.0 where that is meant, so that both name one run.

    Call it in `__post_init__`: then no config with such a number exists.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        hint, value = hints[field.name], getattr(config, field.name)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(config, field.name, value)
        if get_origin(hint) is tuple and get_args(hint)[0] in (int, float):
            kind = get_args(hint)[0]
            numbers = _as_numbers(value, kind, f"{whose}{field.name}")
            object.__setattr__(config, field.name, numbers)
            continue
        if hint is bool and not isinstance(value, bool):
            raise Error(f"{whose}{field.name} is {value!r}: it must be True or False")
        bound, whole = _bound(hint), _is_whole(hint)
        if isinstance(value, float) and not (bound or math.isfinite(value)):
            raise Error(f"{whose}{field.name} is {value}: it must be a finite number")
        optional = type(None) in get_args(hint)
        if not (bound or whole) or (value is None and optional):
            continue
        must = f"it must be {'a whole number' if whole else 'a number'}"
        must += f", {bound}" if bound else ""
        if not isinstance(value, Real):
            raise Error(f"{whose}{field.name} is {value!r}: {must}")
        if whole and math.isfinite(value) and not isinstance(value, Integral):
            raise Error(f"{whose}{field.name} is {value}: {must}")
        if bound and bound.broken_by(float(value)):
            number = "" if math.isfinite(value) else "a finite number, "
            raise Error(f"{whose}{field.name} is {value}: it must be {number}{bound}")
        if not whole:
            object.__setattr__(config, field.name, float(value))


def _as_numbers(values: Any, kind: type, what: str) -> tuple:
    """Numbers as a tuple of Python's, or an Error."""
    try:
        if isinstance(values, str):
            raise TypeError
        numbers = tuple(as_whole(one, what) if kind is int else float(one) for one in values)
        if all(map(math.isfinite, numbers)):
            return numbers
    except (TypeError, ValueError):  # Error is a ValueError
        pass
    raise Error(
        f"{what} is {values!r}: it must be a list of {'whole' if kind is int else 'finite'} numbers"
    )


def _bound(hint: object) -> Bound | None:
    """The bound in an annotation, also in one like `Count | None`."""
    for part in get_args(hint):
        if isinstance(part, Bound):
            return part
        if found := _bound(part):
            return found
    return None


def _is_whole(hint: object) -> bool:
    """Whether an annotation, such as `Count | None`, is of whole numbers."""
    return hint is int or any(_is_whole(part) for part in get_args(hint))


def as_whole(value: object, what: str) -> int:
    """`value` as a Python integer, also if it is NumPy's. Raises Error for all but whole numbers.

    - what: it is, for the message.
    """
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError:
        raise Error(f"{what} is {value!r}: it must be a whole number") from None


def as_texts(values: object, what: str) -> tuple[str, ...]:
    """A list of texts as a tuple, from a single text or None, too. Raises Error for all else.

    - what: it is, for the message.
    """
    if values is None or isinstance(values, str):
        return () if values is None else (values,)
    found = tuple(values) if isinstance(values, Iterable) else (values,)
    if not all(isinstance(one, str) for one in found):
        raise Error(f"{what} is {values!r}: it must be a list of texts")
    return cast(tuple[str, ...], found)


def first_line(error: Exception) -> str:
    """The kind of an exception, and the first line of its message, to be quoted."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def described(value: Any) -> str:
    """What a user brought, in few words: a tensor or an array by its type and shape, a list by its
    length.
    """
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = "an array of " if isinstance(value, np.ndarray) else ""
        return f"{array}{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of length {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def check_kind(what: str, value: object, kind: type) -> None:
    """Raise an Error for an argument that is of another class than ddpp's.

    - what: it is, for the message.
    """
    if not isinstance(value, kind):
        raise Error(f"{what} is of the type {type(value).__name__}: give a ddpp.{kind.__name__}")


def differences(then: dict, now: dict) -> str:
    """What differs between two nested dictionaries of settings, in words: at most three of them, by
    their path.
    """
    before, after = dict(_flat(then)), dict(_flat(now))
    texts = []
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path):
            *_, group, name = "", *path
            what = f"the {name} has changed" if group == "custom" else _other(path, before, after)
            texts.append(what)
    found = list(dict.fromkeys(texts))  # a file may say one thing in two places
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
