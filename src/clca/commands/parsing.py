"""Reading a command's arguments with tyro, and saying in one line what is wrong with them."""

import contextlib
import inspect
import io
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from clca.errors import ClcaError


def parse(what: Any, prog: str, argv: Sequence[str], description: str | None = None) -> Any:
    """Parse with tyro; a mistake becomes a ClcaError of one line instead of tyro's box."""
    import tyro

    if description is None:  # tyro would take the examples for a section of the docstring that it does not show
        description = inspect.cleandoc(what.__doc__).split("\nArgs:")[0]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            chosen, unknown = tyro.cli(
                what, prog=prog, args=list(argv), description=description, return_unknown_args=True
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ClcaError(f"{_without_box(told.getvalue())}; {prog} --help says more") from None
    if unknown:
        flags = re.findall(r"--[a-z][\w-]*", _help_of(what, prog, description))
        near = get_close_matches(unknown[0].split("=")[0].replace("_", "-"), flags, 1)
        hint = f"did you mean {near[0]}?" if near else f"{prog} --help lists what there is"
        raise ClcaError(f"{unknown[0]} is not understood: {hint}")
    return chosen


def _help_of(what: Any, prog: str, description: str | None) -> str:
    import tyro

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.cli(what, prog=prog, args=["--help"], description=description)
    return told.getvalue()


def _without_box(text: str) -> str:
    """The words of tyro's report, without frame and without the pointer to --help that it ends with."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = " ".join(re.sub(r"[─│╭╮╰╯╴╶┌┐└┘├┤]+|-{3,}", " ", text).split())
    return re.split(r" For full helptext", text)[0]


def value_of(flag: str, argv: Sequence[str]) -> str:
    """The value given to a flag, before the rest is parsed."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def rate(rates: tuple[float, ...]) -> float | tuple[float, ...] | None:
    if not rates:
        return None
    return rates[0] if len(rates) == 1 else rates
