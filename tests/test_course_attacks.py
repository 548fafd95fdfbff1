"""What a submission may try: to reach what is not its own, and to be given points that it did not
earn.

Each is a notebook that is graded as any other. Behind the wall of bubblewrap, or of Landlock where
there are no namespaces; what the second does not stop is skipped there.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell
from small_course import best_wall, cell_of, make, solved

from ddpp import cli
from ddpp.foundation.errors import Error
from ddpp_course import enter, folders, grade, wall
from ddpp_course.session import Limits, Session, write

ROOT = Path(__file__).parents[1]
SETUP = """import torch
import ddpp
from ddpp import pruning
from ddpp_course import assignment1
from ddpp_course.checks import Mistake, ask"""
TASKS = [
    (
        "double",
        2,
        "def double(x):\n    return 2 * x",
        "if ask(double, 3) != 6:\n    raise Mistake('no double')",
    ),
    (
        "keep",
        2,
        "def keep(s, t):\n    return s * t > 0.6 * torch.maximum(s * s, t * t)",
        "s, t = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1.1, 1.0, 1.0])\nright = "
        "pruning.keep_mask(s, t, 0.6)\n"
        "if not torch.equal(ask(keep, s, t, forbid=(pruning,)), right):\n    raise Mistake('not "
        "the mask')",
    ),
    (
        "move",
        1,
        "def move(x, o):\n    return torch.stack([a.roll(tuple(b), (1, 2)) for a, b in zip(x, "
        "o.tolist())])",
        "x, o = torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[0, 0]])\n"
        "if not torch.equal(ask(move, x, o), assignment1._moved(x, o)):\n    raise Mistake('not "
        "moved')",
    ),
]
WRONG = (
    "def double(x):\n    return 7\ndef keep(s, t):\n    return s > 100\ndef move(x, o):\n    "
    "return x + 1"
)

# What reaches for the world outside, in one notebook: name -> (a cell, the error that stops it).
# What reads comes before what deletes, after which it would find nothing anyhow.
CLOSED = "FileNotFoundError|PermissionError"
WENT_ON = "Exception: went on"  # the last line of each of these cells
REACHES = {
    "tells a secret": ("raise Exception(open('{place}/secret').read())", CLOSED),
    "reads a secret elsewise": (
        "import torchvision\nraise "
        "Exception(bytes(torchvision.io.read_file('{place}/secret')).decode())",
        "RuntimeError",
    ),
    "tells the environment of the grader": (
        "import os\nraise Exception(open(f'/proc/{os.getppid()}/environ').read()[:250])",
        CLOSED,
    ),
    "reads the solutions": (
        "import torchvision\ndata = torchvision.io.read_file('{course}/source/tries/tries.ipynb')\n"
        "raise Exception(bytes(data).decode()[-250:])",
        "RuntimeError",
    ),
    "reads the wrong solutions of the project": (
        "import torchvision\nraise "
        "Exception(bytes(torchvision.io.read_file('{root}/tests/wrong.py')).decode()[:99])",
        "RuntimeError",
    ),
    "reads the solutions of the checks": (
        "import ddpp_course, torchvision\n"
        "folder = ddpp_course.__file__.removesuffix('__init__.py')\n"
        "data = torchvision.io.read_file(f'{folder}solutions/assignment1.toml')\n"
        "raise Exception(bytes(data).decode()[:250])",
        "RuntimeError",
    ),
    "calls home": (
        "from datetime import timedelta\nimport torch.distributed as d\n"
        "d.TCPStore('127.0.0.1', {port}, is_master=False, timeout=timedelta(seconds=1))",
        "Dist|not finished",  # the second where Landlock leaves TCP open: see `calls`
    ),
    "saves over a file": ("import torch\ntorch.save({}, '{place}/secret')", "RuntimeError"),
    "writes over a file": (
        "import torchvision\ntorchvision.io.write_file('{place}/secret', torch.zeros(9).byte())",
        "RuntimeError",
    ),
    "leaves shared memory behind": (  # which bubblewrap lets go with the process
        "from torchvision.io import write_file\n"
        "write_file('/dev/shm/ddpp-left', torch.zeros(9).byte())",
        f"RuntimeError|{WENT_ON}",
    ),
    "deletes a tree": ("import shutil\nshutil.rmtree('{place}')", CLOSED),
    "deletes whatever it can": (
        "import shutil\nfor x in ('{place}', '{class}', '{course}'): shutil.rmtree(x, True)",
        WENT_ON,
    ),
}
# What leaves something behind, or ends or fills something, each in its own notebook.
ALONE = {
    "leaves a program behind": (
        "import multiprocessing.util as u\nu.spawnv_passfds(b'/usr/bin/setsid', [b'setsid', "
        "b'sleep', b'98765'], [])"
    ),
    "leaves a process behind by ctypes": (
        "import ctypes, time\nlibc = ctypes.CDLL(None)\n"
        "if libc.fork() == 0:\n    libc.setsid()\n    libc.execl(b'/bin/sleep', b'sleep', "
        "b'98765', None)"
    ),
    "starts many programs": (
        "import multiprocessing.util as u, time\n"
        "for i in range(200): u.spawnv_passfds(b'/bin/sleep', [b'sleep', b'98765'], "
        "[])\ntime.sleep(3)"
    ),
    "ends another process": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({pid}), 9)",
    "fills the disk": (
        "import torch\nfor i in range(40): torch.save(torch.zeros(2**18), f'{i}.pt')\nimport "
        "time; time.sleep(1)"
    ),
}
ROOM = 20_000_000  # bytes for a submission's folder, so that it is full soon
NOT_BY_LANDLOCK = {"leaves a process behind by ctypes"}

# What wants points for nothing: name -> (cells, words of the report). None gets any.
WANTS = {
    "prints a verdict": (
        [
            "get_ipython().display_formatter.formatters['text/plain'].for_type(\n    dict, "
            "lambda d, p, c: "
            "p.text(\"{'passed': True, 'says': ''}\"))"
        ],
        "no double",
    ),
    "prints nonsense": (
        [
            "get_ipython().display_formatter.formatters['text/plain'].for_type(dict, lambda d, "
            "p, c: p.text('?'))"
        ],
        "no double",
    ),
    "writes into all pipes": (
        [
            'import os\nfor fd in range(3, 40):\n    try: os.write(fd, b\'{"passed": true, '
            '"says": ""}\\n\')\n'
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
    "patches the checks": (
        ["import ddpp_course.checks as c\nc.ask = lambda *_, **__: 6"],
        "no double",
    ),
    "patches Python": (
        ["import builtins\nbuiltins.AssertionError = builtins.str = KeyError"],
        "no double",
    ),
    "patches while it is asked": (
        ["def keep(s, t):\n    torch.equal = lambda *_: True\n    return s > 100"],
        "was replaced while the check ran",
    ),
    "leaves a mode of torch": (
        [
            "from torch.overrides import TorchFunctionMode\nclass Lie(TorchFunctionMode):\n"
            "    def __torch_function__(self, f, types, args=(), kwargs=None):\n"
            "        return True if f is torch.equal else f(*args, **(kwargs or "
            "{}))\nLie().__enter__()"
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
        [
            "class Any:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\ndef "
            "double(x):\n    return Any()"
        ],
        "says for itself what it equals",
    ),
    "a tensor equal to all": (
        [
            "class Any(torch.Tensor):\n    @classmethod\n    def __torch_function__(*_, **__):\n "
            "       return True\n"
            "def keep(s, t):\n    return torch.zeros(3).as_subclass(Any)"
        ],
        "not the mask",
    ),
    "calls ddpp": (
        ["def keep(s, t):\n    return ddpp.keep_mask(s, t, 0.6)"],
        "calls `ddpp.pruning.keep_mask`",
    ),
    "calls ddpp and hides it": (
        [
            "import sys\ndef keep(s, t):\n    sys.setprofile(None)\n    return ddpp.keep_mask(s, "
            "t, 0.6)"
        ],
        "",
    ),
    "calls ddpp in a thread": (
        [
            "import threading\ndef keep(s, t):\n    found = []\n    thread = "
            "threading.Thread(target=lambda: "
            "found.append(ddpp.keep_mask(s, t, 0.6)))\n    thread.start(); thread.join()\n    "
            "return found[0]"
        ],
        "",
    ),
    "calls ddpp in a thread from before": (
        [
            "import threading, queue\na, b = queue.Queue(), queue.Queue()\ndef work():\n    "
            "while True:\n"
            "        b.put(ddpp.keep_mask(*a.get(), 0.6))\nthreading.Thread(target=work, "
            "daemon=True).start()\n"
            "def keep(s, t):\n    a.put((s, t))\n    return b.get()"
        ],
        "still running",
    ),
    "takes the code of ddpp": (
        [
            "from types import FunctionType\nk = pruning.keep_mask\n"
            "mine = FunctionType(k.__code__, dict(k.__globals__, __name__='mine'), 'mine', "
            "k.__defaults__)\n"
            "def keep(s, t):\n    return mine(s, t, 0.6)"
        ],
        "the task is to write it yourself",
    ),
    "loads ddpp again": (
        [
            "import importlib.util as u\nspec = u.spec_from_file_location('mine', "
            "pruning.__file__)\n"
            "mine = u.module_from_spec(spec)\nspec.loader.exec_module(mine)\n"
            "def keep(s, t):\n    return mine.keep_mask(s, t, 0.6)"
        ],
        "the task is to write it yourself",
    ),
    "calls the checks": (
        ["def move(x, o):\n    return assignment1._moved(x, o)"],
        "calls `ddpp_course.assignment1._moved`",
    ),
    "calls the checks and hides them": (
        [
            "import sys\ndel "
            "sys.modules['ddpp_course.assignment1']\nassignment1.__dict__['__name__'] = 'mine'\n"
            "def move(x, o):\n    return assignment1._moved(x, o)"
        ],
        "the task is to write it yourself",
    ),
    "finds the grader from a class": (
        [
            "def below(c):\n    for s in type.__subclasses__(c):\n        yield s\n        yield "
            "from below(s)\n"
            "spaces = {id(f.__globals__): f.__globals__ for c in set(below(object)) for f in "
            "vars(c).values() "
            "if hasattr(f, '__globals__')}\n"
            "for s in [*spaces.values()]:\n    spaces |= {id(f.__globals__): f.__globals__ for f "
            "in [*s.values()] "
            "if hasattr(f, '__globals__')}\n"
            "mine = [s for s in spaces.values() if "
            "str(s.get('__name__')).startswith('ddpp_course')]\nfor s in mine:\n"
            "    s['ask'] = lambda f, *a, **k: 6\n    s['judge'] = s['_run'] = lambda *a: (True, "
            "'')\n"
            "    s['unwatched'] = s['changed'] = lambda: ''\n    s['guard'] = None\n"
            "def move(x, o):\n    return next(s for s in mine if '_moved' in s)['_moved'](x, o)"
        ],
        "no double",
    ),
    "calls the checks' own helper": (
        [
            "from torch import nn\nfound = [c for c in nn.Module.__subclasses__() if c.__name__ "
            "== '_Recorder']\n"
            "spaces = [vars(c)['forward'].__globals__ for c in found]\n"
            "moved = [s['_moved'] for s in spaces if '_moved' in s]\ndef move(x, o):\n    return "
            "moved[0](x, o)"
        ],
        "calls `ddpp_course.assignment1._moved`",
    ),
    "calls a solution of the checks": (
        [
            "from torch import nn\nfound = [c for c in nn.Module.__subclasses__() if c.__name__ "
            "== '_Recorder']\n"
            "spaces = [vars(c)['forward'].__globals__ for c in found]\n"
            "rows = [row for s in spaces for row in s['here']._mistakes.get('shift', ())]\n"
            "def move(x, o):\n    return rows[0][1].shift(x, o)"
        ],
        "calls `ddpp_course.mistakes.shift`",
    ),
    "looks back": (
        [
            "import sys\ndef keep(s, t):\n    f = sys._getframe()\n    while 'right' not in "
            "f.f_globals: f = f.f_back\n"
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
            "def keep(s, t):\n    try: 1 / 0\n    except ZeroDivisionError as e: f = "
            "e.__traceback__.tb_frame\n"
            "    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks back by a generator": (
        [
            "def keep(s, t):\n    def g():\n        yield this.gi_frame.f_back.f_back\n    this "
            "= g()\n"
            "    f = next(this)\n    while 'right' not in f.f_globals: f = f.f_back\n    return "
            "f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks back with logging": (
        [
            "import logging\ndef keep(s, t):\n    f = logging.currentframe()\n"
            "    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "is told of frames": (
        [
            "import logging, sys\nseen = []\ndef hook(event, values):\n"
            "    if event == 'sys._getframe': seen.append(values[0])\nsys.addaudithook(hook)",
            "def keep(s, t):\n    logging.warning('x')\n    f = seen[-1]\n"
            "    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']",
        ],
        "IndexError",
    ),
    "is told of frames by a thread": (
        [
            "import logging, sys, threading\nseen = []\ndef hook(event, values):\n"
            "    if event == 'sys._getframe': seen.append(values[0])\n"
            "thread = threading.Thread(target=sys.addaudithook, args=(hook,))\n"
            "thread.start(); thread.join()",
            "def keep(s, t):\n    logging.warning('x')\n    f = seen[-1]\n"
            "    while 'right' not in f.f_globals: f = f.f_back\n    return f.f_globals['right']",
        ],
        "IndexError",
    ),
    "rewrites what is asked of it": (
        [
            "import logging\ndef double(x):\n    f = logging.currentframe()\n"
            "    while not isinstance(f.f_locals.get('known'), dict): f = f.f_back\n"
            "    f.f_locals['known'].update(check=lambda **_: {}, "
            "report=lambda number: {'passed': True, 'number': number})"
        ],
        "cannot look into",
    ),
    "is told of frames by len": (
        [
            "import builtins\nlength, kept = len, []\ndef look(x):\n"
            "    builtins.len = length\n    for f in [*x.values()] if type(x) is dict else ():\n"
            "        while hasattr(f, 'f_back'):\n"
            "            if 'right' in f.f_globals: kept[-1].copy_(f.f_globals['right'])\n"
            "            f = f.f_back\n    return length(x)\n"
            "def keep(s, t):\n    kept.append(s > 100)\n    builtins.len = look\n"
            "    return kept[-1]"
        ],
        "`len` was replaced",
    ),
    "is told of the grader by id": (
        [
            "import builtins\nfrom types import SimpleNamespace\nreal, found = id, []\n"
            "class Any:\n    def __ne__(self, other):\n"
            "        for space, guard in found: space['guard'] = guard\n        return False\n"
            "fake = SimpleNamespace(asking=True, classes=[Any], changed=lambda: '')\n"
            "def look(x):\n    if type(x) is dict and 'unwatched' in x and 'guard' in x:\n"
            "        builtins.id = real\n        found.append((x, x['guard']))\n"
            "        x['guard'] = fake\n    return real(x)\n"
            "def double(x):\n    builtins.id = look\n    return Any()"
        ],
        "`id` was replaced",
    ),
    "takes the name of a library": (
        [
            "import builtins, codeop, json\n"
            "text = 'import sys\\ndef frame(): return sys._getframe(1)'\n"
            "class Text(str):\n    __eq__ = lambda *_: True\n"
            "    __getitem__ = lambda self, _: self\n"
            "class File:\n    __enter__ = lambda self: self\n    __exit__ = lambda *_: None\n"
            "    read = lambda self: Text()\nreal = builtins.open\ndef keep(s, t):\n"
            "    builtins.open, space = lambda *_: File(), {}\n"
            "    try: exec(codeop.compile_command(text, json.__file__, 'exec'), space)\n"
            "    finally: builtins.open = real\n"
            "    f = space['frame']()\n    while 'right' not in f.f_globals: f = f.f_back\n"
            "    return f.f_globals['right']"
        ],
        "cannot look into",
    ),
    "looks around": (
        [
            "import gc\ndef keep(s, t):\n    return next(d['right'] for d in gc.get_objects() if "
            "type(d) is dict and "
            "type(d.get('right')) is torch.Tensor)"
        ],
        "cannot look into",
    ),
    "looks at all threads": (
        [
            "import sys\ndef keep(s, t):\n    for f in sys._current_frames().values():\n        "
            "while f:\n"
            "            if 'right' in f.f_globals: return f.f_globals['right']\n            f = "
            "f.f_back"
        ],
        "cannot look into",
    ),
    "looks into its memory": (
        [
            "import ctypes\ndef keep(s, t):\n    ctypes.pythonapi.PyEval_GetFrame\n    return s "
            "> 100"
        ],
        "",
    ),
    "traces its checks": (
        [
            "import sys\nseen = []\ndef look(frame, event, _):\n    "
            "seen.append(frame.f_back)\nsys.settrace(look)",
            "def keep(s, t):\n    f = next(f for f in seen if f and 'right' in f.f_globals)\n"
            "    return f.f_globals['right']",
        ],
        "cannot look into",
    ),
}


TOGETHER = "reaches"
CELLS = {name: [code] for name, code in ALONE.items()}
CELLS |= {name: cells for name, (cells, _) in WANTS.items()}
CELLS[TOGETHER] = [f"{code}\nraise Exception('went on')" for code, _ in REACHES.values()]
BEST = best_wall()
if BEST == wall.NONE:  # on macOS and Windows, or in a container that has neither
    pytest.skip(wall.REFUSED, allow_module_level=True)


@dataclass
class After:
    """What is left when a class of attackers has been graded."""

    reports: dict
    changed: set  # files that are not as they were
    calls: list  # that reached a server outside
    alive: bool  # whether another process still is
    started: list  # processes that are still there


def attack(root, names):
    """Grade attackers as one class, with something to steal and to destroy beside it."""
    course = make(root / "course", "tries", SETUP, TASKS)
    place, folder, out = root / "srv", root / "class", root / "grades"
    for new in (place, folder, out):
        new.mkdir()
    (place / "secret").write_text("a-secret-word")
    (out / "by_hand.txt").write_text("mine")
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as server, _sleeper() as sleeper:
        threading.Thread(target=_listen, args=(server, calls), daemon=True).start()
        words = {
            "place": place,
            "class": folder,
            "course": course,
            "root": ROOT,
            "pid": sleeper.pid,
        }
        words["port"] = server.getsockname()[1]
        for name in names:
            (folder / f"{name}.ipynb").write_text(json.dumps(_attacker(course, name, words)))
        files = [path for path in root.rglob("*") if path.is_file()]
        before = {path: path.read_bytes() for path in files}
        reports = grade.grade_all(folder, course, out, limits=Limits(seconds=60), jobs=2)
        alive = sleeper.poll() is None
    changed = {
        path for path, data in before.items() if not path.exists() or path.read_bytes() != data
    }
    time.sleep(0.5)
    started = [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98765"]
    ]
    for process in started:
        process.kill()
    return After({report.submission: report for report in reports}, changed, calls, alive, started)


def _attacker(course, name, words):
    notebook = solved(course)
    if name in WANTS:
        for task in ("keep", "move"):
            cell_of(notebook, task).source = "pass"
        cell_of(notebook, "double").source = WRONG
    # at the beginning, the numbers of cells are those of what reaches
    at = 0 if name == TOGETHER else notebook.cells.index(cell_of(notebook, "move")) + 1
    for code in reversed(CELLS[name]):
        for word, value in words.items():
            code = code.replace(f"{{{word}}}", str(value))
        notebook.cells.insert(at, new_code_cell(code))
    return notebook


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpp_course.wall.ROOM", ROOM)
        left_out = NOT_BY_LANDLOCK if BEST == wall.LANDLOCK else ()
        names = [name for name in CELLS if name not in left_out]
        return attack(tmp_path_factory.mktemp("attacks"), names)


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


def _own_variable():
    """The start of a variable of the grader's environment, among those that an attacker tells."""
    text = Path("/proc/self/environ").read_bytes().decode(errors="replace")[:250]
    return max(text.split("\0"), key=len)[:30]  # one alone: a report shows no NUL


