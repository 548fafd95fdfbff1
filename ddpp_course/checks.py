"""What the checks of the assignments are made of: call a student's function, say what is wrong.

A check is a function that takes what the student wrote, prints one line where it is right and
raises a Mistake where it is not. It looks at what a function does, never at its text or its
helpers.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from ddpp_course import messages, mistakes
from ddpp_course.watch import known, unwatched, watching


class Mistake(AssertionError):
    """What is wrong with an answer, in terms of the method."""


class Checks:
    """What the checks of one assignment say, and the mistakes that they recognise."""

    def __init__(self, name: str):
        self.name, self._mistakes = name, mistakes.ready(name)

    def say(self, key: str, /, **words) -> str:
        """Return a message of this assignment."""
        return messages.say(self.name, key, **words)

    def wrong(self, key: str, /, **words) -> Mistake:
        """Return a Mistake with a message of this assignment."""
        return Mistake(self.say(key, **words))

    def good(self, key: str, /, **words) -> None:
        """Print that a check was passed, and what that shows."""
        good(self.say(key, **words))

    def compare(
        self,
        place: str,
        value,
        right,
        run: Callable[[SimpleNamespace], object],
        otherwise: str,
        tolerance: float = 1e-4,
        /,
        **words,
    ) -> None:
        """Raise a Mistake unless value is right.

        It has the message of the first mistake of `place` that gives the same value, or of
        `otherwise`.

        - place: which mistakes to try, see mistakes.py.
        - value: what the student's function gave.
        - right: what it should give.
        - run: takes functions with a mistake, and returns what they give instead of value.
        - otherwise: the key of the message for any other wrong value.
        - tolerance: relative to the largest entry of right.
        - words: what to put in the message.
        """
        if close(value, right, tolerance):
            return
        for message, functions in self._mistakes.get(place, ()):
            if _gives(functions, run, value, tolerance):
                raise self.wrong(message, **words)
        raise self.wrong(otherwise, **words)


def _gives(functions: SimpleNamespace, run: Callable, value, tolerance: float) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            return close(value, run(functions), tolerance)
    except Exception:  # a mistake may stop on some inputs
        return False


def _wrong(key: str, /, **words) -> Mistake:
    return Mistake(messages.say("any", key, **words))


def good(text: str) -> None:
    """Print that a check was passed, and what that shows."""
    print(f"✓ {text}")


def ask(function: Callable, *arguments, forbid: tuple[ModuleType | Callable, ...] = ()):
    """Call a student's function, and put in words what can go wrong in any task.

    - function, arguments: what is called, and with what.
    - forbid: modules of ddpp that have the answer, or single functions of them. Calling one is a
      Mistake.

    Returns its result (see `plain`). Raises Mistake, too, where the function is missing, is not
    written yet, stops with an error, returns nothing, or changes its arguments.
    """
    return plain(_call(function, [arguments], forbid)[0])


def ask_each(function: Callable, calls: Sequence[tuple]) -> list:
    """Call a student's function several times, each as `ask` does, and copy what it returns.

    What it has left behind is looked for once, after the last call: that takes ten milliseconds.
    Results are copied, as a function may return one and the same tensor, filled anew in each call.

    - calls: the arguments of each call.
    """
    return [plain(result) for result in _call(function, calls, (), _copied)]


def _call(
    function: Callable,
    calls: Sequence[tuple],
    forbid: tuple[ModuleType | Callable, ...],
    kept: Callable = lambda result: result,
) -> list:
    """Call a student's function with the arguments of each call. See `ask` for what it raises."""
    if not callable(function):
        raise _wrong("function", found=describe(function))
    name = str(getattr(function, "__name__", "the function"))[:60]
    given = [a for arguments in calls for a in arguments]
    before = [a.detach().clone() if isinstance(a, Tensor) else a for a in given]
    needed = [isinstance(a, Tensor) and a.requires_grad for a in given]
    results, arguments, error = [], (), None
    with watching(forbid, tuple(given)) as called:
        try:
            for arguments in calls:
                results.append(kept(function(*arguments)))
        except Exception as e:
            error = e
    if called:
        raise _wrong("own", name=name, called=called[0])
    if left := unwatched():
        raise Mistake(left)
    if isinstance(error, Mistake):
        raise error
    if isinstance(error, NotImplementedError):
        raise _wrong("unwritten", name=name)
    if error:
        shown = ", ".join(map(describe, arguments))
        shown = messages.say("any", "given" if arguments else "given_nothing", arguments=shown)
        line = _line_of(error, function)
        raise _wrong("stopped", name=name, line=line, error=told(error), given=shown) from error
    for now, then, need in zip(given, before, needed, strict=True):
        if isinstance(now, Tensor) and not torch.equal(now.detach(), then):
            raise _wrong("changed", name=name)
        if isinstance(now, Tensor) and now.requires_grad != need:
            raise _wrong("changed_gradient", name=name)
    if any(result is None for result in results):
        raise _wrong("nothing", name=name)
    return results


