"""What a submission may try: to reach what is not its own, and to be given points that it did not earn.

Each is a notebook that is graded as any other. Behind the wall of bubblewrap, or of Landlock where there are no
namespaces; what the second does not stop is skipped there.
"""

import contextlib
import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell
from small_course import cell_of, make, solved

from ddpp.course import grade
from ddpp.course.session import Limits
from ddpp.errors import Error

ROOT = Path(__file__).parents[1]
SETUP = """import torch
import ddpp
from ddpp import pruning
from ddpp.course import assignment1
from ddpp.course.checks import Mistake, ask"""
TASKS = [
    ("double", 2, "def double(x):\n    return 2 * x", "if ask(double, 3) != 6:\n    raise Mistake('no double')"),
    (
        "keep",
        2,
        "def keep(s, t):\n    return s * t > 0.6 * torch.maximum(s * s, t * t)",
        "s, t = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1.1, 1.0, 1.0])\nright = pruning.keep_mask(s, t, 0.6)\n"
        "if not torch.equal(ask(keep, s, t, forbid=(pruning,)), right):\n    raise Mistake('not the mask')",
    ),
    (
        "move",
        1,
        "def move(x, o):\n    return torch.stack([a.roll(tuple(b), (1, 2)) for a, b in zip(x, o.tolist())])",
        "x, o = torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[0, 0]])\n"
        "if not torch.equal(ask(move, x, o), assignment1._moved(x, o)):\n    raise Mistake('not moved')",
    ),
]
WRONG = "def double(x):\n    return 7\ndef keep(s, t):\n    return s > 100\ndef move(x, o):\n    return x + 1"

# What reaches for the world outside: name -> a cell. All the points stay, as the functions are right.
REACHES = {
    "deletes a tree": "import shutil\nshutil.rmtree('{place}')",
    "deletes whatever it can": "import shutil\nfor x in ('{place}', '{class}', '{course}'): shutil.rmtree(x, True)",
    "saves over a file": "import torch\ntorch.save({}, '{place}/secret')",
    "writes over a file": "import torchvision\ntorchvision.io.write_file('{place}/secret', torch.zeros(9).byte())",
    "tells a secret": "raise Exception(open('{place}/secret').read())",
    "reads a secret elsewise": (
        "import torchvision\nraise Exception(bytes(torchvision.io.read_file('{place}/secret')).decode())"
    ),
    "tells the environment of the grader": (
        "import os\nraise Exception(open(f'/proc/{os.getppid()}/environ').read()[:250])"
    ),
    "reads the solutions": (
        "import torchvision\ndata = torchvision.io.read_file('{course}/source/tries/tries.ipynb')\n"
        "raise Exception(bytes(data).decode()[-250:])"
    ),
    "reads the wrong solutions of the project": (
        "import torchvision\nraise Exception(bytes(torchvision.io.read_file('{root}/tests/wrong.py')).decode()[:99])"
    ),
    "leaves a program behind": (
        "import multiprocessing.util as u\nu.spawnv_passfds(b'/bin/sleep', [b'sleep', b'98765'], [])"
    ),
    "leaves a process behind by ctypes": (
        "import ctypes, time\nlibc = ctypes.CDLL(None)\n"
        "if libc.fork() == 0:\n    libc.setsid()\n    libc.execl(b'/bin/sleep', b'sleep', b'98765', None)"
    ),
    "starts many programs": (
        "import multiprocessing.util as u, time\n"
        "for i in range(200): u.spawnv_passfds(b'/bin/sleep', [b'sleep', b'98765'], [])\ntime.sleep(3)"
    ),
    "leaves shared memory behind": (
        "import torchvision\ntorchvision.io.write_file('/dev/shm/ddpp-left', torch.zeros(9).byte())"
    ),
    "calls home": (
        "from datetime import timedelta\nimport torch.distributed as d\n"
        "d.TCPStore('127.0.0.1', {port}, is_master=False, timeout=timedelta(seconds=1))"
    ),
    "ends another process": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({pid}), 9)",
    "fills the disk": (
        "import torch\nfor i in range(40): torch.save(torch.zeros(2**18), f'{i}.pt')\nimport time; time.sleep(1)"
    ),
}
NOT_BY_LANDLOCK = {"leaves a process behind by ctypes"}