def _is_stopped(report, name):
    number = [*REACHES].index(name) + 1
    stops = f"cell {number} stopped: ({REACHES[name][1]})"
    assert any(re.match(stops, note) for note in report.notes), report.text()


def _finds_nothing(report):
    assert (report.refused, report.points) == ("", 5), report.text()
    own = _own_variable()
    assert len(own) > 5
    for secret in ("a-secret-word", own, '"nbformat"', "Wrong solutions of", "fit_zca"):
        assert secret not in report.text()


def _unharmed(after, walled):
    version = 9 if walled.alone else enter.landlock()
    assert after.changed == set()
    assert after.calls == [] or version < 4
    assert after.alive or version < 6
    assert not Path("/dev/shm/ddpp-left").exists()


@pytest.mark.parametrize("name", REACHES)
def test_what_reaches_outside_is_stopped(after, name):
    _is_stopped(after.reports[TOGETHER], name)


@pytest.mark.parametrize("name", [TOGETHER, *ALONE])
def test_what_reaches_outside_finds_nothing_there(after, name):
    if name not in after.reports:
        pytest.skip("Landlock does not stop this")
    _finds_nothing(after.reports[name])


def test_nothing_outside_was_changed_or_called_or_ended(after):
    _unharmed(after, BEST)


def test_nothing_that_was_started_outlives_its_grading(after):
    assert after.started == []


