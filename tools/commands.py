"""How each tool of this folder runs its command."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import tyro

from ddpp.foundation import files
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import as_in_files

T = TypeVar("T")


def run(command: Callable[..., None], name: str, argv: list[str] | None = None) -> int:
    """Run the command of the module tools/NAME.py; return 0, or 1 after printing an Error."""
    try:
        tyro.cli(command, args=argv, prog=f"python -m tools.{name}")
    except Error as e:
        print(f"{name}: {e}", file=sys.stderr)
        return 1
    except FileNotFoundError as e:
        print(f"{name}: {e.filename} is not there: is this the project's folder?", file=sys.stderr)
        return 1
    return 0


def containing(only: str, named: Iterable[tuple[str, T]], kind: str) -> list[T]:
    """Return what has a text in its name, in order. Raises Error if nothing has."""
    if found := [each for name, each in named if only in name]:
        return found
    raise Error(f"no {kind} has '{only}' in its name: leave only out for all")


@contextmanager
def resumed(out: Path, name: str, about: dict) -> Iterator[list]:
    """Hold a file of measurements against other calls, and give those that it has already.

    - name: under which it has them.
    - about: what it says of all of them. Raises Error for a file that says something else.
    """
    files.check_writable(out)
    with files.lock(out, wait=False):
        measured, now = [], as_in_files(about)
        if out.exists():
            try:
                known = dict(json.loads(out.read_text()))
                measured, then = list(known[name]), {key: known[key] for key in now}
            except (OSError, ValueError, KeyError, TypeError):
                raise Error(f"{out} holds no such measurements: choose another file") from None
            if then != now:
                what = differences(then, now)
                raise Error(f"{out} is of other settings ({what}): move it away")
        yield measured
