"""The process in which a submission runs, from inside: cells, then checks, then what came of them.

The setup runs first, with copies of the checks that the submission never gets: what it imports is another copy. The
verdict on a check is kept until the grader has heard that the check is over, and sends the number to report it with.
"""

import hashlib
import json
import os
import sys
from typing import BinaryIO

import matplotlib.pyplot  # noqa: F401  (what the checks draw with is to be there before the submission)
import tqdm
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import ddpp
from ddpp.course import judge, watch
from ddpp.course.checks import told
from ddpp.course.pristine import Pristine

SETTINGS = {"HistoryManager": {"enabled": False}, "InteractiveShell": {"xmode": "Minimal", "colors": "NoColor"}}


class Kernel:
    """A shell for the cells, and the verdict on the last check."""

    def __init__(self):
        tqdm.tqdm.monitor_interval = 0  # no thread that only watches progress bars
        library = tuple(os.path.join(path, "") for path in sys.path if os.path.isdir(path))
        self.shell = InteractiveShell.instance(config=Config(SETTINGS))
        self.shell.ask_exit = int  # exit() in a cell ends nothing
        self.verdict = {}
        watch.guard = watch.Guard((*library, "<frozen "))

    def setup(self, code: str) -> dict:
        """Run the instructor's setup, then hide the checks and note how everything is."""
        judge.prepare(code)
        private = {name: m for name, m in sys.modules.items() if f"{name}.".startswith("ddpp.course.")}
        for name in private:
            del sys.modules[name]
        del ddpp.course
        watch.guard.hide(private)
        watch.guard.pristine = Pristine(private)
        return {}

    def cell(self, code: str) -> dict:
        """Run a cell as a notebook does."""
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for each cell, as one may close it)
        result = InteractiveShell.run_cell(self.shell, code, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        return {"error": told(error)} if error else {}

    def check(self, code: str, functions: list[str], values: list[str]) -> dict:
        """Run a check, and keep what came of it."""
        self.verdict = {}
        self.verdict = judge.judge(code, functions, values, self.shell.user_ns)
        return {}

    def report(self, number: str) -> dict:
        """The verdict, if nothing else is running that could have written it."""
        watch.guard.pristine.restore()
        if watch.guard.threads():
            self.verdict = {"passed": False, "says": watch.STILL_RUNNING}
        return self.verdict | {"number": number}


def serve(requests: BinaryIO, answers: BinaryIO, key: bytes) -> None:
    """Answer questions until there are no more. Both are signed: nobody in between can change them."""
    dumps, loads, blake2b, write = json.dumps, json.loads, hashlib.blake2b, answers.write
    sign = lambda body: blake2b(body, key=key, digest_size=32).hexdigest().encode()

    def answer(number: int, content: dict) -> None:
        body = dumps(content | {"question": number}).encode()
        write(sign(body) + b" " + body + b"\n")

    kernel = Kernel()
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
            content = getattr(kernel, do)(**question)
        except BaseException as e:
            content = {"error": told(e)}
        answer(number, content)