@pytest.mark.parametrize("name", WANTS)
def test_what_was_not_earned_is_not_given(after, name):
    report = after.reports[name]
    assert (report.refused, report.points) == ("", 0), report.text()
    assert WANTS[name][1] in report.text()


def test_landlock_closes_the_files_too(tmp_path, monkeypatch):
    if not enter.landlock():
        pytest.skip("this system has no Landlock")
    monkeypatch.setattr(wall, "best", lambda: wall.LANDLOCK)
    monkeypatch.setattr(wall, "ROOM", ROOM)
    after = attack(tmp_path, [name for name in (TOGETHER, *ALONE) if name not in NOT_BY_LANDLOCK])
    for name in REACHES:
        _is_stopped(after.reports[TOGETHER], name)
    for report in after.reports.values():
        _finds_nothing(report)
        assert "Landlock" in report.text()
    _unharmed(after, wall.LANDLOCK)
    assert after.started == []


# The walls themselves, and the pipes through them


def test_a_question_that_the_grader_did_not_sign_ends_the_process():
    pipes = requests, questions, replies, answers = *os.pipe(), *os.pipe()
    arguments = [sys.executable, "-P", enter.__file__, str(requests), str(answers)]
    process = subprocess.Popen(
        arguments, pass_fds=(requests, answers), env=wall.environment(Path("/tmp"))
    )
    begin = {"key": "00" * 32, "memory": 4 * 10**9, "alone": False, "landlock": None}
    os.write(questions, json.dumps(begin).encode() + b"\n")
    code, _, body = os.read(replies, 10_000).partition(b" ")
    assert (len(code), json.loads(body)) == (64, {"question": 1})
    os.write(questions, b"0" * 64 + b' {"do": "cell", "question": 2, "code": "print(1)"}\n')
    assert process.wait(60) == 0
    for pipe in pipes:
        os.close(pipe)


