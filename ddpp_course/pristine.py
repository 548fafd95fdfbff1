"""Keep what the checks rely on as it was before a submission's first line.

A notebook may replace functions of torch, of ddpp, of Python itself, by accident or to get points.
Before each check, functions, classes and their code are compared and put back, and settings that
change what functions do are set anew.
"""

import builtins
import gc
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, cast

import numpy as np
import torch

BUILTINS = cast(dict[str, Any], vars(builtins))
NEAR = {"builtins", "math", "numpy", "torch"}
NEAR |= {"torch.nn.functional", "torch.linalg", "torch.autograd", "torch.nn.init"}
OURS = ("ddpp", "ddpp_course")
KINDS = (property, staticmethod, classmethod, ModuleType)  # besides what can be called
HEAP, FIXED = 1 << 9, 1 << 8  # flags of a class: made at run time; cannot be changed
# operators of torch that the checks use
OPERATORS = set(
    "_linalg_check_errors _linalg_eigh _local_scalar_dense _to_copy _unsafe_view abs add add_ "
    "addmm alias all allclose aminmax any arange argmax avg_pool2d avg_pool2d_backward "
    "bitwise_and bitwise_not bitwise_or cat clamp clone constant_pad_nd convolution "
    "convolution_backward copy_ cov detach diag_embed div empty eq equal exp expand fill_ ge gt "
    "index index_select isfinite isnan item le lift_fresh linalg_eigvalsh linalg_inv_ex lt "
    "masked_fill_ matmul max maximum mean min mm mul native_batch_norm "
    "native_batch_norm_backward ne neg ones ones_like permute pow rand randint randn randperm "
    "reciprocal relu remainder repeat repeat_interleave reshape rsqrt scalar_tensor scatter_ "
    "select sigmoid sign slice slice_backward sort split split_with_sizes sqrt squeeze stack "
    "std sub sum t threshold_backward to unbind uniform_ unsqueeze var view where zero_ zeros "
    "zeros_like".split()
)
SIGNALS = [getattr(signal, f"SIG{x}") for x in "INT TERM ALRM VTALRM PROF USR1".split()]


def keep(private: dict[str, ModuleType]) -> tuple[Callable[[], None], Callable[..., str]]:
    """Note how everything is; return what puts it back, and what names something that has changed.

    The second takes whether to look at all operators of torch, which takes 0.1 s, or only at those
    of the checks. Nobody can put them back.

    - private: modules that are not in sys.modules.

    Both are functions and not a class, because a class can be found from `object`.
    """
    modules = dict(sys.modules) | private
    python = dict(BUILTINS)
    near = [
        s for name, m in modules.items() if _is_near(name) for s in _spaces(name, m, name in NEAR)
    ]
    far = [
        s
        for name, m in modules.items()
        if not _is_near(name) and name != "__main__"
        for s in _spaces(name, m)
    ]
    codes = list(_codes([kept for _, _, kept, _ in near]))
    tables = [(name, table, dict(table)) for name, table in _tables(modules)]
    settle, handlers = _settings()
    kernel = torch._C._dispatch_dump  # here, as a submission may replace it
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    kernels = {name: kernel(name) for name in names}
    used = [name for name in names if name[6:].partition(".")[0] in OPERATORS]
    used = [name for name in used if not name.endswith("out")]

    def restore() -> None:
        BUILTINS.clear()  # Python's own first, as what follows is made of it
        BUILTINS.update(python)
        for _ in _changes([*near, *far], codes, tables, put_back=True):
            pass
        settle()

    def changed(every: bool = False) -> str:
        own = [name for name in BUILTINS if BUILTINS[name] is not python.get(name)]
        BUILTINS.clear()
        BUILTINS.update(python)
        if own:
            return own[0]
        if torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack():
            return "the way torch calls its functions"
        for name in names if every else used:
            now = kernel(name)
            if now != kernels[name] and _computing(now) != _computing(kernels[name]):
                return name
        if any(map(len, _hooks().values())):
            return "the hooks of all modules of torch"
        if any(signal.getsignal(number) != handler for number, handler in handlers.items()):
            return "a signal's handler"
        return next(_changes(near, codes, tables, put_back=False), "")

    return restore, changed


