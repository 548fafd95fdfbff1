"""When, on what, and with which code something was made."""

import datetime
import subprocess
from functools import cache
from pathlib import Path

import torch

from ddpp.foundation.devices import made_on


def provenance(device: torch.device) -> dict:
    """When, on what, and with which code and versions a run was made."""
    return {
        "finished": f"{datetime.datetime.now(datetime.UTC):%F %R UTC}",
        "commit": commit(),
        **made_on(device),
    }


@cache
def commit() -> str | None:
    """The commit of this source tree, with + for uncommitted changes; None for an installed copy.

    Asked for when a run begins: it is the code that runs, also if the tree moves on meanwhile.
    """
    here = Path(__file__)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here.parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = "+" if git("status", "--porcelain", "--", "..") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None
