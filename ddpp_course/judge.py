"""Apply the checks to a submission, inside its process, in a namespace of their own.

A check runs twice. First with stubs in the student's place, where it has to fail: a check that does
not was changed by the submission. Then with the student's functions.
"""

import contextlib
import io

from ddpp_course import messages, watch
from ddpp_course.checks import plain, told

LONGEST = 600  # characters that a check may say

space: dict = {}  # what the setup of the assignment defines


def prepare(setup: str) -> None:
    """Run the instructor's setup in a fresh namespace."""
    space.clear()
    space["__name__"] = "__main__"
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(setup, "<setup>", "exec"), space)


def judge(check: str, functions: list[str], values: list[str], student: dict) -> dict:
    """Run a check, and return {"passed": bool, "says": str}.

    - check: its code.
    - functions, values: the names in it that are the student's.
    - student: the namespace that has them.
    """
    stubs = {name: _stub(name) for name in functions} | dict.fromkeys(values)
    passed, _ = _run(check, stubs)
    if passed:
        return {"passed": False, "says": messages.say("grader", "checks_changed")}
    missing = [name for name in functions + values if name not in student]
    if missing:
        return {"passed": False, "says": messages.say("grader", "missing", name=missing[0])}
    try:
        given = {name: student[name] for name in functions} | {
            name: plain(student[name]) for name in values
        }
    except AssertionError as e:
        return {"passed": False, "says": told(e, LONGEST, name=False)}
    passed, says = _run(check, given)
    if left := passed and watch.unwatched():
        return {"passed": False, "says": left}
    return {"passed": passed, "says": says}


def _run(check: str, given: dict) -> tuple[bool, str]:
    """Run the code of a check, and return whether it passed, and what it says."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(check, "<check>", "exec"), {**space, **given})
    except AssertionError as e:  # mostly a Mistake
        return False, told(e, LONGEST, name=False) or messages.say("grader", "assertion")
    except NotImplementedError:
        return False, messages.say("grader", "unwritten")
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit too: it is the student's
        return False, messages.say("grader", "check_stopped", error=told(e))
    lines = dict.fromkeys(said.getvalue()[: 2 * LONGEST].split("\n"))  # each line once
    return True, " ".join(lines).strip()[:LONGEST]


def _stub(name: str):
    def stub(*_, **__):
        raise NotImplementedError

    stub.__name__ = name
    return stub
