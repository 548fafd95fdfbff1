"""Whose a submission is, by the name of its file."""

import re

from ddpp_course.roster import Student, letters, one_way

# Canvas: name_ACCOUNT_submission_file, with LATE_ in front of the account; Moodle: Name_ACCOUNT_...
# numbers alone, as in 4711_4712_1_hw, are students': Canvas begins with the letters of a name
PLATFORM = re.compile(
    r"^(?![\W\d]*_(?:LATE_)?\d+_\d+_)[^_/]*_(LATE_)?(\d+)_(\d+_|assignsubmission_)", re.IGNORECASE
)
# what the names of reports end in where names of files were changed
MARK = re.compile(r"~[0-9a-f]{8}(?=/|$)")
# by which browsers, and Canvas, tell apart files of one name
AGAIN = re.compile(r"\(\d{1,2}\)(?=\s*(/|$))")
CANVAS_AGAIN = re.compile(r"-\d{1,2}$")
DATE = re.compile(r"(?<![^\W_])(?<!-)\d{4}-\d\d-\d\d(?!-)(?![^\W_])")


def owners(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose submission this may be.

    By the account in a name that Canvas or Moodle made, else by the number as a word in the name,
    else by the student's name at its beginning. Where the name has an account, a number or the
    name of one student, and the number or the name of another, it may be of both.
    """
    name = MARK.sub("", one_way(name))
    platform = PLATFORM.match(name)
    if not platform:
        return _by_words(name, students)
    begin = "".join(letters(name[: name.index("_")]))
    named = [s for s in students if begin in s.named()]
    if found := [s for s in students if s.account == platform[2]]:
        return found if any(s in named for s in found) else found + named
    # the platform's numbers are no student's
    rest = f"{name[: platform.start(2)]}_{CANVAS_AGAIN.sub('', name[platform.end() :])}"
    found = _by_words(rest, students)
    if named or not found:
        return found
    return found + [s for s in in_place_of_canvas(name, students) if s not in found]


def in_place_of_canvas(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose number is where Canvas has numbers of its own."""
    platform = PLATFORM.match(one_way(name))
    if not platform or not platform[3][0].isdigit():
        return []
    return _by_number(platform[0], students)


def _by_words(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose number or name is in the name of a file."""
    numbered, named = _by_number(AGAIN.sub("", name), students), _by_name(name, students)
    if not numbered:
        first = re.split(r"[_/]", name)[0]
        found = [s for s in students if "".join(letters(first)) in s.named()]
        others = _by_name(name[len(first) :], students) if found else []
        return found + [s for s in others if s not in found]
    if not named:  # a number such as 1 may be that of the assignment, beside a first name
        words = {*letters(name)}
        parts = [s for s in students if words & {*letters(s.name)}]
        return numbered if any(s in parts for s in numbered) else numbered + parts
    both = [s for s in numbered if s in named]
    if not both:
        return [s for s in students if s in numbered or s in named]
    own = {way for s in both for way in s.named()}
    apart = lambda s: not any(way in one for way in s.named() for one in own)
    return both + [s for s in named if s not in both and apart(s)]


def _by_number(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose number is a word in the name, or a part of one between hyphens.

    A number of several words, such as 12-345 or an address, is found first. Its words are no
    numbers of others.
    """
    found = set()
    for number in sorted({one_way(s.number) for s in students}, key=lambda n: (-len(n), n)):
        if number in name and not number.isalnum():
            alone = rf"(?<![^\W_]){re.escape(number)}(?![^\W_])"
            name, times = re.subn(alone, " ", name)
            found |= {number} if times else set()
    found |= set(re.split(r"[\W_]+", DATE.sub(" ", name)))
    return [s for s in students if one_way(s.number) in found]


def _by_name(name: str, students: list[Student]) -> list[Student]:
    """Find the students whose name, as words in a row, is anywhere in the name of a file."""
    there = set()
    for part in name.split("/"):
        words = letters(part)
        ends = range(1, len(words) + 1)
        there |= {"".join(words[i:j]) for j in ends for i in range(j)}
    return [s for s in students if s.named() & there]
