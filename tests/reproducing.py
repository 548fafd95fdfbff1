"""Reproduce two tiny runs, killing the process with SIGKILL at random moments. Used by
test_experiments.

    python reproducing.py DATA FOLDER KILLS

Prints "killed" for each kill, and "lost" should a run that was finished be missing afterwards.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from test_experiments import tiny_runs

from ddpp.experiments import read_result, reproduce

data, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
todo, rng, finished = tiny_runs(data, steps=40), random.Random(0), set()
places = {"results": folder / "results", "work": folder / "work"}
while kills or len(finished) < len(todo):
    child = os.fork()
    if child == 0:
        reproduce(todo, **places, device="cpu", progress=False, say=lambda line: None)
        os._exit(0)
    if kills:
        time.sleep(rng.uniform(0, 0.6))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills -= 1
        print("killed")
    elif status:
        sys.exit(f"with {kills} kills to go, a run ended with status {status}")
    now = {each.name for each in todo if read_result(each, places["results"])}
    if finished - now:
        print("lost", finished - now)
    finished = now
    if kills and len(finished) == len(todo):  # begin anew, for the kills that are left
        todo[-1].report_path(places["results"]).unlink()
        shutil.rmtree(places["work"])
        finished = {todo[0].name}
