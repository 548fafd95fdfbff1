"""What a function or class does, as a short text: equal for equal code, and for equal values and
functions that this code uses.
"""

import collections
import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib
import inspect
import json
import random
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpp.foundation.errors import Error

T = TypeVar("T")
VERSION = "__ddpp_version__"
LIBRARIES = tuple(
    str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib")
)
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...))
BUILT_IN = (list, tuple, dict, set, frozenset, int, float, complex, str, bytes)
PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, np.generic)
SHOWN = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.GenericAlias,
    re.Pattern,
    Path,
)
# namespaces of torch.ops that are PyTorch's
OPERATORS = ("aten", "mkldnn", "onednn", "prim", "prims", "quantized", "torchvision")
# of a global: in a function, and in the body of a class inside one
LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
BY_TEXT = ("globals", "eval", "exec", "__import__")  # which find by a text what no code names
NOT_CODE = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__", "__annotate__", "__annotations_cache__"),
    *("__parameters__", "__dataclass_params__", "__match_args__", "__slots__"),
    *("_abc_impl", "__abstractmethods__", "__slotnames__"),  # the last comes with the first copy
}
MADE_BY_DATACLASS = {
    f"__{name}__" for name in "init repr eq hash lt le gt ge setattr delattr replace".split()
}


def custom(thing: T, version: str | int | None = None) -> T:
    """Return a rule, augmentation operation or network of your own, ready to be used in a config.

    - thing: the function or class. Give it to a config where a name would stand, as in
      `DistillConfig(rule=my_rule)`, `TeacherConfig(augment=("crop", my_operation))` or
      `NetworkConfig(MyNetwork)`.
    - version: needed only where the code uses what ddpp cannot see through. Then files recognize
      the thing by this version. Change it whenever the thing changes. Default: it is recognized by
      its code, and by the values and functions that its code uses.

    Files carry what recognizes the thing: those made with another version of it are refused. Raises
    Error for what cannot be recognized.

    >>> import ddpp
    >>> def half(student, teacher, epsilon):
    ...     return student.abs() > teacher.abs() / 2
    >>> ddpp.DistillConfig(rule=ddpp.custom(half)).rule
    'half'
    """
    if version is None:
        fingerprint(thing, getattr(thing, "__name__", "thing"))
        return thing
    marked: Any = thing
    try:
        setattr(marked, VERSION, str(version))
    except (AttributeError, TypeError):  # a C function takes no attributes
        marked = functools.partial(marked)
        setattr(marked, VERSION, str(version))
    return marked