def test_an_answer_that_the_process_did_not_sign_is_none():
    session = Session(Limits(seconds=9), BEST)
    forged = (
        "import os\nfor fd in range(3, 99):\n    try: os.write(fd, b'0' * 64 + b' "
        '{"question": 2}\\n\')\n'
    )
    try:
        answer = session.run(forged + "    except OSError: pass\nimport time; time.sleep(9)", 9)
    finally:
        session.close()
    assert (answer.passed, answer.alive) == (False, False)
    assert "wrote into the pipe" in answer.error


DRIBBLES = """import os, signal, stat, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pipes, end = [], time.monotonic() + 12
for fd in range(3, 40):
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode): pipes.append(fd)
    except OSError: pass
while time.monotonic() < end:
    for fd in pipes:
        try: os.write(fd, b'x')
        except OSError: pass
    time.sleep(0.05)"""


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr("ddpp_course.session.GRACE", 1)
    session = Session(Limits(seconds=9, memory=1.0), BEST)
    yield session
    session.close()


def test_a_submission_that_dribbles_bytes_is_still_stopped_in_time(session):
    begun = time.monotonic()
    answer = session.run(DRIBBLES, 1)
    assert "could not be interrupted" in answer.error
    assert time.monotonic() - begun < 6  # 1 s, and 1 s of grace


