"""How long each stage of a run takes, over all its interruptions."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from ddpp.experiments.places import working_file
from ddpp.foundation import files, processes
from ddpp.foundation.errors import Error


class Clock:
    """The seconds of each stage. A run that is stopped leaves them in a file for the next one."""

    def __init__(self, out: Path):
        self.path, self.seconds, self.stopped = working_file(out, "seconds"), {}, False

    def __enter__(self) -> "Clock":
        with contextlib.suppress(OSError, ValueError, TypeError):  # lost or damaged: only a clock
            known = dict(json.loads(self.path.read_text())).items()
            self.seconds |= {name: value for name, value in known if isinstance(value, int | float)}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if processes.rank():
            return
        if kind is None and not self.stopped:
            self.path.unlink(missing_ok=True)
        elif sum(self.seconds.values()) - self.seconds.get("data", 0) > 1:
            with contextlib.suppress(Error):
                files.write_json(self.path, self.seconds)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            taken = time.monotonic() - began
            self.seconds[name] = round(self.seconds.get(name, 0) + taken, 1)
