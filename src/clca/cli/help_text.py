"""The help of a command: words for its values, and lines that fit the terminal."""

import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


def word_values(what: Callable[..., Any]) -> None:
    """Words that a newcomer knows for a command's values, as in `clca train --help`, and no "(default: None)" in it."""
    import tyro

    hints, kinds = get_type_hints(what, include_extras=True), get_type_hints(what)
    for name, parameter in inspect.signature(what).parameters.items():
        if is_dataclass(kinds[name]):
            word_values(kinds[name])
            continue
        # An argument that says its word itself is heeded.
        said = any(getattr(note, "metavar", None) for note in getattr(hints[name], "__metadata__", ()))
        word = None if said else _word(name, kinds[name])
        hint = "" if parameter.default in (None, (), "") else None
        if word is not None or hint is not None:
            hints[name] = Annotated[hints[name], tyro.conf.arg(metavar=word, help_behavior_hint=hint)]
    what.__annotations__ = hints


_NAMED = {
    "batch_sizes": "N", "cache_gb": "GB", "data": "DATA", "data_folder": "FOLDER", "examples": "DATA",
    "explain": "FOLDER", "gpus": "GPU", "host": "ADDRESS", "images": "IMAGES", "img_sizes": "PIXELS",
    "keep_rate": "RATE", "keep_rates": "RATE", "models": "MODEL", "only": "AXIS=VALUES", "out": "FOLDER",
    "ray_address": "ADDRESS", "reductions": "NAME", "shard": "PART/PARTS", "size": "PIXELS", "source": "NAME",
    "sweep": "RATE", "token_file": "FILE", "words": "FOLDER",
}  # fmt: skip
"""What stands for a value of these arguments; for that of others their type tells it."""


def _word(name: str, kind: Any) -> str | None:
    """What stands for the value of an argument; nothing for one that is a switch."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    several = get_origin(kind) is tuple
    one = get_args(kind)[0] if several else kind
    if one is bool:
        return None
    words = "|".join(get_args(one)) if get_origin(one) is Literal else {int: "N", float: "NUMBER"}.get(one, "PATH")
    word = _NAMED.get(name, words)
    return f"{word} [{word} …]" if several else word


def unbroken(doc: str) -> str:
    """A docstring in which what is said of an argument is one line, for tyro to wrap."""
    return re.sub(r"\n {8,}(?=\S)", " ", inspect.cleandoc(doc))


def wrapped(paragraph: str, first: str = "", further: str = "") -> str:
    """A paragraph in lines as wide as the terminal.

    Args:
        paragraph: One line.
        first: What its first line begins with.
        further: What the others begin with.
    """
    return textwrap.fill(
        paragraph,
        max(40, shutil.get_terminal_size().columns),
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


class HeldOutput(io.StringIO):
    """Holds what tyro prints, which looks as it would on the standard output itself."""

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._encoding = getattr(sys.stdout, "encoding", None)

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal

    def text(self) -> str:
        """The same with its paragraphs wrapped, which tyro does in frames only; examples stay as they are, to copy."""
        before, frame, frames = self.getvalue().partition("╭")
        lines = (line if line.startswith((" ", "usage:")) else wrapped(line) for line in before.split("\n"))
        return "\n".join(lines) + frame + frames