def test_ctrl_c_stops_a_submission_that_dribbles_bytes(session, monkeypatch):
    stopped = threading.Event()
    monkeypatch.setattr(Session, "stopped", stopped)
    threading.Timer(1, stopped.set).start()
    begun = time.monotonic()
    assert session.run(DRIBBLES, 30).error == "grading was stopped"
    assert time.monotonic() - begun < 6


def test_a_question_that_is_read_byte_by_byte_has_one_deadline():
    reader, writer = os.pipe()
    ended = threading.Event()

    def read_slowly():
        while not ended.wait(0.2):
            os.read(reader, 2**12)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    begun = time.monotonic()
    try:
        write(writer, b"x" * 2**20, 1)
        assert time.monotonic() - begun < 3
    finally:
        ended.set()
        thread.join()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "fills",
    [
        "for _ in range(30): os.write(file, bytes(10**6))",  # a file that is open, and removed
        "for i in range(2000): open(str(i), 'w')",
    ],
)
def test_files_that_have_no_folder_or_no_bytes_count_behind_landlock(monkeypatch, fills):
    if not enter.landlock():
        pytest.skip("this system has no Landlock")
    monkeypatch.setattr(wall, "ROOM", ROOM)
    monkeypatch.setattr("ddpp_course.folders.FILES", 1000)
    session = Session(Limits(seconds=9), wall.LANDLOCK)
    code = f"import os, time\nfile = os.open('x', 66)\nos.remove('x')\n{fills}\ntime.sleep(3)"
    try:
        assert "very many files, into its folder" in session.run(code, 9).error
    finally:
        session.close()


