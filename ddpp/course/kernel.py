"""The process in which a submission runs: a Jupyter kernel behind limits that a submission cannot lift by accident.

It may write in its own folder only, may not look into the folders that are closed to it, start programs, kill others or
use the network, and memory beyond its share is refused. These are guards of Python's own (audit hooks), which stop
mistakes and curiosity. They are no prison: for code from strangers, grade in a container.
"""

import contextlib
import os
import sys
from pathlib import Path

PROGRAMS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.sendto"}
CHANGES = {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}
LOOKS = {"os.listdir", "os.scandir", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FILE_LIMIT = 2**30  # bytes that one file may have


def guard(work: Path, closed: list[Path], memory: int) -> None:
    """From here on this process keeps to the folder `work`, stays out of `closed`, and has `memory` bytes."""
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    work, closed, me = os.path.realpath(work), [os.path.realpath(folder) for folder in closed], os.getpid()
    needed = [work, *map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(__file__).parents[1]))]

    def within(path: str, folder: str) -> bool:
        return path == folder or path.startswith(folder + os.sep)

    def look(path, writing: bool) -> None:
        if isinstance(path, int) or path is None:
            return
        path = os.path.realpath(os.fsdecode(path))
        if any(within(path, folder) for folder in closed) and not any(within(path, folder) for folder in needed):
            raise PermissionError(f"while grading, code cannot look at {path}: it belongs to the grader")
        if writing and not within(path, work) and path != os.devnull:
            raise PermissionError(f"while grading, code can write in its own folder only, not to {path}")

    def hook(event: str, values: tuple) -> None:
        if event == "open":
            look(values[0], bool(values[2] & WRITING))
        elif event in LOOKS:
            look(values[0], False)
        elif event in CHANGES:
            for path in values[: 2 if event in ("os.rename", "os.link") else 1]:
                look(path, True)
        elif event in PROGRAMS:
            raise PermissionError("while grading, code cannot start other programs (no !, no %pip, no workers)")
        elif event in NETWORK:
            raise PermissionError("while grading, there is no network")
        elif event in ("os.kill", "os.killpg") and values[0] != me:
            raise PermissionError("while grading, code cannot send signals to other processes")

    sys.addaudithook(hook)


def main() -> None:
    """python -m ddpp.course.kernel CONNECTION_FILE MEMORY CLOSED..., in the folder that is the submission's own."""
    connection, memory, *closed = sys.argv[1:]
    from ipykernel.kernelapp import IPKernelApp

    import ddpp  # noqa: F401  (what every submission imports, before the guards)

    app = IPKernelApp.instance()
    app.initialize(["-f", connection, "--HistoryManager.enabled=False", "--Application.log_level=50"])
    app.shell.ask_exit = lambda: None  # exit() in a cell ends nothing
    guard(Path.cwd(), [Path(folder) for folder in closed], int(memory))
    app.start()


if __name__ == "__main__":
    main()
