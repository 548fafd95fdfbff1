"""The command line: `main` finds the command, and makes the call that the words ask for."""

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

try:
    import tyro  # noqa: F401
except ModuleNotFoundError:  # where ddpp was installed without its dependencies, as on Colab
    raise SystemExit(
        "the command line needs the package tyro: install it with 'pip install tyro'"
    ) from None

import ddpp
from ddpp.cli.commands import COMMANDS, SHARED, Command
from ddpp.cli.parsing import parse, say
from ddpp.foundation import processes
from ddpp.foundation.errors import Error, choose

NAMED = re.compile(r"(--[\w.-]+=)?[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(@.+)?")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 or the command's exit code, 1 for an Error or where stdout cannot
    be written, 130 after Ctrl-C.
    """
    try:
        try:
            code = answer(argv)
        except SystemExit:  # of the help
            _flush()
            raise
        _flush()
        return code
    except OSError as e:
        if e.filename is not None or not _is_stdout_lost():  # an error of something else
            raise
        if not isinstance(e, BrokenPipeError):  # of a reader that has had enough, as head
            say(f"cannot write to the standard output: {e.strerror}; what was done is saved")
        return 1


def _flush() -> None:
    if sys.stdout:  # there is none under pythonw
        sys.stdout.flush()


def _is_stdout_lost() -> bool:
    """Whether stdout is closed or full. Then what Python still has for it is dropped."""
    try:
        print(flush=True)
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


def answer(argv: Sequence[str] | None) -> int:
    """Do what `main` does where stdout can be written."""
    name, *words = (sys.argv[1:] if argv is None else argv) or [""]
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    named = any(NAMED.fullmatch(word) or word.endswith(".toml") for word in words)
    if named and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, and only where a module is named; a queue may name one
    if name == "--version":
        print(f"ddpp {ddpp.__version__}")
        return 0
    if name in ("", "-h", "--help"):
        print(overview(), file=sys.stdout if name else sys.stderr)
        raise SystemExit(0 if name else 2)
    try:
        if name == "bench":
            return bench(words)
        if any(not word or re.fullmatch(r"--[\w.-]+=", word) for word in words):
            raise Error(
                "a word of this command is empty text, as of a variable that is not set: fill it, "
                "or leave it out"
            )
        command = find(name)
        call = parse(command, words, f"ddpp {name}")
        processes.join()
        if processes.size() > 1 and command not in SHARED:
            what = "only teachers and distill can be shared out by torchrun"
            raise Error(f"{what}: start this command without it")
        quiet = contextlib.redirect_stdout(None) if processes.rank() else contextlib.nullcontext()
        with quiet, _as_sentences():
            return call() or 0
    except Error as e:
        say(str(e))
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say("stopped; what was done is saved. Run the same command again to resume")
        return 130
    finally:
        processes.leave()


@contextlib.contextmanager
def _as_sentences() -> Iterator[None]:
    """Show ddpp's warnings as it says everything else, without the lines of code they come from."""
    usual = warnings.formatwarning

    def show(message: Warning | str, category: type[Warning], *where, **more) -> str:
        if category is UserWarning:
            return f"ddpp: {message}\n"
        return usual(message, category, *where, **more)

    warnings.formatwarning = show
    try:
        yield
    finally:
        warnings.formatwarning = usual


def overview() -> str:
    """The usage of ddpp: its commands, each with the first line of its docstring."""
    commands = COMMANDS | {name: entry.load() for name, entry in others().items()}
    usage = "usage: ddpp COMMAND [OPTIONS]"
    lines = [f"  {name:10} {str(c.__doc__).splitlines()[0]}" for name, c in commands.items()]
    more = "The options of a command: ddpp COMMAND --help. The version: ddpp --version."
    return "\n".join([usage, "", *lines, "", more])


def others() -> dict[str, EntryPoint]:
    """The commands that other packages bring, not yet loaded."""
    return {entry.name: entry for entry in entry_points(group="ddpp.verbs")}


def find(name: str) -> Command:
    """The command of this name. Any other word ends the program with exit code 2."""
    if name in COMMANDS:
        return COMMANDS[name]
    brought = others()
    try:
        return brought[choose("command", name, [*COMMANDS, *brought])].load()
    except Error as e:
        say(str(e))
        raise SystemExit(2) from None


def bench(words: list[str]) -> int:
    """Run the bench, which was a command of ddpp, where there is a checkout."""
    checkout = Path(ddpp.__file__).parents[1]
    if not (checkout / "tools" / "bench.py").exists():
        raise Error("the bench is in a checkout of ddpp only: run 'python -m tools.bench' there")
    say("'ddpp bench' is spelled 'python -m tools.bench' now")
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "tools.bench", *words]
    return subprocess.run(command, env=environment).returncode