def test_memory_that_no_process_and_no_folder_would_show_is_refused(session):
    if os.uname().machine not in enter.UNSEEN:
        pytest.skip("there is no filter for this machine")
    refused = "PermissionError: [Errno 1] Operation not permitted"
    assert session.run("import os\nos.memfd_create('x')", 9).error == refused
    shared = "from multiprocessing.shared_memory import SharedMemory\nSharedMemory(None, True, 99)"
    assert session.run(f"import torch\n{shared}\ntorch.ones(9).share_memory_()", 9).error == ""


@pytest.mark.parametrize(
    "asks",
    [
        "mmap.mmap(-1, 99)",
        "mmap.mmap(os.open('/dev/zero', os.O_RDONLY), 99, prot=mmap.PROT_READ)",
    ],
)
@pytest.mark.parametrize("walls", [BEST, wall.LANDLOCK], ids=lambda walls: walls.name)
def test_memory_that_stays_when_no_process_shows_it_is_refused(walls, asks):
    if os.uname().machine not in enter.UNSEEN or (walls == wall.LANDLOCK and not enter.landlock()):
        pytest.skip("this system has no Landlock, or there is no filter for this machine")
    session = Session(Limits(seconds=60), walls)
    private = "mmap.mmap(-1, 99, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).write(b'x')"
    of_file = "open('x', 'wb').write(b'x')\nmmap.mmap(os.open('x', os.O_RDWR), 1).write(b'y')"
    try:
        assert session.run(f"import mmap, os\n{private}\n{of_file}", 60).error == ""
        assert "PermissionError" in session.run(f"import mmap, os\n{asks}", 60).error
    finally:
        session.close()