def fingerprint(thing, name: str = "this") -> str:
    """Return a short name for what a function or class does: equal for equal code and values.

    Raises Error where something that it uses cannot be seen through, and says how to give it a
    version instead.
    """
    if (version := version_of(thing)) is not None:
        return f"version {version}"
    try:
        text = json.dumps(_describe(thing, {}))
    except _Unseen as e:
        raise Error(
            f"the {name} uses {e}, of which ddpp cannot tell whether it has changed: say which "
            "version it is, with "
            "ddpp.custom(..., version=1), and give it another number whenever it changes"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def version_of(thing: Any) -> str | None:
    """The version that `custom` gave to it, or to its class. A class has none from its base, and a
    wrapper none from what it wraps, though `functools.wraps` copies it.
    """
    of = [thing] if isinstance(thing, type) else [thing, type(thing)]
    for own in (getattr(one, "__dict__", {}) for one in of):
        inner = getattr(own.get("__wrapped__"), "__dict__", {})
        if VERSION in own and own[VERSION] != inner.get(VERSION):
            return own[VERSION]
    return None


class _Unseen(Exception):
    """A value whose content has no fingerprint."""


def _describe(value, seen: dict):
    """Return a value in terms of JSON, by its content; `seen` numbers what was met before."""
    if _is_plain(value):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (Tensor, np.ndarray)) and _is_library(type(value)):
        return _array(value)
    if (version := version_of(value)) is not None:
        return f"version {version}"
    if id(value) in seen:  # it contains itself, or is used twice
        return f"number {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value  # kept, or another value could get its id
    if isinstance(value, types.ModuleType):
        if not _in_library(value):  # which of its functions are used, the code does not tell
            raise _Unseen(f"all of the module {value.__name__}")
        return f"module {value.__name__}"
    if isinstance(value, (Tensor, np.ndarray)):  # of a class of one's own
        parts = type(value), getattr(value, "__dict__", {})
        return ["own", _array(value), *(_describe(part, seen) for part in parts)]
    if plain := _built_in(value):
        parts = plain(value), type(value), getattr(value, "__dict__", {})
        return ["own", *(_describe(part, seen) for part in parts)]
    if isinstance(value, (set, frozenset)):
        # each for itself, as the order of a set is another one in each process
        return ["set", *sorted(json.dumps(_describe(item, dict(seen))) for item in value)]
    if isinstance(value, (dict, types.MappingProxyType)):
        factory = getattr(value, "default_factory", None)  # of a defaultdict
        made_by = [_describe(factory, seen)] if factory else []
        items = ([_describe(k, seen), _describe(v, seen)] for k, v in value.items())
        return ["dict", *made_by, *items]
    if not isinstance(value, (list, tuple)):
        if (
            isinstance(value, np.ufunc)
            and value.types
            and all(set(of) <= set("O->") for of in value.types)
        ):
            raise _Unseen(f"{value.__name__}, a ufunc of a function of Python")
        if isinstance(value, torch.jit.ScriptFunction):
            return _scripted(value, seen)
        if _is_library(value):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, types.FunctionType):
            return _function(value, seen)
        if isinstance(value, type):
            bases = [_describe(base, seen) for base in value.__bases__]
            kind = [] if _is_library(type(value)) else [_describe(type(value), seen)]
            return ["class", *kind, bases, _describe(_own(value), seen)]
        if isinstance(value, SHOWN) and not hasattr(value, "__wrapped__"):
            return repr(value)
    names, parts = _take_apart(value)
    return [*names, *(_describe(part, seen) for part in parts)]


def _is_plain(value) -> bool:
    return isinstance(value, PLAIN) and _is_library(type(value))


def _built_in(value) -> Callable | None:
    """The built-in class of a value whose own class is a user's, with methods that code may use."""
    if _is_library(type(value)):
        return None
    return next((kind for kind in BUILT_IN if isinstance(value, kind)), None)


