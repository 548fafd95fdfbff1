"""The process in which a submission runs, from inside: cells first, then checks, then reports.

The setup runs first, with copies of the checks that the submission never gets: what it imports is
another copy. The verdict on a check is kept until the grader has heard that the check is over, and
sends the number to report it with.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import BinaryIO

import matplotlib.pyplot  # noqa: F401  (what the checks draw with is to be there before the submission)

# the first optimizer or torch.func.grad imports torch._dynamo, which replaces torch.manual_seed:
# imported during a check, it would look as if the submission had done so
import torch
import torch._dynamo
import tqdm
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ddpp_course import judge, messages, mistakes, pristine, watch
from ddpp_course.checks import told

# its first call adds kernels to torch, and during a check it would look as if the submission did
torch.vmap(torch.neg)(torch.zeros(1))
SETTINGS = {
    "HistoryManager": {"enabled": False},
    "InteractiveShell": {"xmode": "Minimal", "colors": "NoColor"},
}
WAIT = 2  # seconds for threads that are about to end


def serve(requests: BinaryIO, answers: BinaryIO, key: bytes) -> None:
    """Answer questions until there are no more.

    Both directions are signed: nobody in between can change them. What this function knows is in
    its frame, where a submission cannot look, and in no class or module.
    """
    dumps, loads, blake2b, write = json.dumps, json.loads, hashlib.blake2b, answers.write
    sign = lambda body: blake2b(body, key=key, digest_size=32).hexdigest().encode()
    known = _questions()

    def answer(number: int, content: dict) -> None:
        body = dumps(content | {"question": number}).encode()
        write(sign(body) + b" " + body + b"\n")

    answer(1, {})
    while True:
        try:
            code, _, body = requests.readline().rstrip(b"\n").partition(b" ")
        except KeyboardInterrupt:  # it came too late for what it was to end
            continue
        if code != sign(body):  # or there was nothing to read
            return
        question = loads(body)
        do, number = question.pop("do"), question.pop("question")
        try:
            content = known[do](**question)
        except BaseException as e:
            content = {"error": told(e)}
        answer(number, content)


def _questions() -> Mapping[str, Callable[..., dict]]:
    """Return what can be asked: to run the setup, a cell or a check, and to report its verdict."""
    shell, guard = _shell()
    run, verdict, fields = InteractiveShell.run_cell, {}, {}
    told_of, judged, running = told, judge.judge, watch.threads
    sleep, clock = time.sleep, time.monotonic
    restore: Callable[[], object] = dict  # until there is something to put back
    changed: Callable[..., str] = str

    def setup(code: str, solutions: dict[str, str]) -> dict:
        nonlocal restore, changed
        messages.texts()  # read now, and not by way of what a submission may have replaced
        mistakes.given.update(solutions)
        judge.prepare(code)
        mistakes.given.clear()
        own = [name for name in sys.modules if f"{name}.".startswith("ddpp_course.")]
        private = {name: sys.modules[name] for name in own}
        for name in private:
            del sys.modules[name]
        watch.hide(guard, private, mistakes.codes)
        restore, changed = pristine.keep(private)
        guard.classes, guard.changed = pristine.classes(), changed
        fields.update(vars(guard))
        return {}

    def put_back() -> None:
        restore()
        vars(guard).update(fields)

    def cell(code: str) -> dict:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for each cell, as one may close it)
        result = run(shell, code, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        return {"error": told_of(error)} if error else {}

    def check(code: str, functions: list[str], values: list[str]) -> dict:
        verdict.clear()
        end = clock() + WAIT
        while running() and clock() < end:
            sleep(0.05)
        put_back()
        verdict.update(judged(code, functions, values, shell.user_ns))
        if verdict["passed"] and (what := changed(every=True)):
            verdict.update(passed=False, says=messages.say("grader", "replaced", what=what))
        return {}

    def report(number: str) -> dict:
        put_back()
        if running():
            verdict.update(passed=False, says=watch.STILL_RUNNING)
        return verdict | {"number": number}

    # unchangeable, as it is in the frame of `serve`
    return MappingProxyType({"setup": setup, "cell": cell, "check": check, "report": report})


def _shell() -> tuple[InteractiveShell, watch.Guard]:
    """Make the shell for a submission's cells, in a process that is watched from here on."""
    tqdm.tqdm.monitor_interval = 0  # no thread that only watches progress bars
    library = tuple(os.path.join(path, "") for path in sys.path if os.path.isdir(path))
    shell = InteractiveShell.instance(config=Config(SETTINGS))
    shell.ask_exit = int  # pyright: ignore[reportAttributeAccessIssue]  exit() in a cell ends nothing; and this function leads nowhere
    # %matplotlib asks for a window system, and there is none; and this function leads nowhere
    shell.enable_gui = str  # pyright: ignore[reportAttributeAccessIssue]
    return shell, watch.start((*library, "<frozen "))
