"""What the caller can mend: one exception, whose message is a sentence that says how."""

import difflib


class Error(ValueError):
    """Bad input, a damaged file or a run that cannot go on; the message says what is wrong and what to do."""


def choose(kind: str, name: str, options) -> str:
    """`name` if it is one of `options`; otherwise an Error that offers the nearest right name."""
    options = list(options)
    if name in options:
        return name
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise Error(f"unknown {kind} '{name}': {hint}the choices are {', '.join(options)}")
