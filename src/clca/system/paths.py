"""Expanding paths that users write, and displaying paths and names safely."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def expanded(path: str | Path) -> Path:
    """Replace `~` by the home folder; leave the path unchanged if there is none, or `~` only begins a file name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def as_text(path: str | Path) -> str:
    """The path or name of a file as text: its bytes as UTF-8, whatever encoding the locale suggests to Python.

    In a locale of Latin-1 Python reads the folder `Rosé` as `RosÃ©`, which would become the name of a class. Bytes that
    are not UTF-8 become surrogates, as Python represents them in a locale of UTF-8.
    """
    try:
        return os.fsencode(path).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # it is not from the file system, and no file there can have this name
        return str(path)


def as_path(text: str) -> Path:
    """The file with a name given as text: the inverse of `as_text`."""
    try:
        return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))
    except UnicodeEncodeError:
        return Path(text)


def shown(path: str | Path) -> str:
    r"""Format a path or name for display on one line; control characters and invalid UTF-8 appear as `\x1b`."""
    return "".join(_visible(letter) for letter in str(path))


def as_it_is(text: str | Path, style: str = "") -> Text:
    """Format a text for the terminal without interpreting markup or control characters in it."""
    from rich.text import Text

    return Text(shown(text), style)


def _visible(letter: str) -> str:
    if unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp"):
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8, as Python represents it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
