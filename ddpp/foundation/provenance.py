"""When, on what, and with which code something was made."""

import datetime
import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

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
    """The commit of this source tree, with + for uncommitted changes; of an installed copy the one
    that it was made from, or None.

    Asked for when a run begins: it is the code that runs, also if the tree moves on meanwhile.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        changed = "+" if _git(here.parent, "status", "--porcelain", "--", "..") else ""
        return _git(here.parent, "rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return _installed()


def _installed() -> str | None:
    """The commit of the repository or folder that pip installed this copy from, if it is known."""
    try:
        source = json.loads(distribution("ddpp").read_text("direct_url.json") or "{}")
        if "vcs_info" in source:
            return source["vcs_info"]["commit_id"][:12]
        folder = Path(unquote(urlparse(source["url"]).path))
        return _git(folder, "rev-parse", "--short=12", "HEAD")
    except (PackageNotFoundError, KeyError, OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
