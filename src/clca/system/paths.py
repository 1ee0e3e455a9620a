"""Paths as users write them, and as they can be shown."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def expanded(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder; as it is where there is none, or `~` only begins a file's name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def shown(path: str | Path) -> str:
    r"""A path or a name for people to read, on one line: control characters and what is no UTF-8 as `\x1b`."""
    return "".join(_visible(letter) for letter in str(path))


def as_it_is(text: str | Path, style: str = "") -> Text:
    """Names in a text for the terminal: brackets and colons in them are no markup, control characters no commands."""
    from rich.text import Text

    return Text(shown(text), style)


def _visible(letter: str) -> str:
    if unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp"):
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte that is no UTF-8, as Python hands it on
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
