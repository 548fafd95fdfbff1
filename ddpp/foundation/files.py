"""The one place that writes and reads files: safetensors with JSON metadata, atomic, checked, no
pickle.

A file carries the SHA-256 of each of its tensors and of its metadata. It is written under a
temporary name and renamed, so a crash, a full disk or a kill leaves the last good file as it was.
Equal content gives equal bytes.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import psutil
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddpp.foundation.errors import Error

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what flock says where there are none
KEY = "ddpp"  # the one metadata entry of our safetensors files
# after PATH.PID: of what is left by a kill, and of what earlier versions left
LEFT = ("part", "probe", "probe.part")


class Busy(Error):
    """Another process holds a file: wait for it, or do something else."""


def identity(config: dict) -> str:
    """A short name for a JSON-able configuration: equal exactly when the configurations are."""
    return hashlib.sha256(_canonical(config).encode()).hexdigest()[:16]


def sha256(path: str | Path) -> str:
    """Hash the bytes of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write(path: str | Path, kind: str, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write tensors (moved to the CPU) and JSON-able metadata to `path`, all or nothing."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    body = {
        "kind": kind,
        "meta": meta,
        "sha256": {name: fingerprint(t) for name, t in tensors.items()},
    }
    try:
        sha256 = hashlib.sha256(_canonical(body).encode()).hexdigest()
    except TypeError as e:
        raise Error(
            f"cannot write {path}: beside tensors it keeps text, numbers, lists and dictionaries "
            f"alone ({e})"
        ) from e
    text = _canonical({"body": body, "sha256": sha256})
    write_bytes(path, safetensors.torch.save(tensors, {KEY: text}))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by these bytes, or leave it untouched and raise an Error."""
    path = Path(path)
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        for attempt in (1, 2, 3):
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(part, path)
                break
            except FileNotFoundError:  # a process elsewhere, to which this one is gone, swept it
                if attempt == 3:
                    raise
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink()
        raise _cannot_write(path, e) from e


def write_text(path: str | Path, text: str) -> None:
    """Write a text, all or nothing. Names of files in it need not be in UTF-8."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON-able value for people and programs to read, all or nothing."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


@contextlib.contextmanager
def lock(path: str | Path, wait: bool) -> Iterator[None]:
    """Hold `path` against other processes: the next waits, or gets Busy. Ends with the process,
    however it ends.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: there, do not write to one place from two runs
        yield
        return
    held = Path(path).with_name(f".{Path(path).name}.lock")
    while True:
        try:
            file = open(held, "w")  # noqa: SIM115  closed below
        except OSError as e:  # left by another user, say
            raise _cannot_write(held, e) from e
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Busy(
                    f"another process is writing {path}: wait for it, or choose another output"
                ) from None
            except OSError as e:
                if e.errno not in NO_LOCKS:
                    raise
                _warn_unlocked(held.parent)
                yield
                return
            if _is_at(held, file):  # else its holder just left, and took it away
                try:
                    yield
                finally:
                    held.unlink(missing_ok=True)
                return


@functools.cache  # once for each folder
def _warn_unlocked(folder: Path) -> None:
    warnings.warn(
        f"the file system of {folder} has no locks: do not let two runs write to one place there",
        stacklevel=5,
    )


def _is_at(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def check_writable(path: str | Path) -> None:
    """Raise the Error now that `write` would raise after hours of work."""
    path = Path(path)
    if ".safetensors" in path.suffixes:
        _check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            _part(path).stat()  # the longest name that will be written
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _sweep(path)
        # without a name, so that nothing is left of it after a kill
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise _cannot_write(path, e) from e


def exists(path: Path) -> bool:
    """Tell whether there is a file or folder. Raises Error where that cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise _cannot_read(path, e) from e
    return True


def _check_name(path: Path) -> None:
    """Raise an Error for a path that safetensors, which takes UTF-8 alone, could not read."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise Error(
            f"the path {shown} is not in UTF-8: rename the file or folder, or choose another"
        ) from None


def _part(path: Path) -> Path:
    """The file that a process writes, to put it in the place of `path` then: PATH.PID.part."""
    if not path.name:  # "", "." or "/"
        raise _cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def _sweep(path: Path) -> None:
    """Remove what processes left beside `path` when they were killed."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*"):
        pid, _, ending = left.name.removeprefix(f"{path.name}.").partition(".")
        if ending in LEFT and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> Error:
    return Error(
        f"cannot write {path}: {error.strerror}; what was there before is unchanged. "
        "Make room or choose another place, then run the same command again"
    )


def _cannot_read(path: Path, error: OSError) -> Error:
    return Error(f"cannot read {path}: {error.strerror}; check the path and its permissions")


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """All tensors and the metadata of a file written by `write`, every byte checked."""
    file = Lazy(path, kind)
    return dict(file), file.meta


class Lazy(Mapping):
    """A file's tensors, memory-mapped: each is read when asked for and checked the first time.

    What is returned is a copy in memory of its own, aligned as every new tensor is. In a file a
    tensor begins anywhere, and where it begins decides in which order some kernels add: a resumed
    run would have other bits.
    """

    def __init__(self, path: str | Path, *kinds: str):
        self.path = Path(path)
        try:
            if not self.path.is_file():
                what = "is a folder" if self.path.is_dir() else "does not exist"
                raise Error(f"there is no file {self.path} (it {what}): check the path")
            open(self.path, "rb").close()
        except OSError as e:
            raise _cannot_read(self.path, e) from e
        _check_name(self.path)
        try:
            self._file = safe_open(self.path, "pt")
            envelope = json.loads((self._file.metadata() or {})[KEY])
            body = envelope["body"]
            intact = hashlib.sha256(_canonical(body).encode()).hexdigest() == envelope["sha256"]
        except (KeyError, TypeError):
            raise Error(f"{self.path} was not written by ddpp: choose another file") from None
        except (SafetensorError, ValueError, OSError):
            raise self._damaged() from None
        if not intact or set(self._file.keys()) != set(body["sha256"]):
            raise self._damaged()
        self.kind: str = body["kind"]
        if self.kind not in kinds:
            raise Error(f"{self.path} holds a {self.kind}, not a {kinds[0]}: choose another file")
        self.meta: dict = body["meta"]
        self._sha256: dict[str, str] = body["sha256"]
        self._checked: set[str] = set()

    def __reduce__(self) -> tuple:  # of a copy, also in another process: the file is opened anew
        return Lazy, (self.path.absolute(), self.kind)

    def __getitem__(self, name: str) -> Tensor:
        self._sha256[name]  # a KeyError here is the caller's
        try:
            tensor = self._file.get_tensor(name)
        except Exception:  # also where PyTorch makes an error of its own of Ctrl-C
            self._file.get_tensor(name)  # raises again, unless it was that
            raise KeyboardInterrupt from None
        if name not in self._checked:
            if fingerprint(tensor) != self._sha256[name]:
                raise self._damaged()
            self._checked.add(name)
        return tensor.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sha256)

    def __len__(self) -> int:
        return len(self._sha256)

    def _damaged(self) -> Error:
        return Error(
            f"{self.path} is damaged (cut short or altered) or not a file of ddpp: "
            "move it away, then run the command that makes it again"
        )


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    tensor = tensor.detach().cpu()
    header = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(
        header + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()
