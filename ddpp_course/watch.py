"""Whose code does what: forbidden library functions, and submissions that look into their checks.

While a student's function runs, the forbidden functions are traps, and calls of their code by
another way are seen. In the grader's process more is watched: frames, threads, ctypes. That makes
lying expensive. It is no wall.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

from torch.nn import Module

from ddpp_course.messages import say
from ddpp_course.pristine import HEAP

PROGRAMS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
PROGRAMS |= {"subprocess.Popen"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.sendto"}
FRAMES = {"sys._getframe", "sys._current_frames", "sys._current_exceptions"}
FRAMES |= {"sys.settrace", "sys.setprofile"}
FRAMES |= {"gc.get_objects", "gc.get_referrers", "gc.get_referents", "code.__new__"}
OF_OBJECTS = {"tb_frame", "gi_frame", "cr_frame", "ag_frame"}
THREADS = {"_thread.start_new_thread", "_thread.start_joinable_thread"}
# files of the library that look into frames on behalf of others
GO_BETWEENS = tuple(
    os.sep + os.path.join(*name.split("/"))
    for name in (
        *("inspect.py", "traceback.py", "contextlib.py", "pdb.py", "bdb.py", "pickle.py"),
        *("ctypes/__init__.py", "logging/__init__.py"),
        *("IPython/utils/frame.py", "pandas/core/computation/scope.py"),
    )
)
# names of methods by which an object says what it is
SAYS = {f"__{x}__" for x in "eq ne lt le gt ge len iter getitem array getattribute".split()}
SAYS |= {f"__{x}__" for x in "bool int index float complex".split()}

KIND_OF_CODE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

STILL_RUNNING = say("grader", "still_running")
NO_PROGRAMS, NO_NETWORK, NO_SIGNALS, NO_THREADS = (
    say("grader", key) for key in ("no_programs", "no_network", "no_signals", "no_threads")
)

getframe, current_frames = sys._getframe, sys._current_frames


class NoLooking(PermissionError, ValueError):
    """Why code cannot look into the process.

    It is a ValueError for the sake of `logging`, which then logs a line without its place.
    """


@dataclass
class Guard:
    """What is known in the grader's process.

    It has no methods: from a class one finds to the rest.

    private, codes: the grader's copies of the checks, by the ids of their dictionaries, and their
    code; classes: that were there before the submission; changed: names a change; asking: whether a
    student's function runs now.
    """

    library: tuple[str, ...]
    private: frozenset[int] = frozenset()
    codes: frozenset[CodeType] = frozenset()
    classes: frozenset[type] = frozenset()
    changed: Callable[[], str] = str
    asking: bool = False


guard: Guard | None = None  # in the grader's process only


def start(library: tuple[str, ...]) -> Guard:
    """Watch this process from here on.

    - library: the folders of code that is not a submission's.
    """
    global guard
    guard = mine = Guard(library)
    inside, places = [], [folder.encode() for folder in library]

    def see(event: str, values: tuple) -> None:
        if event in PROGRAMS:
            raise PermissionError(NO_PROGRAMS)
        if event in NETWORK:
            raise PermissionError(NO_NETWORK)
        if event in ("os.kill", "os.killpg") and values[0] != os.getpid():
            raise PermissionError(NO_SIGNALS)
        if event in THREADS and mine.asking:
            raise PermissionError(NO_THREADS)
        # the first would be handed frames (Python hides this error), the second can make any code
        if event in ("sys.addaudithook", "marshal.load"):
            raise NoLooking(say("grader", "no_looking", event=event))
        looks = event in FRAMES or (event == "object.__getattr__" and values[1] in OF_OBJECTS)
        pretends = event == "compile" and isinstance(values[1], str) and _is_in(values[1], library)
        pretends |= event == "marshal.loads" and any(place in values[0] for place in places)
        path = str(values[0]) if event == "open" else ""
        reads = path.startswith("/proc/") and path.endswith(("/mem", "/maps"))
        if (looks or pretends or reads or event.startswith("ctypes.")) and not inside:
            inside.append(event)
            try:
                frame = getframe(1)
                theirs = not _of_library(frame, library, event) or (
                    pretends and not _filed(frame, values, library)
                )
            finally:
                inside.clear()
            if theirs:
                raise NoLooking(say("grader", "no_looking", event=event))

    sys.addaudithook(see)
    return mine


def hide(guard: Guard, private: dict[str, ModuleType], more: set[CodeType]) -> None:
    """Forbid the submission to call the grader's copies of the checks, and the code in `more`."""
    guard.private = frozenset(id(vars(module)) for module in private.values())
    functions = [function for module in private.values() for function in _functions(module)]
    codes = [*(function.__code__ for function in functions), *more]
    guard.codes = frozenset(inner for code in codes for inner in _nested(code))


def threads() -> bool:
    """Return whether another thread is in Python."""
    return len(current_frames()) > 1


def known(kind: type) -> bool:
    """Return whether a check may rely on what objects of this class say of themselves."""
    if not guard or kind in guard.classes:
        return True
    if type(kind) not in guard.classes:  # it says itself what its class is
        return False
    if not kind.__flags__ & HEAP:
        return True
    own = {name for base in kind.__mro__ if base not in guard.classes for name in vars(base)}
    return issubclass(kind, Module) and not SAYS & own