def _take_apart(value) -> tuple[list[str], Iterable]:
    """Return what a value is called, and the values it is made of."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return [kind], value
    if isinstance(value, dataclasses.Field):
        return ["field", value.name], (value.default, value.default_factory)
    if isinstance(value, (functools.cached_property, functools.partialmethod)):
        return [kind], (value.func,)
    if hasattr(value, "__wrapped__") and _is_library(type(value)):  # a function with a cache, say
        return ["wrapped"], (value.__wrapped__,)
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return [], (value.__func__, getattr(value, "__self__", None))
    if isinstance(value, types.BuiltinMethodType) and value.__self__ is not None:
        return ["method", value.__name__], (value.__self__,)  # as `apply` of an autograd.Function
    if isinstance(value, property):
        return ["property"], (value.fget, value.fset, value.fdel)
    if isinstance(value, functools.partial):
        return ["partial"], (value.func, value.args, value.keywords)
    if isinstance(value, random.Random):
        raise _Unseen(f"a {kind}, whose state changes with each draw")
    own = type(value).__module__ != "builtins" and hasattr(value, "__dict__")
    if own or dataclasses.is_dataclass(value):
        slots = _slots(value)
        own = getattr(value, "__dict__", {})
        return ["object"], (type(value), own, *([slots] if slots else []))
    raise _Unseen(f"{getattr(value, '__name__', 'a value')}, a {kind}")


def _slots(value) -> dict:
    """The values of the slots that its classes have beside a __dict__."""
    names = []
    for kind in type(value).__mro__:
        own = getattr(kind, "__slots__", ())
        for name in [own] if isinstance(own, str) else own:
            hidden = name.startswith("__") and not name.endswith("__")
            names.append(f"_{kind.__name__.lstrip('_')}{name}" if hidden else name)
    usual = ("__dict__", "__weakref__")
    return {n: getattr(value, n) for n in sorted(names) if n not in usual and hasattr(value, n)}


def _array(value: Tensor | np.ndarray) -> list:
    if isinstance(value, np.ma.MaskedArray):
        raise _Unseen("a masked array")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise _Unseen("a tensor that is sparse, quantized or without values")
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        try:
            value = plain.numpy()
        except TypeError:  # NumPy has no bfloat16, say
            return [str(plain.dtype), plain.shape, _array(plain.reshape(-1).view(torch.uint8))]
    array = value
    if array.dtype == object:
        raise _Unseen("an array of Python objects")
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return [str(array.dtype), array.shape, content]


def _own(kind: type) -> dict:
    """What a class defines itself, without what Python or `dataclass` adds to it."""
    own = {key: item for key, item in vars(kind).items() if key not in NOT_CODE}
    if issubclass(kind, tuple) and "_fields" in own:  # what a named tuple is given for its fields
        made = vars(collections.namedtuple("_", own["_fields"])).keys() - {"_fields"}
        own = {key: item for key, item in own.items() if key not in made}
    if "__dataclass_fields__" not in own:
        return own
    made = {key for key in MADE_BY_DATACLASS & own.keys() if _written_by_dataclass(own[key])}
    return {key: item for key, item in own.items() if key not in made}


def _written_by_dataclass(method) -> bool:
    while hasattr(method, "__wrapped__"):
        method = method.__wrapped__
    return (
        method is None
        or getattr(getattr(method, "__code__", None), "co_filename", "") == "<string>"
    )


def _function(function: types.FunctionType, seen: dict):
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells = {name: cell.cell_contents for name, cell in closure.items() if _filled(cell)}
    home = sys.modules.get(function.__globals__.get("__name__", ""))
    if _in_library(home) and vars(home) is function.__globals__:
        # made by a library's decorator, say: its code is known by name, but not what it has taken
        does, used = [f"{function.__globals__['__name__']}.{function.__code__.co_qualname}"], {}
    else:
        does, used = _code(function.__code__), _globals(function, cells, seen)
    names = tuple(dict.fromkeys(n for code in _codes(function.__code__) for n in code.co_names))
    own = {k: v for k, v in vars(function).items() if k not in ("__wrapped__", VERSION)}
    return [
        "function",
        *([_describe(own, seen)] if own else []),
        does,
        _describe([function.__defaults__, function.__kwdefaults__], seen),
        [
            [
                name,
                _with_attributes(cells[name], names, seen) if name in cells else "empty",
            ]
            for name in closure
        ],
        sorted(used.items()),
    ]


def _globals(function: types.FunctionType, cells: dict, seen: dict) -> dict:
    """The values and functions that its code uses by a global name, or imports."""
    used = {}
    for code in _codes(function.__code__):
        _check_operators(code, function.__globals__ | cells)
        for name in dict.fromkeys(
            i.argval for i in dis.get_instructions(code) if i.opname in LOADS
        ):
            if name in BY_TEXT and name not in function.__globals__:
                raise _Unseen(f"{name}()")
            if name in function.__globals__:
                used[name] = _with_attributes(function.__globals__[name], code.co_names, seen)
        for name, module in _imported(code, function.__globals__):
            used[f"import {name}"] = _with_attributes(module, code.co_names, seen)
    return used


def _check_operators(code: types.CodeType, known: dict) -> None:
    """Raise _Unseen if code calls a user's own compiled code through torch.ops.

    - known: what its names stand for.
    """
    steps = list(dis.get_instructions(code))
    for module, ops, space in zip(steps, steps[1:], steps[2:], strict=False):
        of_torch = isinstance(module.argval, str) and known.get(module.argval) is torch
        if of_torch and ops.argval == "ops" and space.argval not in OPERATORS:
            raise _Unseen("an operator of torch.ops that is not PyTorch's")


def _scripted(function: torch.jit.ScriptFunction, seen: dict) -> list:
    """A function of TorchScript by its graph, without the places in files, and by its constants, as
    the text of a graph has no large ones.
    """
    graph = function.inlined_graph
    nodes = list(_nodes(graph))
    for kind in sorted({node.kind() for node in nodes}):
        if kind.partition("::")[0] not in OPERATORS or kind == "prim::PythonOp":
            raise _Unseen(f"{function.name}, of TorchScript, with {kind}")
    constants = [node.output() for node in nodes if node.kind() == "prim::Constant"]
    values = [one.toIValue() for one in constants if one.type().kind() != "FunctionType"]
    text = re.sub(r" # [^\"\n]*:\d+:\d+$", "", str(graph), flags=re.MULTILINE)
    return ["scripted", text, *(_describe(value, seen) for value in values)]


def _nodes(block: Any) -> Iterator[Any]:
    """All operations of a graph, also those inside of others."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _with_attributes(value, names: tuple[str, ...], seen: dict):
    """A global value; of a user's own module also what the code may take from it."""
    if isinstance(value, types.ModuleType) and not _in_library(value):
        # not by `seen`, or a second look could be at other attributes
        others = tuple(n for n in names if getattr(value, n, value) is not value)
        if not others:
            return _describe(value, seen)
        return [
            f"module {value.__name__}",
            [[n, _with_attributes(getattr(value, n), _without(n, names), seen)] for n in others],
        ]
    return _describe(value, seen)


