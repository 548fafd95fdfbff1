"""What students are told, by key: all texts are in messages.toml.

For a course in another language, translate that file. {words} in braces are filled in by the code.
"""

import tomllib
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).with_name("messages.toml")


@lru_cache(1)
def texts() -> dict[str, dict[str, str]]:
    """Read all messages: section -> key -> text."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def say(section: str, key: str, /, **words) -> str:
    """Return a message with these words in it. Raise KeyError if the file does not have it."""
    return texts()[section][key].format(**words)
