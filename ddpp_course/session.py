"""A process for one submission, watched from outside: time, memory, files, processes, answers.

Questions and answers are lines of JSON in two pipes. Each is signed with a key that the process got
before the submission's first line, so what a submission writes into a pipe is neither.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
import psutil

from ddpp_course import enter, folders, mistakes, wall
from ddpp_course.messages import say
from ddpp_course.wall import CourseError, Wall

GRACE = 5  # seconds that a cell has to end after it was interrupted
START = 120  # seconds that a process has to start
LONGEST = 2**16  # bytes of an answer
ENTER = str(Path(enter.__file__))


@dataclass(frozen=True)
class Limits:
    """What a submission may use."""

    seconds: float = 0.0  # for a cell, or a check; 0: what the assignment asks for
    memory: float = 4.0  # GB

    @property
    def total(self) -> float:
        """Seconds for all cells and checks together."""
        return 5 * self.seconds


@dataclass(frozen=True)
class Answer:
    """What became of a piece of code.

    alive: whether the process still is; error: in words, empty if there was none.
    """

    error: str = ""
    alive: bool = True
    passed: bool = False
    says: str = ""


class Session:
    """A process behind a wall, which ends with all that it started when the session is closed."""

    stopped = threading.Event()  # set when grading is interrupted: all sessions end

    def __init__(self, limits: Limits, walls: Wall, private: tuple[Path, ...] = ()):
        self.limits, self.wall = limits, walls
        self._key, self._count, self._seen = secrets.token_bytes(32), 0, {}
        self._opened = contextlib.ExitStack()  # what closing it ends, removes and closes
        try:
            self._begin(private)
        except BaseException:
            self.close()
            raise

    def _begin(self, private: tuple[Path, ...]) -> None:
        walls, opened = self.wall, self._opened
        folder = tempfile.mkdtemp(prefix=folders.FOLDER)
        opened.callback(folders.remove, folder)
        opened.callback(os.close, folders.lock(folder))
        self._work = wall.INSIDE if walls.alone else Path(os.path.realpath(folder))
        rules = walls.rules(self._work, private)
        fonts = {
            self._work / "matplotlib" / path.name: path
            for path in Path(matplotlib.get_cachedir()).glob("font*")
        }
        if not walls.alone:
            (self._work / "matplotlib").mkdir()
            for place, path in fonts.items():
                shutil.copy(path, place)
        with contextlib.ExitStack() as its:  # ends of the pipes
            requests, self._requests = _pipe(its, opened)
            self._answers, answers = _pipe(opened, its)
            arguments = ["-P", ENTER, str(requests), str(answers)]
            self._process = subprocess.Popen(
                walls.command(arguments, private, fonts),
                cwd="/" if walls.alone else self._work,
                env=wall.environment(self._work),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(requests, answers),
                start_new_session=True,
            )
        opened.callback(self._kill)
        begin = {"key": self._key.hex(), "memory": int(self.limits.memory * 1e9)}
        started = self._ask(begin | {"alone": walls.alone, "landlock": rules}, START)
        if started.error:
            raise CourseError(
                f"no process to grade in: {started.error}; is IPython installed (pip install "
                "'ddpp[course]')?"
            )

    def setup(self, code: str, seconds: float) -> Answer:
        """Run the instructor's setup, before anything of the submission's."""
        return self._ask({"do": "setup", "code": code, "solutions": mistakes.texts()}, seconds)

    def run(self, code: str, seconds: float) -> Answer:
        """Run code as a cell."""
        return self._ask({"do": "cell", "code": code}, seconds)

    def check(self, code: str, functions: list[str], values: list[str], seconds: float) -> Answer:
        """Run a check; only when it has ended, tell the process with which number it may report."""
        answer = self._ask(
            {"do": "check", "code": code, "functions": functions, "values": values}, seconds
        )
        if answer.error:
            return answer
        return self._ask({"do": "report", "number": secrets.token_hex(16)}, GRACE)

    def close(self) -> None:
        self._opened.close()

    def _ask(self, question: dict, seconds: float) -> Answer:
        """Return what the process answers, or what kept it from answering."""
        self._count += 1
        question |= {"question": self._count}
        with contextlib.suppress(OSError):  # it has ended: that is seen below
            body = json.dumps(question).encode()
            line = self._sign(body) + b" " + body if self._count > 1 else body
            write(self._requests, line + b"\n", seconds)
        late, now, found = False, time.monotonic(), b""
        looked, end = now, now + seconds
        while True:
            if select.select([self._answers], [], [], 0.1)[0]:
                part = os.read(self._answers, LONGEST)
                found += part
                if not part:
                    return self._dead(say("grader", "ended"))
                if found.endswith(b"\n") or len(found) > LONGEST:
                    return self._late(seconds) if late else self._read(found, question)
            # also after a part of an answer: who writes byte by byte must not stop the clock
            now = time.monotonic()
            if self._process.poll() is not None:
                return self._dead(say("grader", "ended"))
            if self.stopped.is_set():
                return self._dead(say("grader", "stopped"))
            if now - looked > 0.25:
                looked = now
                if too_much := self._too_much():
                    return self._dead(too_much)
            if now > end:
                if late:
                    return self._dead(say("grader", "stubborn", seconds=seconds))
                late, end = True, end + GRACE
                self._interrupt()

    def _read(self, line: bytes, question: dict) -> Answer:
        """Return the answer in a line, if this process made it for this question."""
        code, _, body = line.rstrip(b"\n").partition(b" ")
        if not hmac.compare_digest(code, self._sign(body)):
            return self._dead(say("grader", "wrote_into_pipe"))
        answer = json.loads(body)
        numbers = answer.pop("question"), answer.pop("number", None)
        if numbers != (question["question"], question.get("number")):
            return self._dead(say("grader", "other_question"))
        said = {
            name: _words(value) if isinstance(value, str) else value
            for name, value in answer.items()
        }
        return Answer(**cast(dict[str, Any], said))

    def _sign(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._key, digest_size=32).hexdigest().encode()

    def _late(self, seconds: float) -> Answer:
        return Answer(say("grader", "late", seconds=seconds))

    def _family(self) -> list[psutil.Process]:
        """Return the process, what it started, and what left its family but was seen in it."""
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self._process.pid)
            self._seen |= {
                process.pid: process for process in (first, *first.children(recursive=True))
            }
        return [process for process in self._seen.values() if process.is_running()]

    def _too_much(self) -> str:
        """Return what the family uses beyond its limits: in words, or nothing."""
        family, memory = self._family(), 0
        for process in family:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
        in_memory, on_disk = _without_folder(family)
        memory += in_memory
        if memory > 1.25 * self.limits.memory * 1e9:  # where the limit of each process did not hold
            return say("grader", "memory", most=self.limits.memory)
        if len(family) > enter.PROCESSES:
            return say("grader", "processes", most=enter.PROCESSES)
        if self.wall.alone:  # and the first process is outside, as is the second until it answers
            full = self._count > 1 and max(map(_files, family[1:]), default=0) > folders.FILES
        else:
            full = folders.size(self._work) + on_disk > wall.ROOM
        if full:
            return say("grader", "room", most=wall.ROOM / 1e9)
        return ""

    def _interrupt(self) -> None:
        """Interrupt the process as Ctrl-C does in a notebook.

        With bubblewrap it is the child of the process that was started.
        """
        family = self._family()[: 2 if self.wall.alone else 1]
        with contextlib.suppress(psutil.Error, IndexError):
            family[-1].send_signal(signal.SIGINT)

    def _dead(self, why: str) -> Answer:
        self._kill()
        return Answer(why, alive=False)

    def _kill(self) -> None:
        family = self._family()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()


def _words(text: str) -> str:
    """Return what a process says, as a report and a terminal can show it."""
    return "".join(c if c.isprintable() else " " for c in text[:1000])


def _pipe(*ends: contextlib.ExitStack) -> tuple[int, int]:
    """Open a pipe; each of its ends is closed by one of these."""
    pipe = os.pipe()
    for stack, end in zip(ends, pipe, strict=True):
        stack.callback(os.close, end)
    return pipe


def write(pipe: int, data: bytes, seconds: float) -> None:
    """Write all of the data, unless it takes more than so many seconds."""
    os.set_blocking(pipe, False)
    end = time.monotonic() + seconds
    while data and select.select([], [pipe], [], max(0, end - time.monotonic()))[1]:
        data = data[os.write(pipe, data) :]


def _without_folder(family: list[psutil.Process]) -> tuple[int, int]:
    """Return the bytes of these processes' open files that are in no folder: in memory, on a disk.

    The first were made by memfd_create, the second were removed from their folder. Each counts
    once. What is mapped of them counts as the process's own memory, too.
    """
    found: tuple[dict, dict] = {}, {}
    for process in family:
        places = []
        with contextlib.suppress(OSError):  # it has ended, or is not ours to see
            places = [*Path(f"/proc/{process.pid}/fd").iterdir()]
        for place in places:
            with contextlib.suppress(OSError):  # closed meanwhile
                file = os.stat(place)
                if stat.S_ISREG(file.st_mode) and not file.st_nlink:
                    on_disk = not os.readlink(place).startswith("/memfd:")
                    found[on_disk][file.st_dev, file.st_ino] = file.st_blocks * 512
    return sum(found[0].values()), sum(found[1].values())


def _files(process: psutil.Process) -> int:
    """Return how many files the folders in memory have that a process sees, open ones too.

    Empty files take memory of the kernel as well.
    """
    with contextlib.suppress(OSError):  # it has ended
        systems = [
            os.statvfs(f"/proc/{process.pid}/root{place}") for place in (wall.INSIDE, "/dev/shm")
        ]
        return sum(system.f_files - system.f_ffree for system in systems)
    return 0