def _of_library(frame, library: tuple[str, ...], event: str) -> bool:
    """Return whether a library asked for something, and not a student's code by way of one.

    Code that asks for a frame on its own behalf names the function that it calls. A function that
    calls whatever it is given does not.
    """
    name = "_getframe" if event == "sys._getframe" else ""
    while frame and (
        frame.f_code.co_filename.endswith(GO_BETWEENS) or frame.f_code.co_name == "currentframe"
    ):
        frame, name = frame.f_back, name and frame.f_code.co_name
    if not frame or not _is_in(frame.f_code.co_filename, library):
        return not frame
    return not name or name.startswith(("__", "<")) or name in frame.f_code.co_names


def _is_in(path: str, library: tuple[str, ...]) -> bool:
    """Return whether code with this name is a library's: a template in its folder is not."""
    return path.startswith(library) and path.endswith((".py", ">"))


def _filed(frame, values: tuple, library: tuple[str, ...]) -> bool:
    """Return whether code with the name of a library's file is what is in that file."""
    compiled = len(values) > 1  # else importlib loads it, from a file with a header of 16 bytes
    path = values[1] if compiled else frame.f_locals.get("bytecode_path")
    if not isinstance(path, str) or not path.startswith(library) or os.pardir in path:
        return False
    try:
        with open(path, "rb") as file:
            return file.read()[0 if compiled else 16 :] == values[0]
    except OSError:
        return False


@contextlib.contextmanager
def watching(
    forbidden: tuple[ModuleType | Callable, ...], given: tuple = ()
) -> Iterator[list[str]]:
    """Collect the names of forbidden functions that the block calls.

    - forbidden: functions, and modules, of which all functions are forbidden.
    - given: what a check hands out, and so may be called.
    """
    handed_out = {x.__code__ for x in given if isinstance(x, FunctionType)}
    modules = [m for x in forbidden if isinstance(x, ModuleType) for m in _rooms(x)]
    functions = [x for x in forbidden if not isinstance(x, ModuleType)]
    functions += [f for module in modules for f in _functions(module)]
    names, called = {module.__name__ for module in modules}, []
    codes = {code for function in functions for code in _nested(function.__code__)}
    private, library = (guard.private, guard.library) if guard else (frozenset(), ())

    def see(frame, event, _):
        if event != "call":
            return
        if id(frame.f_globals) in private:
            inner = "." in frame.f_code.co_qualname or id(frame.f_back.f_globals) in private
            if inner or frame.f_code in handed_out:
                return
            if _is_in(frame.f_back.f_code.co_filename, library):
                return
        if frame.f_globals.get("__name__") in names or frame.f_code in watched:
            called.append(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}")

    before = sys.getprofile()
    with _trapped(functions) as traps, _quiet():
        watched = codes | traps | (guard.codes if guard else frozenset())
        if functions or guard:
            sys.setprofile(see)
        try:
            yield called
        finally:
            sys.setprofile(before)


def unwatched() -> str:
    """Return what a student's function left behind, in words: other threads, changed functions.

    Returns an empty text if there is nothing.
    """
    if not guard:
        return ""
    if threads():
        return STILL_RUNNING
    if changed := guard.changed():
        return say("grader", "replaced", what=changed)
    return ""


def _rooms(module: ModuleType) -> list[ModuleType]:
    """Return a module, and of a package also the modules in it."""
    inside = f"{module.__name__}."
    return [module, *(m for name, m in dict(sys.modules).items() if name.startswith(inside))]


def _functions(module: ModuleType) -> list[FunctionType]:
    """Return the functions that a module and its classes define."""
    found = []
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) == module.__name__:
            inner = list(vars(value).values()) if isinstance(value, type) else [value]
            inner = [
                getattr(x, "__func__", getattr(x, "__wrapped__", getattr(x, "fget", x)))
                for x in inner
            ]
            found += [
                x for x in inner if isinstance(x, FunctionType) and x.__globals__ is vars(module)
            ]
    return found


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


@contextlib.contextmanager
def _trapped(functions: list[FunctionType]) -> Iterator[set[CodeType]]:
    """Make these functions fail while the block runs, in any thread or process that calls them.

    Yields the code that they have meanwhile.
    """

    # their code runs in other modules, so the text stands here, and not in messages.toml
    def trap(*_, **__):
        raise AssertionError("the task is to write it yourself")

    def generator_trap(*_, **__):
        raise AssertionError("the task is to write it yourself")
        yield

    # a generator's code can be replaced by a generator's only
    traps = {
        code.co_flags & KIND_OF_CODE: code for code in (trap.__code__, generator_trap.__code__)
    }
    before = {
        id(f): (f, f.__code__)
        for f in functions
        if not f.__code__.co_freevars and f.__code__.co_flags & KIND_OF_CODE in traps
    }.values()
    try:
        for function, code in before:
            kind = traps[code.co_flags & KIND_OF_CODE]
            function.__code__ = kind.replace(
                co_name=code.co_name, co_firstlineno=code.co_firstlineno
            )
        yield {function.__code__ for function, _ in before}
    finally:
        for function, code in before:
            function.__code__ = code


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what a student's function prints, and forbid it threads, in the grader's process."""
    if not guard:
        yield
        return
    guard.asking = True
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        guard.asking = False
