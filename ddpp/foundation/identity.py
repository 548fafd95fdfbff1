"""What a user brings under a name, and how it is recognized: a file made with one function must not
pass for one made with another function of the same name.

Rules, augmentations, networks and methods are looked up by name in a Table. What ddpp itself put
there is known by its name. Whatever is put there later also has a fingerprint: of its code, of the
values and functions that this code uses, and of theirs. Teachers, checkpoints, results and
accuracies carry it.
"""

import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ddpp.foundation.errors import Error, first_line
from ddpp.foundation.fingerprints import fingerprint

if TYPE_CHECKING:  # it is nowhere else
    from _typeshed import DataclassInstance

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
        """{"KIND NAME": fingerprint} of the names that are not ddpp's own."""
        brought = {f"{self.kind} {name}": self[name] for name in names if self.is_brought(name)}
        return {name: fingerprint(thing, name) for name, thing in brought.items()}

    def check_unchanged(
        self,
        before: dict[str, str],
        why: str = "changes a value that it reads, so files could not recognize it",
    ) -> None:
        """Raise an Error if a thing is no longer what its fingerprint says.

        - before: `marks`, taken before it was called.
        - why: this is so, and wrong, for the message.
        """
        for name, mark in before.items():
            if self.marks(name.removeprefix(f"{self.kind} ")) != {name: mark}:
                raise Error(
                    f"the {name} {why}: write it without, or say which version it is, with "
                    "ddpp.custom(..., version=1)"
                )

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
            if ":" in thing:
                self._import(thing)
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
        while name in self.built_in or (name in self and fingerprint(self[name], name) != does):
            count += 1
            name = f"{own}-{count}"
        self[name] = thing
        return name

    def own_name(self, name: str) -> str:
        """Return the name that a thing has in its code, where `name_of` has given it another."""
        own = _own_name(name)
        return name if own in self.built_in else own

    def name_here(self, own: str, mark: str) -> str:
        """Return what a thing is called here, by its own name and its fingerprint.

        It is its own name if there is no such thing.
        """
        alike = (name for name in self if self.is_brought(name) and self.own_name(name) == own)
        return next((name for name in alike if mark in self.marks(name).values()), own)

    def _import(self, where: str) -> None:
        """Put here what "package.module:name" names, also where its module was loaded anew."""
        try:
            found = _imported(self.kind, where)
        except Error:
            if where in self:  # from another process, which found it
                return
            raise
        if self.get(where) is not found:
            self[where] = found
            fingerprint(found, self.kind)  # refused now, not after the first stage


def _imported(kind: str, where: str) -> Any:
    """Import "package.module:name"."""
    module, _, name = where.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as e:  # the module's own, too
        raise Error(
            f"the {kind} {where} cannot be imported ({first_line(e)}): write package.module:name, "
            "of a module that Python finds from here"
        ) from None
    if not callable(found):
        raise Error(f"the {kind} {where} is a {type(found).__name__}: name a function or a class")
    return found


def marks(**names: Any) -> dict[str, dict[str, str]]:
    """Return {"custom": ...}, which an identity carries: a fingerprint of each name not ddpp's own.

    - names: as KIND=NAME. augmentation=True stands for ddpp's operations, and a tuple names some.
      settings=CONFIG stands for the class of a config, which may be one with methods of its own.

    Empty, and so no change to the identity, where all of them are ddpp's own.
    """
    found: dict[str, str] = {}
    for kind, name in names.items():
        if isinstance(name, tuple):
            found |= TABLES[kind].marks(*name)
        elif kind == "settings":
            found |= _marks_of_class(type(name))
        elif kind == "augmentation":
            found |= TABLES[kind].marks(*TABLES[kind].built_in) if name else {}
        elif kind in TABLES:
            found |= TABLES[kind].marks(name)
    return {"custom": found} if found else {}


def _marks_of_class(kind: type) -> dict[str, str]:
    """{"settings NAME": fingerprint} of a class of settings that is not ddpp's own."""
    if kind.__module__.partition(".")[0] == "ddpp":
        return {}
    name = f"settings {kind.__name__}"
    return {name: fingerprint(kind, name)}


def of_run(
    method: str,
    config: "DataclassInstance",
    made_from: dict,
    network: object,
    step: Callable | None = None,
) -> dict:
    """Return what the outcome of a run is a function of. Its checkpoint and result carry it.

    - config: the method's settings, a dataclass.
    - made_from: what the run is given, in terms of JSON.
    - network: its name.
    - step: the function that makes a step. If it is not ddpp's, and METHODS has no method of your
      own under this name, the run is known by the step's code.
    """
    own = marks_of(method, config, network)
    if not TABLES["method"].is_brought(method):  # whose fingerprint has its settings' class in it
        own = {"custom": own.get("custom", {}) | marks(settings=config).get("custom", {})}
    if step is not None and not _is_ddpps(step) and not TABLES["method"].is_brought(method):
        try:
            mark = {f"method {method}": fingerprint(step, f"step of the method {method}")}
            own = {"custom": own.get("custom", {}) | mark}
        except Error:  # `check_known` lets nothing of an unknown method be saved without a mark
            if method in TABLES["method"]:
                raise
    run = {"method": method, "config": settings(config)} | made_from
    run |= own if own.get("custom") else {}
    return as_in_files(run)


def _is_ddpps(function: Callable) -> bool:
    """Whether it was written in ddpp, and not only wrapped what was."""
    where = getattr(function, "__globals__", {}).get("__name__", "")
    return where.partition(".")[0] == "ddpp"


def check_known(identity: dict) -> None:
    """Raise an Error for a run of a method that its files could not recognize."""
    method = identity.get("method")
    known = TABLES.get("method", {})
    marked = f"method {method}" in identity.get("custom", {})
    if method is not None and method not in known and not marked:
        raise Error(
            f"files could not tell whether the method {method} has changed: put it into METHODS "
            "under this name, or save no checkpoint"
        )


def of_state(identity: dict, lasting: bool) -> dict:
    """Return what a state on the way is a function of: `of_run` without the engine, as all give
    the same gradients up to rounding.

    - lasting: whether no state depends on the number of steps. Then this is left out, too.
    """
    left = {"engine", "steps", "iterates"} if lasting else {"engine"}
    config = {k: v for k, v in identity.get("config", {}).items() if k not in left}
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
    """The name of a function or class, also of one in a functools.partial, or of TorchScript."""
    inner = getattr(thing, "func", thing)
    scripted = isinstance(inner, torch.jit.ScriptFunction)
    return str(getattr(inner, "name" if scripted else "__name__", ""))


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
