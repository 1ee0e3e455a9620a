"""The help of a command, in lines that fit the terminal."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clca.cli.arguments import Argument
from clca.cli.text import terminal_width, wrapped

_COLUMN, _NARROW = 24, 60  # where descriptions begin, and below which width they stand under the names


def help_text(arguments: Sequence[Argument], prog: str, summary: str, groups: Mapping[str, str]) -> str:
    """What `clca COMMAND --help` prints: usage, summary with examples, and the arguments by group.

    Args:
        arguments: What the command takes.
        prog: Name of the command.
        summary: Paragraphs, wrapped here, and indented lines such as examples, left as they are to copy.
        groups: Title → description of the groups.
    """
    places = [argument for argument in arguments if argument.spelling.positional]
    usage = " ".join(["usage:", prog, "[OPTIONS]", *map(usage_of, places)])
    blocks = [usage, _paragraphs(inspect.cleandoc(summary))]
    if places:
        blocks.append(_group("arguments", "", places, arguments))
    for title in dict.fromkeys(argument.group for argument in arguments):
        members = [one for one in arguments if one.group == title and not one.spelling.positional]
        blocks.append(_group(title, groups.get(title, ""), members, arguments))
    return "\n\n".join(block for block in blocks if block)


def usage_of(argument: Argument) -> str:
    """A positional argument in the line of usage: `RUN`, `[DATA]`, `IMAGES …`."""
    name = f"{argument.metavar} …" if argument.takes_several else argument.metavar
    return name if argument.info.is_required() else f"[{name}]"


def names_of(argument: Argument) -> str:
    """What the help lists an argument under: `--cla, --no-cla`, `--keep-rate RATE [RATE …]`."""
    if argument.spelling.positional:
        return usage_of(argument)
    if argument.is_switch:
        flag = argument.flag
        return flag if argument.spelling.only_on else f"{flag}, --no-{flag.removeprefix('--')}"
    value = argument.metavar
    return f"{argument.flag} {value} [{value} …]" if argument.takes_several else f"{argument.flag} {value}"


def description_of(argument: Argument, arguments: Sequence[Argument]) -> str:
    """The field's description, the settings that it names in backticks spelled as flags, and the default."""
    text = with_flags(argument.info.description or "", arguments)
    default = _default(argument)
    return f"{text} (default: {default})" if default else text


def with_flags(text: str, arguments: Sequence[Argument]) -> str:
    """A text in which the settings in backticks are spelled as flags."""
    flags = {one.name: one.flag for one in arguments}
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), text)


def _default(argument: Argument) -> str:
    value: Any = argument.info.default
    if argument.info.is_required() or argument.info.default_factory or argument.spelling.only_on or value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)


def _group(title: str, about: str, members: Sequence[Argument], arguments: Sequence[Argument]) -> str:
    lines = [f"{title}:"]
    if about:
        lines.append(wrapped(with_flags(about, arguments), "  ", "  "))
    for member in members:
        lines.extend(_entry(names_of(member), description_of(member, arguments)))
    return "\n".join(lines)


def _entry(names: str, description: str) -> Iterator[str]:
    """One argument: its names, and its description beside them or below."""
    narrow = terminal_width() < _NARROW
    indent = " " * (6 if narrow else _COLUMN)
    first = f"  {names}"
    if narrow or len(first) > _COLUMN - 2:
        yield from textwrap.wrap(first, terminal_width(), subsequent_indent="  ", drop_whitespace=True)
        first = indent
    if description:
        yield wrapped(description, first.ljust(len(indent)), indent, break_long_words=narrow)


def _paragraphs(text: str) -> str:
    """Paragraphs in lines as wide as the terminal; indented lines stay as they are."""
    blocks = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        blocks.append(block if any(line.startswith(" ") for line in lines) else wrapped(" ".join(lines)))
    return "\n\n".join(blocks)