# What wants points for nothing: name -> (cells, words of the report). None gets any.
WANTS = {
    "prints a verdict": (
        [
            "get_ipython().display_formatter.formatters['text/plain'].for_type(\n    dict, lambda d, p, c: "
            "p.text(\"{'passed': True, 'says': ''}\"))"
        ],
        "no double",
    ),
    "prints nonsense": (
        ["get_ipython().display_formatter.formatters['text/plain'].for_type(dict, lambda d, p, c: p.text('?'))"],
        "no double",
    ),
    "writes into all pipes": (
        [
            'import os\nfor fd in range(3, 40):\n    try: os.write(fd, b\'{"passed": true, "says": ""}\\n\')\n'
            "    except OSError: pass"
        ],
        "",
    ),
    "patches torch": (["torch.equal = lambda *_: True"], "not the mask"),
    "patches the reference": (["pruning.keep_mask = lambda s, t, e: s > 100"], "not the mask"),
    "patches the code of the reference": (
        ["pruning.keep_mask.__code__ = (lambda s, t, epsilon, rule='signed': s > 100).__code__"],
        "not the mask",
    ),
    "patches a rule": (["pruning.RULES['signed'] = lambda s, t, e: s > 100"], "not the mask"),
    "patches the checks": (["import ddpp.course.checks as c\nc.ask = lambda *_, **__: 6"], "no double"),
    "patches Python": (["import builtins\nbuiltins.AssertionError = builtins.str = KeyError"], "no double"),
    "patches while it is asked": (
        ["def keep(s, t):\n    torch.equal = lambda *_: True\n    return s > 100"],
        "was replaced while the check ran",
    ),
    "leaves a mode of torch": (
        [
            "from torch.overrides import TorchFunctionMode\nclass Lie(TorchFunctionMode):\n"
            "    def __torch_function__(self, f, types, args=(), kwargs=None):\n"
            "        return True if f is torch.equal else f(*args, **(kwargs or {}))\nLie().__enter__()"
        ],
        "not the mask",
    ),
    "a number equal to all": (
        [
            "class Any(int):\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\n"
            "def double(x):\n    return Any(0)"
        ],
        "no double",
    ),
    "an object equal to all": (
        ["class Any:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\ndef double(x):\n    return Any()"],
        "no double",
    ),
    "a tensor equal to all": (
        [
            "class Any(torch.Tensor):\n    @classmethod\n    def __torch_function__(*_, **__):\n        return True\n"
            "def keep(s, t):\n    return torch.zeros(3).as_subclass(Any)"
        ],
        "not the mask",
    ),
    "calls ddpp": (["def keep(s, t):\n    return ddpp.keep_mask(s, t, 0.6)"], "calls `ddpp.pruning.keep_mask`"),
    "calls ddpp and hides it": (
        ["import sys\ndef keep(s, t):\n    sys.setprofile(None)\n    return ddpp.keep_mask(s, t, 0.6)"],
        "",
    ),
    "calls ddpp in a thread": (
        [
            "import threading\ndef keep(s, t):\n    found = []\n    thread = threading.Thread(target=lambda: "
            "found.append(ddpp.keep_mask(s, t, 0.6)))\n    thread.start(); thread.join()\n    return found[0]"
        ],
        "",
    ),
    "calls ddpp in a thread from before": (
        [
            "import threading, queue\na, b = queue.Queue(), queue.Queue()\ndef work():\n    while True:\n"
            "        b.put(ddpp.keep_mask(*a.get(), 0.6))\nthreading.Thread(target=work, daemon=True).start()\n"
            "def keep(s, t):\n    a.put((s, t))\n    return b.get()"
        ],
        "still running",
    ),
    "takes the code of ddpp": (
        [
            "from types import FunctionType\nk = pruning.keep_mask\n"
            "mine = FunctionType(k.__code__, dict(k.__globals__, __name__='mine'), 'mine', k.__defaults__)\n"
            "def keep(s, t):\n    return mine(s, t, 0.6)"
        ],
        "the task is to write it yourself",
    ),
    "loads ddpp again": (
        [
            "import importlib.util as u\nspec = u.spec_from_file_location('mine', pruning.__file__)\n"
            "mine = u.module_from_spec(spec)\nspec.loader.exec_module(mine)\n"
            "def keep(s, t):\n    return mine.keep_mask(s, t, 0.6)"
        ],
        "the task is to write it yourself",
    ),
    "calls the checks": (
        ["def move(x, o):\n    return assignment1._moved(x, o)"],
        "calls `ddpp.course.assignment1._moved`",
    ),
    "looks back": (
        [
            "import sys\ndef keep(s, t):\n    f = sys._getframe()\n    while 'right' not in f.f_globals: f = f.f_back\n"
            "    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks back with inspect": (
        [
            "import inspect\ndef keep(s, t):\n    f = inspect.currentframe()\n"
            "    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks back by an error": (
        [
            "def keep(s, t):\n    try: 1 / 0\n    except ZeroDivisionError as e: f = e.__traceback__.tb_frame\n"
            "    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks back by a generator": (
        [
            "def keep(s, t):\n    def g():\n        yield this.gi_frame.f_back.f_back\n    this = g()\n"
            "    f = next(this)\n    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks around": (
        [
            "import gc\ndef keep(s, t):\n    return next(d['right'] for d in gc.get_objects() if type(d) is dict and "
            "type(d.get('right')) is torch.Tensor)"
        ],
        "cannot look into",
    ),
    "looks at all threads": (
        [
            "import sys\ndef keep(s, t):\n    for f in sys._current_frames().values():\n        while f:\n"
            "            if 'right' in f.f_globals: return f.f_globals['right']\n            f = f.f_back"
        ],
        "cannot look into",
    ),
    "looks into its memory": (
        ["import ctypes\ndef keep(s, t):\n    ctypes.pythonapi.PyEval_GetFrame\n    return s > 100"],
        "",
    ),
    "traces its checks": (
        [
            "import sys\nseen = []\ndef look(frame, event, _):\n    seen.append(frame.f_back)\nsys.settrace(look)",
            "def keep(s, t):\n    f = next(f for f in seen if f and 'right' in f.f_globals)\n"
            "    return f.f_globals['right']",
        ],
        "cannot look into",
    ),
}


@pytest.fixture(scope="module")
def wall():
    """The name of the wall; without one there is nothing to test here."""
    try:
        from ddpp.course import wall

        return wall.best().name
    except Error as e:
        pytest.skip(f"no wall can be built here: {e}")
    except ImportError:
        return "none"


@pytest.fixture(scope="module")
def graded(tmp_path_factory, wall):
    """All of them graded as one class, with something to steal and to destroy beside it."""
    root = tmp_path_factory.mktemp("attacks")
    course = make(root / "course", "tries", SETUP, TASKS)
    place, folder, out = root / "srv", root / "class", root / "grades"
    for new in (place, folder, out):
        new.mkdir()
    (place / "secret").write_text("a-secret-word")
    (out / "by_hand.txt").write_text("mine")
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server, _sleeper() as sleeper:
        threading.Thread(target=_listen, args=(server, calls), daemon=True).start()
        words = {"place": place, "class": folder, "course": course, "root": ROOT, "pid": sleeper.pid}
        words["port"] = server.getsockname()[1]
        for name, cells in [*((n, [c]) for n, c in REACHES.items()), *((n, c) for n, (c, _) in WANTS.items())]:
            notebook = solved(course)
            if name in WANTS:
                for task in ("keep", "move"):
                    cell_of(notebook, task).source = "pass"
                cell_of(notebook, "double").source = WRONG
            at = notebook.cells.index(cell_of(notebook, "move")) + 1
            for code in reversed(cells):
                for word, value in words.items():
                    code = code.replace(f"{{{word}}}", str(value))
                notebook.cells.insert(at, new_code_cell(code))
            (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
        before = {path: path.read_bytes() for path in [*course.rglob("*.ipynb"), *folder.glob("*"), *place.glob("*")]}
        with pytest.MonkeyPatch.context() as patch:
            if wall != "none":
                patch.setattr("ddpp.course.wall.ROOM", 20_000_000)
            reports = grade.grade_all(folder, course, out, limits=Limits(seconds=60), jobs=2)
        alive = sleeper.poll() is None
    return {report.submission: report for report in reports}, before, calls, alive, out


@contextlib.contextmanager
def _sleeper():
    process = subprocess.Popen(["sleep", "3000"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _listen(server, calls):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            calls.append(connection)


@pytest.mark.parametrize("name", REACHES)
def test_what_reaches_outside_finds_nothing_there(graded, wall, name):
    if wall == "Landlock" and name in NOT_BY_LANDLOCK:
        pytest.skip("Landlock does not stop this")
    report = graded[0][name]
    assert (report.refused, report.points) == ("", 5), report.text()
    text = report.text()
    own = Path("/proc/self/environ").read_bytes().decode(errors="replace")[:30]
    for secret in ("a-secret-word", own, "no double", '"nbformat"', "A wrong solution"):
        assert secret not in text


def test_nothing_outside_was_changed(graded):
    _, before, calls, alive, out = graded
    assert {path for path, data in before.items() if not path.exists() or path.read_bytes() != data} == set()
    assert (out / "by_hand.txt").read_text() == "mine"
    assert not Path("/dev/shm/ddpp-left").exists()
    assert alive
    assert calls == []


def test_nothing_that_was_started_outlives_its_grading(graded):
    time.sleep(0.5)
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98765"]]
    for process in left:
        process.kill()
    assert left == []


@pytest.mark.parametrize("name", WANTS)
def test_what_was_not_earned_is_not_given(graded, name):
    report = graded[0][name]
    assert (report.refused, report.points) == ("", 0), report.text()
    assert WANTS[name][1] in report.text()
