"""Run the command line again and again, killing it with SIGKILL at random moments. Used by
test_resume.

    python killing.py KILLS SECONDS OUT COMMAND ...

Each run is a fork of this process, which has only imported ddpp, so that a run costs no start-up.
Delays are drawn from 0 ... SECONDS, which double where four in a row hit the teachers: the machine
is busier than it was. A run that was killed is continued by the next. When one finishes, its output
is kept as OUT.1, OUT.2, ... and the next starts from nothing. Prints which stage each kill hit.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  imported once, not in every run

from ddpp.cli import main

kills, seconds, out, command = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
rng, done, finished, hits = random.Random(0), 0, 0, []


def stage() -> str:
    if out.exists():
        return "evaluating"
    return "distilling" if Path(f"{out}.checkpoint").exists() else "teachers"


while done < kills or not out.exists():
    child = os.fork()
    if child == 0:
        os._exit(main(command))
    if done < kills:
        time.sleep(rng.uniform(0, seconds))
        hit = stage()
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        done += 1
        # on a line of its own, also after one that the kill cut short
        print(f"\n{hit}", flush=True)
        hits.append(hit)
        if hits[-4:] == ["teachers"] * 4:
            seconds *= 2
    elif os.WEXITSTATUS(status):
        sys.exit(f"a run after {done} kills ended with exit code {os.WEXITSTATUS(status)}")
    if out.exists():
        finished += 1
        shutil.move(out, f"{out}.{finished}")
        for rest in out.parent.iterdir():
            if rest.is_dir():
                shutil.rmtree(rest)
        Path(out.with_suffix(".json")).unlink(missing_ok=True)
        if done >= kills:
            break