def _settings() -> tuple[Callable[[], None], dict]:
    """Return what resets settings that change the meaning of functions, and signal handlers."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    filters, recursion, errors = list(warnings.filters), sys.getrecursionlimit(), np.geterr()
    hooks = _hooks()
    monitoring: Any = getattr(sys, "monitoring", None)  # from Python 3.12 on

    def settle() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        sys.settrace(None)
        sys.setprofile(None)
        for tool in range(6 if monitoring else 0):
            if monitoring.get_tool(tool):
                monitoring.set_events(tool, 0)
                monitoring.free_tool_id(tool)
        sys.setrecursionlimit(recursion)
        gc.callbacks.clear()
        warnings.filters[:] = filters  # pyright: ignore[reportIndexIssue]  (it is a list)
        np.seterr(**errors)
        while torch._C._len_torch_function_stack():
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack():
            torch._C._pop_torch_dispatch_stack(None)
        for name, table in hooks.items():
            table.clear()
            setattr(torch.nn.modules.module, name, table)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_anomaly_enabled(False)
        torch.set_num_threads(1)
        torch._C._set_deterministic_algorithms(False)

    return settle, handlers


def _hooks() -> dict[str, dict]:
    """Return torch's tables of hooks that all modules call."""
    return {
        name: table
        for name, table in vars(torch.nn.modules.module).items()
        if name.startswith("_global_") and isinstance(table, dict)
    }


def _computing(kernels: str) -> list[str]:
    """Return the lines of kernels without those for shapes alone, which a library may add late."""
    return [line for line in kernels.split("\n") if not line.startswith("Meta")]


def classes() -> frozenset[type]:
    """Return the classes that are there now."""
    spaces = (
        space for name, module in dict(sys.modules).items() for space in _spaces(name, module)
    )
    found = (value for _, _, kept, _ in spaces for value in kept.values())
    return frozenset(value for value in found if issubclass(type(value), type))


def _changes(spaces: list, codes: list, tables: list, put_back: bool) -> Iterator[str]:
    """Yield the names of what is not as it was."""
    for name, space, kept, names in spaces:
        now = vars(space) if isinstance(space, type) else space
        for key, value in kept.items():
            if now.get(key, kept) is not value:
                if put_back:
                    _set(space, key, value)
                yield f"{name}.{key}"
        if len(now) != len(names):
            for key in [key for key in now if key not in names and _shadows(space, key)]:
                if put_back:
                    _delete(space, key)
                yield f"{name}.{key}"
    for function, *code in codes:
        if function.__code__ is not code[0] or function.__defaults__ is not code[1]:
            if put_back:
                function.__code__, function.__defaults__, function.__kwdefaults__ = code
            yield f"{function.__module__}.{function.__qualname__}"
    for name, table, kept in tables:
        if any(table.get(key, kept) is not value for key, value in kept.items()):
            if put_back:
                table.update(kept)
            yield name


def _is_near(name: str) -> bool:
    return (
        name in NEAR
        or name.partition(".")[0] in OURS
        or name.startswith(("torch.nn.modules.", "torch._tensor"))
    )


def _spaces(name: str, module: ModuleType, all_of_it: bool = False) -> Iterator[tuple]:
    """Yield a module's dictionary, and the classes that are made in it.

    Each comes as name, object, what is kept, and all names.
    """
    if not isinstance(module, ModuleType):
        return
    space = vars(module)
    whole = name.partition(".")[0] in OURS
    kept = {key: value for key, value in space.items() if whole or _kept(value)}
    yield name, space, kept, frozenset(space)
    for value in [*space.values()]:
        own = issubclass(type(value), type) and value.__flags__ & (HEAP | FIXED) == HEAP
        if own and (all_of_it or vars(value).get("__module__") == name):
            held = vars(value)
            kept = {k: v for k, v in held.items() if _kept(v)}
            yield f"{name}.{value.__name__}", value, kept, frozenset(held)


def _kept(value) -> bool:
    return callable(value) or issubclass(type(value), KINDS)


def _codes(kept: list[dict]) -> Iterator[tuple]:
    """Yield each Python function with its code and defaults."""
    seen = set()
    for value in (value for space in kept for value in space.values()):
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(function, FunctionType) and id(function) not in seen:
            seen.add(id(function))
            yield function, function.__code__, function.__defaults__, function.__kwdefaults__


def _tables(modules: dict[str, ModuleType]) -> Iterator[tuple[str, dict]]:
    """Yield ddpp's own tables of functions, such as the pruning rules.

    A notebook may add to them.
    """
    for name, module in modules.items():
        if name.partition(".")[0] in OURS:
            for key, value in vars(module).items():
                own = isinstance(value, dict) and value and not key.startswith("__")
                if own and all(map(callable, value.values())):
                    yield f"{name}.{key}", value


def _shadows(space: dict | type, key: str) -> bool:
    """Return whether a new name hides an old one: an inherited one, or one of Python's own."""
    if isinstance(space, type):
        return any(key in vars(base) for base in space.__mro__[1:])
    return key in BUILTINS and not key.startswith("__")


def _set(space: dict | type, key: str, value: Callable) -> None:
    if isinstance(space, type):
        type.__setattr__(space, key, value)
    else:
        space[key] = value


def _delete(space: dict | type, key: str) -> None:
    if isinstance(space, type):
        type.__delattr__(space, key)
    else:
        del space[key]
