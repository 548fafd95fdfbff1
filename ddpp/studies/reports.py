"""The report of a study: a JSON file of what was asked, what was found, and on what."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from ddpp.experiments.recipes import from_dict
from ddpp.foundation import files
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import as_in_files
from ddpp.foundation.provenance import provenance


def refuse_other(path: Path, asked: dict, what: str, advice: str) -> None:
    """Raise an Error if there is a report of another run at `path`.

    - asked: all settings. The report has them under this name.
    - what, advice: what is of another run, and what to do then, for the message.
    """
    if not path.exists():
        return
    try:
        known = dict(json.loads(path.read_text())["asked"])
        if "recipe" in known:  # settings that are newer than the report have their defaults
            known |= as_in_files({"recipe": asdict(from_dict(known["recipe"]))})
    except (OSError, ValueError, KeyError, TypeError):  # an Error is a ValueError
        raise Error(f"{path} is where the report belongs, but is another file: move it") from None
    if known != (wanted := as_in_files(asked)):
        raise Error(f"{what} of another run ({differences(known, wanted)}): {advice}")


def write_report(path: Path, content: dict, device: torch.device) -> None:
    """Write a report with its provenance. A report that has all of it stays as it is.

    So a second call does not say that it made what the first one did, and a report of tasks does
    not begin anew.

    - content: what was asked and what was found, under these names, perhaps with more.
    """
    content = as_in_files(content)
    found = content["found"]
    known = json.loads(path.read_text()).get("found") if path.exists() else None
    if isinstance(known, list) and isinstance(found, list):
        known = known[: len(found)]
    if known != found:
        files.write_json(path, content | provenance(device))
