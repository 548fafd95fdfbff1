"""What users put into the tables, for a process that starts anew and imports ddpp for itself.

Such a process gets a function or class by reference: it imports the module that has it.
"""

import contextlib
import pickle
from typing import Any

from ddpp.foundation.fingerprints import custom, version_of
from ddpp.foundation.identity import TABLES, Table

# by kind and name; None: what ddpp itself put there, or what the name says where to import
Packed = dict[str, dict[str, bytes | None]]


def pack_tables() -> Packed:
    """Pack all tables for another process. What it cannot be given, as a lambda, is left out."""
    packed: Packed = {}
    for kind, table in TABLES.items():
        packed[kind] = {}
        for name, thing in table.items():
            if not table.is_brought(name):
                packed[kind][name] = None
            elif (content := _pickled(thing)) or ":" in name:
                packed[kind][name] = content
    return packed


def unpack_tables(packed: Packed) -> None:
    """Make the tables equal to another process's. What cannot be imported here is left out."""
    for kind, contents in packed.items():
        table, found = TABLES[kind], {}
        for name, content in contents.items():
            with contextlib.suppress(Exception):  # whatever a module of the user's raises
                found[name] = _unpickled(content) if content else _by_name(table, name)
        table.clear()
        table.update(found)


def all_spawn() -> bool:
    """Tell whether another process surely gets all that is in the tables.

    It may be unable to import what a notebook or a script defines itself, and not a module.
    """
    packed = pack_tables()
    if any(packed[kind].keys() != table.keys() for kind, table in TABLES.items()):
        return False
    contents = [content for things in packed.values() for content in things.values()]
    return not any(b"__main__" in content for content in contents if content)


def _pickled(thing: Any) -> bytes | None:
    """Return None for what other processes cannot be given."""
    try:
        return pickle.dumps((thing, version_of(thing)))
    except Exception:  # PicklingError, AttributeError, TypeError, or what a user's class raises
        return None


def _unpickled(content: bytes) -> Any:
    thing, version = pickle.loads(content)
    return thing if version is None else custom(thing, version)


def _by_name(table: Table, name: str) -> Any:
    if name in table.built_in:
        return table.built_in[name]
    table.name_of(name)  # imports it
    return table[name]