@contextlib.contextmanager
def _as_anybody(folder):
    """As a user who may not list every folder."""
    if os.geteuid():
        yield
        return
    for place in (folder, *folder.rglob("*")):
        os.chown(place, 65534, 65534, follow_symlinks=False)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place():
    """A folder where anybody may come."""
    place = Path(tempfile.mkdtemp())
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_folders_that_cannot_be_walked_through_count_as_full_and_are_removed(place, tmp_path):
    (tmp_path / "kept").touch()
    (deep := place / "deep").mkdir()
    (closed := place / "closed").mkdir()
    (closed / "d").mkdir(0o300)
    (closed / "d" / "x").touch()
    (closed / "link").symlink_to(tmp_path)
    assert folders.size(deep) == 0
    with _as_anybody(place):
        assert folders.size(closed) > wall.ROOM
        for folder, name in ((deep, "d"), (place, "x" * 200)):
            home = os.getcwd()
            (folder / "in").mkdir()
            os.chdir(folder / "in")
            for _ in range(1500):
                os.mkdir(name)
                os.chdir(name)
            os.chdir(home)
            assert folders.size(folder / "in") > wall.ROOM
            folders.remove(folder / "in")
        folders.remove(closed)
    assert [*place.rglob("*")] == [deep]
    assert [*tmp_path.iterdir()] == [tmp_path / "kept"]


def test_a_deep_folder_of_a_submission_leaves_nothing_behind(place, monkeypatch):
    if not enter.landlock():
        pytest.skip("this system has no Landlock")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    session = Session(Limits(seconds=60), wall.LANDLOCK)
    code = "import os, time\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\n"
    try:
        assert "very many files, into its folder" in session.run(f"{code}time.sleep(3)", 60).error
    finally:
        session.close()
    assert [*place.iterdir()] == []


def test_a_folder_that_cannot_be_removed_is_named_and_stops_nobody(place, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(place))
    (left := place / f"{folders.FOLDER}left").mkdir()
    (left / "x").touch()
    os.utime(left, (1e9, 1e9))
    with monkeypatch.context() as patch:
        patch.setattr(folders, "LONG", -1)
        folders.sweep()
    assert f"the folder {left} of a submission is left" in capsys.readouterr().err
    os.utime(left, (1e9, 1e9))
    folders.sweep()
    assert [*place.iterdir()] == []


def test_a_folder_that_is_hidden_takes_no_files(session):
    if not BEST.alone:
        pytest.skip("Landlock hides no folder")
    place = wall.COURSE / "solutions" / "x"
    assert "Read-only file system" in session.run(f"open({str(place)!r}, 'w')", 9).error


def test_where_no_wall_works_nothing_runs_and_the_ways_out_are_named(tmp_path, monkeypatch, capsys):
    course = make(tmp_path / "course", "tries", SETUP, TASKS[:1])
    path = tmp_path / "ann.ipynb"
    path.write_text(json.dumps(solved(course)))
    monkeypatch.setattr(wall, "works", lambda _: False)
    wall.best.cache_clear()
    monkeypatch.chdir(tmp_path)
    try:
        assert cli.main(["grade", str(path), "--assignments", str(course)]) == 1
        said = capsys.readouterr().err
        assert "Containerfile" in said
        assert "--trust-submissions" in said
        assert (
            cli.main(["grade", str(path), "--assignments", str(course), "--trust-submissions"]) == 0
        )
        assert "nothing confined this submission" in capsys.readouterr().out
    finally:
        wall.best.cache_clear()


