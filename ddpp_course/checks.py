"""What the checks of the assignments are made of: calling a student's function, and saying what is
wrong with it.

A check is a function that takes what the student wrote, prints one line where it is right and
raises a Mistake where it is not. It looks at what a function does, never at its text or its
helpers.
"""

import operator
from collections.abc import Callable, Mapping
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Parameter

from ddpp_course.watch import known, unwatched, watching


class Mistake(AssertionError):
    """What is wrong with an answer, in terms of the method."""


def good(text: str) -> None:
    """Say that a check was passed, and what that shows."""
    print(f"✓ {text}")


def ask(function: Callable, *arguments, forbid: tuple[ModuleType | Callable, ...] = ()):
    """function(*arguments), with what can go wrong in any task put in words.

    forbid: rooms of ddpp that have the answer, or single functions of them; to call one is a
    Mistake. Raises Mistake as well where the function is missing, not written yet, stops with an
    error, returns nothing, or changes its arguments.
    """
    if not callable(function):
        raise Mistake(
            f"a function was expected here, not {describe(function)}: has its name been used for "
            "something else?"
        )
    name = str(getattr(function, "__name__", "the function"))[:60]
    before = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
    given = (
        f"called with {', '.join(map(describe, arguments))}"
        if arguments
        else "called without arguments"
    )
    result = error = None
    with watching(forbid, arguments) as called:
        try:
            result = function(*arguments)
        except Exception as e:
            error = e
    if called:
        raise Mistake(f"`{name}` calls `{called[0]}`: the task is to write it yourself")
    if left := unwatched():
        raise Mistake(left)
    if isinstance(error, Mistake):
        raise error
    if isinstance(error, NotImplementedError):
        raise Mistake(
            f"`{name}` is not written yet: replace `raise NotImplementedError()` by your code"
        )
    if error:
        raise Mistake(
            f"`{name}` stopped{_line_of(error, function)} with {told(error)} (it was {given})"
        ) from error
    for now, then in zip(arguments, before, strict=True):
        if isinstance(now, Tensor) and not torch.equal(now.detach(), then):
            raise Mistake(
                f"`{name}` changes a tensor that it is given: make a new one, without operations "
                "like `-=` or `add_` "
                "(`detach()` is no copy, `clone()` is one)"
            )
    if result is None:
        raise Mistake(f"`{name}` returns nothing: end it with `return ...`")
    return plain(result)


def plain(value):
    """A value without what a class of the student's adds to it: a list, a number or a tensor that
    is just that.

    A Mistake where nothing is left then.
    """
    kind = type(value)
    if issubclass(kind, Tensor):
        return value if kind in (Tensor, Parameter) else _as_tensor(value)
    if issubclass(kind, dict):
        items = [(plain(key), plain(item)) for key, item in dict.items(value)]
        same = kind is dict and all(item is value[key] for key, item in items)
        return value if same else dict(items)
    for base in (list, tuple):
        if issubclass(kind, base):
            items = [plain(item) for item in base.__iter__(value)]
            same = kind is base and all(map(operator.is_, items, value))
            return value if same else base(items)
    for base, exact in ((int, int.__int__), (float, float.__float__), (str, str.__str__)):
        if issubclass(kind, base) and kind not in (bool, base):
            return exact(value)
    if not known(kind):
        raise Mistake(
            f"{describe(value)} says itself what it equals: return a tensor, a number or a list"
        )
    return value


def _as_tensor(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def told(error: BaseException, most: int = 300, name: bool = True) -> str:
    """An error in one line that is not too long, whatever its class does."""
    try:
        text = " ".join(str(error)[: 2 * most].split())
    except Exception:
        text = ""
    text = f"{type(error).__name__[:60]}{': ' if text else ''}{text}" if name else text
    return text if len(text) <= most else f"{text[:most]} ..."


def tensor(value, shape: tuple[int, ...] | None, name: str) -> Tensor:
    """`value` if it is a tensor of this shape (None: any) and free of NaN and infinity; otherwise a
    Mistake.
    """
    if not isinstance(value, Tensor):
        raise Mistake(f"`{name}` should return a tensor, not {describe(value)}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise Mistake(f"`{name}` should return shape {tuple(shape)}, not {tuple(value.shape)}")
    if value.layout != torch.strided or value.is_meta:
        raise Mistake(f"`{name}` should return an ordinary tensor, with all its numbers")
    if value.is_floating_point() and not value.isfinite().all():
        raise Mistake(
            f"`{name}` returns NaN or infinity: where does it divide by zero, or take a root of "
            "one?"
        )
    return value


def close(value, right, tolerance: float = 1e-4) -> bool:
    """Equal up to rounding, relative to the largest entry of `right`."""
    value, right = (
        torch.as_tensor(value).detach().double(),
        torch.as_tensor(right).detach().double(),
    )
    if value.shape != right.shape:
        return False
    return bool((value - right).abs().max() <= tolerance * right.abs().max().clamp(min=1e-12))


def compare(
    value, right, wrong: Mapping[str, object], otherwise: str, tolerance: float = 1e-4
) -> None:
    """A Mistake unless value is right: the sentence of the first wrong answer that it equals, or
    `otherwise`.

    wrong: what is said -> the answer that this mistake would give.
    """
    if close(value, right, tolerance):
        return
    for sentence, answer in wrong.items():
        if close(value, answer, tolerance):
            raise Mistake(sentence)
    raise Mistake(otherwise)


def describe(value) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (int, float, str, bool)) and len(repr(value)) < 40:
        return repr(value)
    return "None" if value is None else f"a {type(value).__name__[:60]}"


def _line_of(error: Exception, function: Callable) -> str:
    """Where in the student's function an error came up, as ' in its line 3'."""
    code, trace = getattr(function, "__code__", None), error.__traceback__
    while code and trace:
        if trace.tb_frame.f_code is code:
            return f" in its line {trace.tb_lineno - code.co_firstlineno + 1}"
        trace = trace.tb_next
    return ""