def _copied(result):
    """Copy the tensors of a result, also those in a list or tuple."""
    if type(result) is Tensor:
        return result.detach().clone()
    return type(result)(map(_copied, result)) if type(result) in (list, tuple) else result


def plain(value):
    """Return a value without what a student's class adds to it: a plain list, number or tensor.

    Raises Mistake where nothing is left then.
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
        raise _wrong("equality", found=describe(value))
    return value


def _as_tensor(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def told(error: BaseException, most: int = 300, name: bool = True) -> str:
    """Return an error as one line that is not too long, whatever its class does."""
    try:
        text = " ".join(str(error)[: 2 * most].split())
    except Exception:
        text = ""
    text = f"{type(error).__name__[:60]}{': ' if text else ''}{text}" if name else text
    return text if len(text) <= most else f"{text[:most]} ..."


def tensor(value, shape: tuple[int, ...] | None, name: str) -> Tensor:
    """Return `value` if it is a tensor of this shape, free of NaN and infinity; else raise Mistake.

    - shape: None for any.
    - name: of the value, for the message.
    """
    if not isinstance(value, Tensor):
        raise _wrong("tensor", name=name, found=describe(value))
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise _wrong("shape", name=name, right=tuple(shape), found=tuple(value.shape))
    if value.layout != torch.strided or value.is_meta:
        raise _wrong("ordinary", name=name)
    if value.is_floating_point() and not value.isfinite().all():
        raise _wrong("finite", name=name)
    return value


def close(value, right, tolerance: float = 1e-4) -> bool:
    """Return whether values are equal up to rounding, relative to the largest entry of `right`.

    NumPy compares: a submission can replace the kernels of torch, and they cannot be put back.
    """
    value, right = (np.asarray(_numbers(x)) for x in (value, right))
    if value.shape != right.shape or value.dtype.kind in "SU":
        return False
    value, right = value.astype(complex), right.astype(complex)
    with np.errstate(all="ignore"):
        most = tolerance * np.maximum(np.abs(right).max(), 1e-12)
        return bool(np.abs(value - right).max() <= most)


def _numbers(value):
    """Return tensors, also in lists, as Python's numbers."""
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value


def describe(value) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Tensor):
        return messages.say("any", "a_tensor", shape=tuple(value.shape))
    if isinstance(value, (int, float, str, bool)) and len(repr(value)) < 40:
        return repr(value)
    if value is None:
        return "None"
    return messages.say("any", "a_value", kind=type(value).__name__[:60])


def _line_of(error: Exception, function: Callable) -> str:
    """Return where in the student's function an error was raised, as ' in its line 3'."""
    code, trace = getattr(function, "__code__", None), error.__traceback__
    while code and trace:
        if trace.tb_frame.f_code is code:
            line = trace.tb_lineno - code.co_firstlineno + 1
            return messages.say("any", "line", line=line)
        trace = trace.tb_next
    return ""