def _without(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without one: modules that have one another have an end."""
    return tuple(n for n in names if n != name)


def _imported(code: types.CodeType, known: dict) -> Iterator[tuple[str, types.ModuleType]]:
    """What a code object imports when it runs, of a user's own modules."""
    instructions = list(dis.get_instructions(code))
    for at, i in enumerate(instructions):
        if i.opname != "IMPORT_NAME":
            continue
        level, wanted = (one.argval for one in instructions[at - 2 : at])
        name = "." * (level if isinstance(level, int) else 0) + i.argval
        # what is inside a package first, as the package has it as an attribute only then
        for part in (*(f".{one}" for one in wanted or ()), ""):
            # what is not there, or not now: the call will say so, or it is no module
            with contextlib.suppress(Exception):
                module = importlib.import_module(name + part, known.get("__package__"))
                if not _in_library(module):
                    yield name + part, module


def _code(code: types.CodeType) -> list:
    """What a code object does, without its place in the file and the look of its text."""
    return [
        code.co_code.hex(),
        [_constant(c) for c in code.co_consts],
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        *_beside(code),
    ]


def _beside(code: types.CodeType) -> list:
    """What else decides what a code object does, where it is not the usual."""
    starred = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    taken = [starred, code.co_kwonlyargcount] if starred or code.co_kwonlyargcount else []
    # comprehensions and generators have a table, too, in some versions of Python
    handles = any(i.opname == "PUSH_EXC_INFO" for i in dis.get_instructions(code))
    return [*taken, *([code.co_exceptiontable.hex()] if handles else [])]


def _constant(value):
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # as in `x in {"a", "b"}`; its order changes between processes
        return ["set", *sorted(map(repr, value))]
    return repr(value)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Return a code object, and the code objects of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_library(value) -> bool:
    """Whether it is a function or class of the standard library, of ddpp, or of an installed
    package: the one that is found there under its name, as `functools.wraps` copies the names.
    """
    if not (hasattr(value, "__module__") and hasattr(value, "__qualname__")):
        return False
    module = sys.modules.get(value.__module__) if value.__module__ else None
    if not _in_library(module):
        return False
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return True  # these keep their names, and not all are found under them
    if isinstance(value, types.MethodType):  # random.uniform, say, of the module's one generator
        return getattr(module, value.__name__, None) == value
    try:
        found = functools.reduce(getattr, value.__qualname__.split("."), module)
    except AttributeError:  # made by a function, or gone since
        return False
    return getattr(found, "__func__", found) is value  # a class method comes bound


@functools.cache
def _in_library(module: types.ModuleType | None) -> bool:
    if module is None:
        return False
    top = module.__name__.partition(".")[0]
    if top in ("__main__", "__mp_main__"):  # a user's, also where a profiler's file runs it
        return False
    if top in ("ddpp", "ddpp_course"):
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        return top in sys.stdlib_module_names
    # not by its name: a user's code.py hides Python's
    return str(Path(file).resolve()).startswith(LIBRARIES)
