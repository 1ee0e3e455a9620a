"""Expanding paths that users write, and displaying paths and names safely."""

from __future__ import annotations

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
