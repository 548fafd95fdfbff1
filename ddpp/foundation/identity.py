"""What a user brings under a name, and how it is recognized: a file made with one function must not
pass for one made with another function of the same name.

Rules, augmentations, networks and methods are looked up by name in a Table. What ddpp itself put
there is known by its name. Whatever is put there later also has a fingerprint: of its code, of the
values and functions that this code uses, and of theirs. Teachers, checkpoints, results and
accuracies carry it.
"""

import dataclasses
import dis
import functools
import hashlib
import importlib
import json
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpp.foundation.errors import Error

if TYPE_CHECKING:  # it is nowhere else
    from _typeshed import DataclassInstance

T = TypeVar("T")
VERSION = "__ddpp_version__"
LIBRARIES = tuple(
    str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib")
)
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...))
PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype, np.generic)
SHOWN = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.GenericAlias,
    re.Pattern,
    Path,
)
NOT_CODE = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__", "__annotate__", "__annotations_cache__"),
    *("__parameters__", "__dataclass_params__", "__match_args__", "__slots__"),
    *("_abc_impl", "__abstractmethods__"),
}
MADE_BY_DATACLASS = {
    f"__{name}__" for name in "init repr eq hash lt le gt ge setattr delattr replace".split()
}

TABLES: dict[str, "Table"] = {}  # by kind


class Table(dict):
    """Functions or classes of one kind by name, with those that were there from the start kept in
    mind.
    """

    def __init__(self, kind: str, things: dict):
        super().__init__(things)
        self.kind, self.built_in = kind, dict(things)
        TABLES[kind] = self

    def marks(self, *names: object) -> dict[str, str]:
        """{"KIND NAME": fingerprint} of those of the names that are not ddpp's own; empty for all
        that are.
        """
        brought = {f"{self.kind} {name}": self[name] for name in names if self.is_brought(name)}
        return {name: fingerprint(thing, name) for name, thing in brought.items()}

    def is_brought(self, name: object) -> bool:
        """Whether a name stands for something here that is not ddpp's own."""
        return name in self and self[name] is not self.built_in.get(name)

    def name_of(self, thing: Any) -> str:
        """Return the name of a thing. A function or class that is not here yet is put here.

        - thing: a name, which is returned as it is; a function or class, whose name is its own; or
          "package.module:name", which is imported.

        A second one of the same name gets another name, so that no config changes its meaning.
        Files know it by its own name and its fingerprint (`as_in_files`). Raises Error for what
        cannot be imported, has no name, or cannot be recognized again.
        """
        if isinstance(thing, str):
            if ":" in thing and thing not in self:
                self[thing] = _imported(self.kind, thing)
                fingerprint(self[thing], self.kind)  # refused now, not after the first stage
            return thing
        if known := next((name for name, one in self.items() if one is thing), None):
            return known
        if not callable(thing):
            raise Error(f"the {self.kind} is {thing!r}: give a name, a function or a class")
        own = _name_in_code(thing)
        if not own.isidentifier():
            raise Error(
                f"the {self.kind} {own or thing!r} has no name of its own, by which files would "
                "recognize it: write it with def, or as a class"
            )
        does, name, count = fingerprint(thing, f"{self.kind} {own}"), own, 1
        while name in self and fingerprint(self[name], name) != does:
            count += 1
            name = f"{own}-{count}"
        self[name] = thing
        return name


def _imported(kind: str, where: str) -> Any:
    """Import "package.module:name"."""
    module, _, name = where.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as e:
        raise Error(
            f"the {kind} {where} cannot be imported ({e}): write package.module:name, of a module "
            "that Python finds from here"
        ) from None
    if not callable(found):
        raise Error(f"the {kind} {where} is a {type(found).__name__}: name a function or a class")
    return found


