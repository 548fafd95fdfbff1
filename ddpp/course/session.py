"""A Jupyter kernel of its own for one submission, watched from outside: time, memory, and whether it still lives."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import psutil
import zmq
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session as Messages

from ddpp.errors import Error

KEEP = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")  # of the environment: no secrets
GRACE = 5  # seconds that a cell has to end after it was interrupted
START = 120  # seconds that a kernel has to start


@dataclass(frozen=True)
class Limits:
    """What a submission may use."""

    seconds: float | None = None  # for a cell, or a check; None: what the assignment asks for
    memory: float = 4.0  # GB

    @property
    def total(self) -> float:
        """Seconds for all cells and checks together."""
        return 5 * self.seconds


@dataclass(frozen=True)
class Answer:
    """What became of a piece of code. alive: whether the kernel still is; error: in words, empty if there was none."""

    error: str = ""
    alive: bool = True
    value: str = ""  # repr of the expression asked for


class Session:
    """A kernel in a folder of its own, which goes when the session is closed."""

    stopped = threading.Event()  # set when grading is broken off: no session runs on

    def __init__(self, limits: Limits, closed: tuple[Path, ...]):
        self.limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="ddpp-", ignore_cleanup_errors=True)
        work = Path(self._folder.name)
        connection = str(work / "kernel.json")
        key = uuid.uuid4().hex.encode()
        _, ports = write_connection_file(connection, ip=str(work / "k"), key=key, transport="ipc")
        places = {name: str(work) for name in ("HOME", "TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
        environment = {name: os.environ[name] for name in KEEP if name in os.environ} | places
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": matplotlib.get_cachedir(),  # its list of fonts takes seconds to make
            "OMP_NUM_THREADS": "1",  # one core each: a class is graded side by side
            "JPY_PARENT_PID": str(os.getpid()),  # the kernel ends with its grader
        }
        memory = str(int(limits.memory * 1e9))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ddpp.course.kernel", connection, memory, *map(str, closed)],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._messages = Messages(key=key)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(f"ipc://{ports['ip']}-{ports['shell_port']}")  # outputs are not listened to, and so lost
        started = self._ask("kernel_info_request", {}, START)
        if isinstance(started, Answer):
            self.close()
            raise Error(f"no kernel to grade in: {started.error}; is ipykernel installed, and does it start?")

    def run(self, code: str, seconds: float, expression: str | None = None) -> Answer:
        """Run code as a cell, then evaluate the expression, within so many seconds."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": False}
        content["user_expressions"] = {"value": expression} if expression else {}
        reply = self._ask("execute_request", content, seconds)
        if isinstance(reply, Answer):
            return reply
        if reply["status"] == "error":
            return Answer(_words(reply["ename"], reply["evalue"]))
        found = reply.get("user_expressions", {}).get("value", {})
        if found.get("status") == "error":
            return Answer(_words(found["ename"], found["evalue"]))
        return Answer(value=found.get("data", {}).get("text/plain", ""))

    def close(self) -> None:
        self._kill()
        self._context.destroy(linger=0)
        self._folder.cleanup()

    def _ask(self, kind: str, content: dict, seconds: float) -> dict | Answer:
        """What the kernel replies; an Answer if it does not."""
        asked = self._messages.send(self._socket, kind, content)["msg_id"]
        late, end = False, time.monotonic() + seconds
        while True:
            if self._socket.poll(100):
                _, parts = self._messages.feed_identities(self._socket.recv_multipart())
                reply = self._messages.deserialize(parts)
                if reply["parent_header"].get("msg_id") == asked:
                    never = f"not finished after {seconds:.0f} s: is there a loop without end?"
                    return Answer(never) if late else reply["content"]
                continue
            if self._process.poll() is not None or self.stopped.is_set():
                return self._dead("it ended the kernel")
            if self._memory() > 1.25 * self.limits.memory * 1e9:  # where the kernel's own limit did not hold
                return self._dead(f"it needed more than {self.limits.memory:g} GB of memory")
            if time.monotonic() > end:
                if late:
                    return self._dead(f"not finished after {seconds:.0f} s, and it could not be interrupted")
                late, end = True, end + GRACE
                self._process.send_signal(signal.SIGINT)

    def _memory(self) -> int:
        """Bytes in use."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self._process.pid).memory_info().rss
        return 0

    def _dead(self, why: str) -> Answer:
        self._kill()
        return Answer(why, alive=False)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _words(name: str, value: str) -> str:
    value = " ".join(value.split())
    return f"{name}: {value[:300]}" if value else name
