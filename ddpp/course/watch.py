"""Whose code does what: library functions that a task forbids, and a submission that looks into its checks.

While a student's function runs, the forbidden functions are traps, and calls of their code by another way are seen.
In the grader's process more is watched: frames, threads, ctypes. That makes lying expensive; it is no wall.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType

PROGRAMS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.sendto"}
FRAMES = {"sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace", "sys.setprofile"}
FRAMES |= {"gc.get_objects", "gc.get_referrers", "gc.get_referents", "code.__new__"}
OF_OBJECTS = {"tb_frame", "gi_frame", "cr_frame", "ag_frame"}
THREADS = {"_thread.start_new_thread", "_thread.start_joinable_thread"}
GO_BETWEENS = (
    "inspect.py",
    "traceback.py",
    "contextlib.py",
    os.path.join("ctypes", "__init__.py"),
)  # of the library, which look into frames for others

STILL_RUNNING = "a thread that this notebook started is still running: wait for it with `join`"

getframe, current_frames = sys._getframe, sys._current_frames


class Guard:
    """Watches a process from its start. pristine: what should be as it was; asking: a student's function runs now."""

    def __init__(self, library: tuple[str, ...]):
        self.library, self.pristine = library, None
        self.private, self.codes = set(), set()
        self.asking, self._inside = False, False
        sys.addaudithook(self._see)

    def hide(self, private: dict[str, ModuleType]) -> None:
        """The grader's copies of the checks; the submission's own, which have the answers in them, are forbidden."""
        self.private = {id(vars(module)) for module in private.values()}
        self.codes = {c for module in private.values() for f in _functions(module) for c in _nested(f.__code__)}

    def threads(self) -> bool:
        """Whether another thread is in Python."""
        return len(current_frames()) > 1

    def knows(self, kind: type) -> bool:
        """Whether objects of a class compare as a library says, and not as a submission does."""
        if kind in self.pristine.classes:
            return True
        own = (getattr(kind, name, None) for name in ("__eq__", "__ne__", "__len__", "__iter__", "__getitem__"))
        return all(f.__code__.co_filename.startswith(self.library) for f in own if isinstance(f, FunctionType))

    def _see(self, event: str, values: tuple) -> None:
        if event in PROGRAMS:
            raise PermissionError("while grading, code cannot start other programs (no !, no %pip, no workers)")
        if event in NETWORK:
            raise PermissionError("while grading, there is no network")
        if event in ("os.kill", "os.killpg") and values[0] != os.getpid():
            raise PermissionError("while grading, code cannot send signals to other processes")
        if event in THREADS and self.asking:
            raise PermissionError("while a check runs, code cannot start threads")
        looks = event in FRAMES or (event == "object.__getattr__" and values[1] in OF_OBJECTS)
        pretends = event == "compile" and isinstance(values[1], str) and values[1].startswith(self.library)
        reads = event == "open" and str(values[0]).startswith("/proc/") and str(values[0]).endswith(("/mem", "/maps"))
        if (looks or pretends or reads or event.startswith("ctypes.")) and not self._inside:
            self._inside = True
            try:
                theirs = not self._of_library(getframe(1))
            finally:
                self._inside = False
            if theirs:
                raise PermissionError(f"while grading, code cannot look into the process that runs it ({event})")

    def _of_library(self, frame) -> bool:
        """Whether a library asked for something, and not a student's code by way of one."""
        while frame and (frame.f_code.co_filename.endswith(GO_BETWEENS) or frame.f_code.co_name == "currentframe"):
            frame = frame.f_back
        return not frame or frame.f_code.co_filename.startswith(self.library)


guard: Guard | None = None  # in the grader's process only


@contextlib.contextmanager
def watching(forbidden: tuple[ModuleType | Callable, ...]) -> Iterator[list[str]]:
    """Collects the names of these functions, and of the functions of these modules, that the block calls."""
    modules = [x for x in forbidden if isinstance(x, ModuleType)]
    functions = [x for x in forbidden if not isinstance(x, ModuleType)]
    functions += [f for module in modules for f in _functions(module)]
    names, called = {module.__name__ for module in modules}, []
    codes = {code for function in functions for code in _nested(function.__code__)}
    private, hidden = (guard.private, guard.codes) if guard else (set(), set())

    def see(frame, event, _):
        if event != "call" or id(frame.f_globals) in private:
            return
        if frame.f_globals.get("__name__") in names or frame.f_code in codes or frame.f_code in hidden:
            called.append(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}")

    before = sys.getprofile()
    with _trapped(functions) as traps, _quiet():
        codes |= traps
        if functions or guard:
            sys.setprofile(see)
        try:
            yield called
        finally:
            sys.setprofile(before)


def known(kind: type) -> bool:
    """Whether a check may rely on what objects of this class say of themselves."""
    return not guard or guard.knows(kind)


def unwatched() -> str:
    """What a student's function left behind, in words, if anything: other threads, other functions in the library."""
    if not guard:
        return ""
    if guard.threads():
        return STILL_RUNNING
    if changed := guard.pristine.changed():
        return f"`{changed}` was replaced while the check ran: it must stay as it is"
    return ""


def _functions(module: ModuleType) -> list[FunctionType]:
    """The functions that a module defines, and those of its classes."""
    found = []
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) == module.__name__:
            inner = list(vars(value).values()) if isinstance(value, type) else [value]
            inner = [getattr(x, "__func__", getattr(x, "__wrapped__", getattr(x, "fget", x))) for x in inner]
            found += [x for x in inner if isinstance(x, FunctionType)]
    return found


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


@contextlib.contextmanager
def _trapped(functions: list[FunctionType]) -> Iterator[set[CodeType]]:
    """These functions fail while the block runs, in whatever thread or process they are called: with the code given."""

    def trap(*_, **__):
        raise AssertionError("the task is to write it yourself")

    before = {id(f): (f, f.__code__) for f in functions if not f.__code__.co_freevars}.values()
    for function, code in before:
        function.__code__ = trap.__code__.replace(co_name=code.co_name, co_firstlineno=code.co_firstlineno)
    try:
        yield {function.__code__ for function, _ in before}
    finally:
        for function, code in before:
            function.__code__ = code


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """In the grader's process: what a student's function prints is not heard, and it starts no threads."""
    if not guard:
        yield
        return
    guard.asking = True
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        guard.asking = False