def marks(**names: Any) -> dict[str, dict[str, str]]:
    """Return {"custom": ...}, which an identity carries: a fingerprint of each name not ddpp's own.

    - names: as KIND=NAME. augmentation=True stands for ddpp's operations, and a tuple names some.

    Empty, and so no change to the identity, where all of them are ddpp's own.
    """
    found: dict[str, str] = {}
    for kind, name in names.items():
        if isinstance(name, tuple):
            found |= TABLES[kind].marks(*name)
        elif kind == "augmentation":
            found |= TABLES[kind].marks(*TABLES[kind].built_in) if name else {}
        elif kind in TABLES:
            found |= TABLES[kind].marks(name)
    return {"custom": found} if found else {}


def of_run(method: str, config: "DataclassInstance", made_from: dict, network: object) -> dict:
    """Return what the outcome of a run is a function of. Its checkpoint and result carry it.

    - config: the method's settings, a dataclass.
    - made_from: what the run is given, in terms of JSON.
    - network: its name.
    """
    own = marks_of(method, config, network)
    run = {"method": method, "config": settings(config)} | made_from | own
    return as_in_files(run)


def of_state(identity: dict) -> dict:
    """Return what a state on the way is a function of: `of_run` without the number of steps."""
    config = {k: v for k, v in identity["config"].items() if k not in ("steps", "iterates")}
    return identity | {"config": config}


def as_in_files(identity: dict) -> dict:
    """Return it as a file gives it back: with lists for tuples, and functions by their own names.

    So a run of a function that was written anew in one session resumes in the next one, where no
    other has its name.
    """
    return _own_names(json.loads(json.dumps(identity)))


def _own_names(value: Any) -> Any:
    """Take back names that are only of this session, unless two functions would get one name."""
    if isinstance(value, dict):
        return {k: _own_marks(v) if k == "custom" else _own_names(v) for k, v in value.items()}
    if isinstance(value, list):
        own = [_own_names(item) for item in value]
        clash = any(own.count(b) > 1 for a, b in zip(value, own, strict=True) if a != b)
        return value if clash else own
    return _own_name(value) if isinstance(value, str) else value


def _own_name(name: str) -> str:
    """The own name of a function that `Table.name_of` gave another one."""
    for table in TABLES.values():
        if table.is_brought(name):
            own = _name_in_code(table[name])
            if re.fullmatch(rf"{re.escape(own)}-\d+", name):
                return own
    return name


def _name_in_code(thing: Any) -> str:
    """The name of a function or class, also of one in a functools.partial."""
    return str(getattr(getattr(thing, "func", thing), "__name__", ""))


def _own_marks(found: dict[str, str]) -> dict[str, str]:
    split = {key: key.partition(" ") for key in found}
    own = {key: f"{kind} {_own_name(name)}" for key, (kind, _, name) in split.items()}
    single = {key: list(own.values()).count(name) == 1 for key, name in own.items()}
    return {own[key] if single[key] else key: mark for key, mark in found.items()}


def settings(config: "DataclassInstance") -> dict:
    """Return a config as a dictionary, without later settings that are at their default.

    Such a field is marked with metadata={"since": ...}. So files of before are still recognized.
    """
    all_of_them = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if "since" in field.metadata and getattr(config, field.name) == field.default:
            del all_of_them[field.name]
    return all_of_them


def marks_of(method: str, config: "DataclassInstance", network: object) -> dict:
    """Return the `marks` of a method, of what its settings name, and of a network."""
    named = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    named = {name: value for name, value in named.items() if name in TABLES}
    augment = getattr(config, "augment", True)
    return marks(method=method, network=network, augmentation=augment, **named)


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
    """The version that `custom` gave to it, or to its class. A class has none from its base."""
    of = [thing] if isinstance(thing, type) else [thing, type(thing)]
    own = (getattr(one, "__dict__", {}) for one in of)
    return next((found[VERSION] for found in own if VERSION in found), None)


class _Unseen(Exception):
    """A value whose content has no fingerprint."""


