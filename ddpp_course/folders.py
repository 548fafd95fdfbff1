"""The folder of a submission on the disk: kept while its grader lives, measured, removed.

A submission may make it hard to walk through: folders in folders in folders, or some that cannot be
listed. So nothing here calls itself or needs a long path, and what cannot be removed is named.
"""

import contextlib
import errno
import os
import secrets
import stat
import sys
import tempfile
import time
from pathlib import Path

from ddpp_course import wall

FOLDERS, FILES = 10_000, 100_000  # in the folder of a submission
DEEP = 200  # folders in one another
FOLDER = "ddpp-submission-"  # how its name begins
LONG = 300  # seconds to remove one: a process that escaped may go on writing into it
CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)  # it is there, and cannot be listed


def lock(folder: str) -> int:
    """Lock a folder as long as this process lives, or what is returned is open."""
    import fcntl  # here, as Windows has none

    place = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # no locks here: then `sweep` gets none either
        fcntl.flock(place, fcntl.LOCK_SH)
    return place


def sweep() -> None:
    """Remove the folders that graders of this user left behind when they were killed.

    A grader that lives holds a lock. It has a minute to take it.
    """
    if os.name != "posix":
        return
    import fcntl

    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):  # somebody else's, locked, or removed meanwhile
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(place)
                if found.st_uid == os.getuid() and found.st_mtime < time.time() - 60:
                    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(folder)
            finally:
                os.close(place)


def size(folder: Path) -> int:
    """Return the bytes below a folder.

    It is above the limit if there are too many files or folders, or too many in one another, or a
    folder that cannot be listed.
    """
    total = files = folders = 0
    left = [(os.fspath(folder), 0)]
    while left:
        place, depth = left.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, depth + 1))
                        folders += 1
                    else:
                        files += 1
                        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                            total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if depth > DEEP or folders > FOLDERS or files > FILES:
                        return 2 * wall.ROOM
        except OSError as e:  # mostly removed meanwhile
            if e.errno in CLOSED:
                return 2 * wall.ROOM
    return total


def remove(folder: str | Path) -> None:
    """Remove a folder with all that is in it. Where that fails, a line names it."""
    try:
        place = _open(os.fspath(folder))
        try:
            _empty(place, time.monotonic() + LONG)
        finally:
            os.close(place)
        os.rmdir(folder)
    except FileNotFoundError:  # removed by another grader
        pass
    except Exception as e:
        said = f"the folder {folder} of a submission is left ({e}). Remove it when no grader runs"
        print(said, file=sys.stderr, flush=True)


def _empty(top: int, end: float) -> None:
    """Remove what is in an open folder, or raise OSError.

    What is in a folder below is first moved to the top, so that none is ever far below.
    """
    while names := os.listdir(top):
        for name in names:
            if time.monotonic() > end:
                raise TimeoutError(f"not empty after {LONG} s")
            if not _is_folder(name, top):
                os.unlink(name, dir_fd=top)
                continue
            place = _open(name, top)
            try:
                for below in os.listdir(place):
                    if _is_folder(below, place):
                        os.close(_open(below, place))  # only a folder with all rights can be moved
                    os.rename(below, secrets.token_hex(16), src_dir_fd=place, dst_dir_fd=top)
            finally:
                os.close(place)
            os.rmdir(name, dir_fd=top)


def _is_folder(name: str, place: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)


def _open(name: str, place: int | None = None) -> int:
    """Open a folder, after the rights to do so have been taken. A link is not followed."""
    if not sys.platform.startswith("linux"):
        os.chmod(name, stat.S_IRWXU, dir_fd=place)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
    found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
    try:
        with contextlib.suppress(OSError):  # then opening says so, unless its rights do anyway
            os.chmod(f"/proc/self/fd/{found}", stat.S_IRWXU)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=found)
    finally:
        os.close(found)
