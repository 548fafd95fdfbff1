"""How each tool of this folder runs its command."""

import sys
from collections.abc import Callable

import tyro

from ddpp.foundation.errors import Error


def run(command: Callable[..., None], name: str, argv: list[str] | None) -> int:
    """Run the command of the module tools/NAME.py; return 0, or 1 after printing an Error."""
    try:
        tyro.cli(command, args=argv, prog=f"python -m tools.{name}")
    except Error as e:
        print(f"{name}: {e}", file=sys.stderr)
        return 1
    return 0
