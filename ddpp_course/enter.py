"""The entry of a submission's process: limits, Landlock if needed, a filter, then the kernel.

Run as a file (python -P enter.py REQUESTS ANSWERS) and made of the standard library alone, so that
no library has started a thread when the door closes. Landlock holds for the thread that asks for
it, and for those that it starts.
"""

import builtins
import ctypes
import errno
import importlib.machinery
import json
import os
import struct
import sys

FILE = 2**30  # bytes that one file may have
OPEN = 256  # files and sockets of a process: the kernel's memory for them is counted nowhere
PROCESSES = 64  # with threads; the kernel of the system counts them for ordinary users only
# execute, write, read, truncate, ioctl: what makes sense for a file
FILE_RIGHTS = 0b1100_0000_0000_0111
READ_RIGHTS = 0b1101  # execute, read, list
LIST_RIGHTS = 0b1000
# machine -> how the kernel calls it, its number of seccomp, and those of memfd_create,
# memfd_secret, shmget, msgget and io_uring_setup: their memory can be where no process and no
# folder shows it. Then those of add_key, request_key and keyctl: the keys are the grader's. Last
# mmap, which is refused where it asks for memory of that kind
UNSEEN = {
    "x86_64": (0xC000003E, 317, (319, 447, 29, 68, 425, 248, 249, 250), 9),
    "aarch64": (0xC00000B7, 277, (279, 447, 194, 186, 425, 217, 218, 219), 222),
}
SHARED = 0x01 | 0x20  # MAP_SHARED | MAP_ANONYMOUS, which stays when no process shows it any more
# machine -> numbers of the calls that change modes, owners, times and attributes, of which Landlock
# knows nothing: setxattrat, removexattrat, fchmodat2 and file_setattr, then, of x86_64, chmod,
# fchmod, chown, fchown, lchown, utime, utimes, futimesat, and of both fchownat, fchmodat,
# utimensat, and (l, f) setxattr and removexattr
MODES = {
    "x86_64": (
        *(463, 466, 452, 469, 90, 91, 92, 93, 94, 132, 235, 261),
        *(260, 268, 280, 188, 189, 190, 197, 198, 199),
    ),
    "aarch64": (463, 466, 452, 469, 52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16),
}


def limit(memory: int, processes: bool) -> None:
    """Set limits that this process, and those it starts, cannot raise again. Lower ones stay.

    - memory: bytes.
    - processes: whether their number is limited, too: only where the process is alone in a space.
    """
    import resource

    limits = {resource.RLIMIT_FSIZE: FILE, resource.RLIMIT_DATA: memory, resource.RLIMIT_CORE: 0}
    limits[resource.RLIMIT_NOFILE] = OPEN
    for which, most in limits.items() | (
        {resource.RLIMIT_NPROC: PROCESSES}.items() if processes else set()
    ):
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def landlock() -> int:
    """Return the version of Landlock that this system has; 0 for none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, _call(444, None, 0, 1))


def confine(read: list[str], listed: list[str], write: list[str]) -> None:
    """Let this process read in `read` and below, write in `write` and below, and nowhere else.

    It sees the names in `listed` and below. It has no TCP and sends no signals to others. These two
    need versions 4 and 6. UDP and the existence of paths are not covered, nor modes and times of
    files: see `filter_calls`.
    """
    version = landlock()
    files = 0x1FFF | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    rules = (ctypes.c_uint64 * 3)(files, 3 * (version >= 4), 3 * (version >= 6))
    ruleset = _need(_call(444, rules, 8 if version < 4 else 16 if version < 6 else 24, 0))
    for path, rights in [
        *((path, READ_RIGHTS) for path in read),
        *((path, LIST_RIGHTS) for path in listed),
        *((path, files) for path in write),
    ]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there needs no right
        rights &= files if os.path.isdir(path) else files & FILE_RIGHTS
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        _need(_call(445, ruleset, 1, rule, 0))
        os.close(place)
    libc = ctypes.CDLL(None)
    _need(libc.prctl(38, 1, 0, 0, 0))  # no new privileges, by no program
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _need(libc.capset(header, none))  # root is nobody special
    _need(_call(446, ruleset, 0))
    os.close(ruleset)


def filter_calls(modes: bool) -> None:
    """Refuse this process, and those it starts, memory that would escape its limit, and keys.

    What asks for them gets a PermissionError. Where the system has no such filter, nothing changes.

    - modes: whether modes and times of files stay as they are, too. What changes them is told that
      it did, as copying a file sets them and must not fail.
    """
    machine = os.uname().machine
    if machine not in UNSEEN or sys.maxsize < 2**32:  # a 32-bit Python has other numbers
        return
    name, seccomp, unseen, mmap = UNSEEN[machine]
    _call(unseen[-1], 1, None)  # a session keyring of its own
    calls = [*unseen, *(pretended := MODES[machine] if modes else ())]
    refused = len(calls) + 9  # the place of this line; a jump counts from the next one
    code = [
        (0x20, 0, 0, 4),  # load the machine: all calls for another are refused
        (0x15, 0, refused - 2, name),
        (0x20, 0, 0, 0),  # load the call, and refuse those of x32, the same by other numbers
        (0x35, refused - 4, 0, 2**30),
        *(
            (0x15, refused - at - 1 + (call in pretended), 0, call)
            for at, call in enumerate(calls, 4)
        ),
        (0x15, 0, 3, mmap),
        (0x20, 0, 0, 40),  # load its flags: the lower half of the fourth argument
        (0x54, 0, 0, SHARED),
        (0x15, 1, 0, SHARED),
        (0x06, 0, 0, 0x7FFF0000),  # allowed
        (0x06, 0, 0, 0x50000 + errno.EPERM),
        (0x06, 0, 0, 0x50000),  # not made, but told that it was
    ]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges, by no program
    _call(seccomp, 1, 4, struct.pack("@HP", len(code), ctypes.addressof(lines)))


class OwnBuiltins:
    """Finds the modules of ddpp_course, and gives each of them Python's built-ins as its own.

    Else a submission that replaces `len`, say, is handed what the grader calls it with.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        """Find a module as Python does; None for those of other packages."""
        if name.partition(".")[0] != "ddpp_course":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module) -> None:
                vars(module)["__builtins__"] = dict(vars(builtins))
                execute(module)

            spec.loader.exec_module = exec_module
        return spec


def _call(number: int, *arguments) -> int:
    return ctypes.CDLL(None).syscall(number, *arguments)


def _need(result: int) -> int:
    if result < 0:
        raise OSError("Landlock refuses")
    return result


def main() -> None:
    with (
        open(int(sys.argv[1]), "rb") as requests,
        open(int(sys.argv[2]), "wb", buffering=0) as answers,
    ):
        begin = json.loads(requests.readline())
        for pipe in (requests, answers):
            os.set_inheritable(pipe.fileno(), False)  # for nobody else
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # die with the grader
        if sys.platform != "win32":
            limit(begin["memory"], begin["alone"])
        if begin["landlock"]:
            confine(**begin["landlock"])
        if sys.platform.startswith("linux"):
            filter_calls(modes=bool(begin["landlock"]))
            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # what it starts cannot read or write its memory
        sys.meta_path.insert(0, OwnBuiltins)
        from ddpp_course import kernel

        kernel.serve(requests, answers, bytes.fromhex(begin.pop("key")))


if __name__ == "__main__":
    main()
