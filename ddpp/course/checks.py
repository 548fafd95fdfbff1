"""What the checks of the assignments are made of: calling a student's function, and saying what is wrong with it.

A check is a function that takes what the student wrote, prints one line where it is right and raises a Mistake where it
is not. It looks at what a function does, never at its text or its helpers.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor


class Mistake(AssertionError):
    """What is wrong with an answer, in terms of the method."""


def good(text: str) -> None:
    """Say that a check was passed, and what that shows."""
    print(f"✓ {text}")


def ask(function: Callable, *arguments, forbid: tuple[ModuleType | Callable, ...] = ()):
    """function(*arguments), with what can go wrong in any task put in words.

    forbid: rooms of ddpp that have the answer, or single functions of them; to call one is a Mistake. Raises Mistake as
    well where the function is missing, not written yet, stops with an error, returns nothing, or changes its arguments.
    """
    if not callable(function):
        raise Mistake(
            f"a function was expected here, not {describe(function)}: has its name been used for something else?"
        )
    name = getattr(function, "__name__", "the function")
    before = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
    given = f"called with {', '.join(map(describe, arguments))}" if arguments else "called without arguments"
    try:
        with _watching(forbid) as called:
            result = function(*arguments)
    except Mistake:
        raise
    except NotImplementedError:
        raise Mistake(f"`{name}` is not written yet: replace `raise NotImplementedError()` by your code") from None
    except Exception as e:
        where = _line_of(e, function)
        raise Mistake(f"`{name}` stopped{where} with {type(e).__name__}: {e} (it was {given})") from e
    if called:
        raise Mistake(f"`{name}` calls `{called[0]}`: the task is to write it yourself")
    for now, then in zip(arguments, before, strict=True):
        if isinstance(now, Tensor) and not torch.equal(now.detach(), then):
            raise Mistake(
                f"`{name}` changes a tensor that it is given: make a new one, without operations like `-=` or `add_` "
                "(`detach()` is no copy, `clone()` is one)"
            )
    if result is None:
        raise Mistake(f"`{name}` returns nothing: end it with `return ...`")
    return result


def tensor(value, shape: tuple[int, ...] | None, name: str) -> Tensor:
    """`value` if it is a tensor of this shape (None: any) and free of NaN and infinity; otherwise a Mistake."""
    if not isinstance(value, Tensor):
        raise Mistake(f"`{name}` should return a tensor, not {describe(value)}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise Mistake(f"`{name}` should return shape {tuple(shape)}, not {tuple(value.shape)}")
    if value.layout != torch.strided or value.is_meta:
        raise Mistake(f"`{name}` should return an ordinary tensor, with all its numbers")
    if value.is_floating_point() and not value.isfinite().all():
        raise Mistake(f"`{name}` returns NaN or infinity: where does it divide by zero, or take a root of one?")
    return value


def close(value, right, tolerance: float = 1e-4) -> bool:
    """Equal up to rounding, relative to the largest entry of `right`."""
    value, right = torch.as_tensor(value).detach().double(), torch.as_tensor(right).detach().double()
    if value.shape != right.shape:
        return False
    return bool((value - right).abs().max() <= tolerance * right.abs().max().clamp(min=1e-12))


def compare(value, right, wrong: dict[str, object], otherwise: str, tolerance: float = 1e-4) -> None:
    """A Mistake unless value is right: the sentence of the first wrong answer that it equals, or `otherwise`.

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
    return "None" if value is None else f"a {type(value).__name__}"


@contextlib.contextmanager
def _watching(forbidden: tuple[ModuleType | Callable, ...]) -> Iterator[list[str]]:
    """Collects the names of these functions, and of the functions of these modules, that the block calls."""
    names = {x.__name__ for x in forbidden if isinstance(x, ModuleType)}
    codes, called = {x.__code__ for x in forbidden if not isinstance(x, ModuleType)}, []

    def see(frame, event, _):
        if event == "call" and (frame.f_globals.get("__name__") in names or frame.f_code in codes):
            called.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")

    before = sys.getprofile()
    if forbidden:
        sys.setprofile(see)
    try:
        yield called
    finally:
        sys.setprofile(before)


def _line_of(error: Exception, function: Callable) -> str:
    """Where in the student's function an error came up, as ' in its line 3'."""
    code, trace = getattr(function, "__code__", None), error.__traceback__
    while trace:
        if trace.tb_frame.f_code is code:
            return f" in its line {trace.tb_lineno - code.co_firstlineno + 1}"
        trace = trace.tb_next
    return ""