def _describe(value, seen: dict):
    """Return a value in terms of JSON, by its content; `seen` numbers what was met before."""
    if isinstance(value, PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (Tensor, np.ndarray)):
        return _array(value)
    if (version := version_of(value)) is not None:
        return f"version {version}"
    if id(value) in seen:  # it contains itself, or is used twice
        return f"number {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value  # kept, or another value could get its id
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted(json.dumps(_describe(item, seen)) for item in value)]
    if isinstance(value, (dict, types.MappingProxyType)):
        return ["dict", *([_describe(k, seen), _describe(v, seen)] for k, v in value.items())]
    if not isinstance(value, (list, tuple)):
        if _is_library(value):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, types.FunctionType):
            return _function(value, seen)
        if isinstance(value, type):
            bases = [_describe(base, seen) for base in value.__bases__]
            return ["class", bases, _describe(_own(value), seen)]
        if isinstance(value, SHOWN) and not hasattr(value, "__wrapped__"):
            return repr(value)
    names, parts = _take_apart(value)
    return [*names, *(_describe(part, seen) for part in parts)]


def _take_apart(value) -> tuple[list[str], Iterable]:
    """Return what a value is called, and the values it is made of."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return [kind], value
    if isinstance(value, dataclasses.Field):
        return ["field", value.name], (value.default, value.default_factory)
    if isinstance(value, (functools.cached_property, functools.partialmethod)):
        return [kind], (value.func,)
    if hasattr(value, "__wrapped__"):  # such as a function with a cache
        return ["wrapped"], (value.__wrapped__,)
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return [], (value.__func__, getattr(value, "__self__", None))
    if isinstance(value, property):
        return ["property"], (value.fget, value.fset, value.fdel)
    if isinstance(value, functools.partial):
        return ["partial"], (value.func, value.args, value.keywords)
    own = type(value).__module__ != "builtins" and hasattr(value, "__dict__")
    if own or dataclasses.is_dataclass(value):
        return ["object"], (type(value), vars(value))
    raise _Unseen(f"{getattr(value, '__name__', 'a value')}, a {kind}")


def _array(value: Tensor | np.ndarray) -> list:
    array = value.detach().cpu().resolve_conj().numpy() if isinstance(value, Tensor) else value
    if array.dtype == object:
        raise _Unseen("an array of Python objects")
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return [str(array.dtype), array.shape, content]


def _own(kind: type) -> dict:
    """What a class defines itself, without what Python or `dataclass` adds to it."""
    own = {key: item for key, item in vars(kind).items() if key not in NOT_CODE}
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
    used = {}
    for code in _codes(function.__code__):
        for name in dict.fromkeys(
            i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"
        ):
            if name in function.__globals__:
                used[name] = _with_attributes(function.__globals__[name], code.co_names, seen)
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return [
        "function",
        _code(function.__code__),
        _describe([function.__defaults__, function.__kwdefaults__], seen),
        [
            [name, _describe(cell.cell_contents, seen) if _filled(cell) else "empty"]
            for name, cell in closure.items()
        ],
        sorted(used.items()),
    ]


def _with_attributes(value, names: tuple[str, ...], seen: dict):
    """A global value; of a user's own module also what the code may take from it."""
    if isinstance(value, types.ModuleType) and not _in_library(value):
        return [
            _describe(value, seen),
            [[n, _describe(getattr(value, n), seen)] for n in names if hasattr(value, n)],
        ]
    return _describe(value, seen)


def _code(code: types.CodeType) -> list:
    """What a code object does, without where it stands and what its text looks like."""
    return [
        code.co_code.hex(),
        [_constant(c) for c in code.co_consts],
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
    ]


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
    package.
    """
    if not (hasattr(value, "__module__") and hasattr(value, "__qualname__")):
        return False
    return value.__module__ is not None and _in_library(sys.modules.get(value.__module__))


@functools.cache
def _in_library(module: types.ModuleType | None) -> bool:
    if module is None:
        return False
    top = module.__name__.partition(".")[0]
    file = getattr(module, "__file__", None)
    if top in ("ddpp", "ddpp_course", "builtins") or (
        top != "__main__" and top in sys.stdlib_module_names
    ):
        return True
    return file is not None and str(Path(file).resolve()).startswith(LIBRARIES)