def test_what_a_submission_sees_has_no_checkout_home_or_temporary_folder_in_it():
    shown = wall.libraries()
    assert Path(grade.__file__).parent in shown
    for hidden in (
        ROOT,
        ROOT / "tests",
        ROOT / "assignments",
        Path.home(),
        Path("/tmp"),
        Path("/etc"),
        Path("/"),
    ):
        assert not any(hidden.is_relative_to(path) for path in shown), hidden


def test_course_files_among_the_libraries_are_hidden(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(wall, "libraries", lambda: [tmp_path, tmp_path / "a" / "venv"])
    command = " ".join(wall.Wall("bubblewrap", program="bwrap").command([], (tmp_path / "a",), {}))
    at = [command.index(f"{what} {tmp_path}{where} ") for what, where in _ORDER]
    assert at == sorted(at)
    with pytest.raises(Error, match="Landlock cannot hide"):
        wall.LANDLOCK.rules(tmp_path, (tmp_path / "a",))


def test_a_process_that_cannot_begin_leaves_nothing_open(tmp_path, monkeypatch):
    monkeypatch.setattr(wall, "libraries", lambda: [tmp_path])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nowhere = wall.Wall("bubblewrap", program=str(tmp_path / "bwrap"))
    before = os.listdir("/proc/self/fd")
    for walls, error in ((wall.LANDLOCK, wall.CourseError), (nowhere, FileNotFoundError)):
        with pytest.raises(error):
            Session(Limits(), walls, (tmp_path / "a",))
        assert os.listdir("/proc/self/fd") == before
        assert [*tmp_path.iterdir()] == []


_ORDER = (("--ro-bind", ""), ("--tmpfs", "/a"), ("--ro-bind", "/a/venv"))


def test_the_container_file_copies_and_calls_what_there_is():
    lines = [
        line.split()
        for line in (ROOT / "Containerfile").read_text().splitlines()
        if line[:1].isupper()
    ]
    copied = [path for line in lines if line[0] == "COPY" for path in line[1:-1]]
    assert {"ddpp", "pyproject.toml", "assignments/source"} <= set(copied)
    assert [path for path in copied if not (ROOT / path).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied)
    assert "course" in project["optional-dependencies"]
    (entry,) = [json.loads(" ".join(line[1:])) for line in lines if line[0] == "ENTRYPOINT"]
    assert entry[0] in project["scripts"]
    with pytest.raises(SystemExit) as end:
        cli.main([*entry[1:], "--help"])
    assert end.value.code == 0


def test_the_keys_that_the_kernel_keeps_for_the_grader_are_refused():
    if os.uname().machine not in enter.UNSEEN:
        pytest.skip("there is no filter for this machine")
    code = (
        f"import ctypes, sys\nsys.path.insert(0, {str(wall.COURSE)!r})\nimport enter, os\n"
        "enter.filter_calls(modes=False)\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for number in enter.UNSEEN[os.uname().machine][2][-3:]:\n"
        "    print(libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "-1 1\n" * 3, done.stderr


def test_modes_and_times_of_files_stay_behind_landlock(tmp_path):
    if not enter.landlock() or os.uname().machine not in enter.UNSEEN:
        pytest.skip("this system has no Landlock, or there is no filter for this machine")
    (victim := tmp_path / "id_rsa").write_text("key")
    victim.chmod(0o600)
    before = victim.stat()
    code = (
        f"import os, shutil\nfile = {str(victim)!r}\nos.chmod(file, 0o666)\n"
        "os.utime(file, (9, 9))\nos.chown(file, 9, 9)\nos.setxattr(file, 'user.x', b'1')\n"
        "open('a', 'w').write('x')\nshutil.copy2('a', 'b')\nassert open('b').read() == 'x'"
    )
    session = Session(Limits(seconds=60), wall.LANDLOCK)
    try:
        assert session.run(code, 60).error == ""
    finally:
        session.close()
    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime) == (
        *(before.st_mode, before.st_uid, before.st_mtime),
    )
    with contextlib.suppress(OSError):  # of a file system without attributes
        assert "user.x" not in os.listxattr(victim)


def test_memory_of_the_kernel_has_limits_too(monkeypatch):
    session = Session(Limits(seconds=60), BEST)
    many = "import socket, time\nkept = [socket.socketpair() for _ in range(200)]"
    try:
        assert "Too many open files" in session.run(many, 60).error
        if BEST.alone:  # behind Landlock it is a test of its own
            monkeypatch.setattr("ddpp_course.folders.FILES", 1000)
            empty = "import time\nfor i in range(2000): open(str(i), 'w').close()\ntime.sleep(9)"
            assert "very many files" in session.run(empty, 60).error
    finally:
        session.close()
