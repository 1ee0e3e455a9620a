"""Reading a command's arguments: argparse splits the words, pydantic checks the values, a mistake ends in one line."""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from clca.cli.arguments import Argument, arguments_of
from clca.cli.help_text import help_text
from clca.errors import ClcaError
from clca.system.settings import explain

T = TypeVar("T", bound=BaseModel)


def parse(command: type[T], prog: str, argv: Sequence[str]) -> T:
    """Read the arguments of a command.

    Args:
        command: Model whose fields are the arguments and whose docstring is the summary of the help.
        prog: Name of the command, such as "clca train".
        argv: The words after it.

    Raises:
        ClcaError: One line on what is wrong with the words.
        SystemExit: After `--help`.
    """
    arguments = arguments_of(command)
    summary = (command.__doc__ or "").partition("\n\nAttributes:")[0]
    given = read(arguments, prog, argv, summary)
    flags = {argument.name: argument.flag for argument in arguments}
    try:
        return command.model_validate(given)
    except ValidationError as error:
        line = explain(error, command, lambda path: flags.get(path[0], path[0]))
        see = f"; see {prog} --help" if any(item["type"] == "missing" for item in error.errors()) else ""
        raise ClcaError(line + see) from None


def read(
    arguments: Sequence[Argument], prog: str, argv: Sequence[str], summary: str, groups: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Split the words of a command into the values of its arguments, as text; those left out are not in the result.

    Args:
        arguments: What the command takes.
        prog: Name of the command.
        argv: The words after it.
        summary: What the help begins with.
        groups: Title → description of the groups in the help.

    Raises:
        ClcaError: A flag does not exist or lacks its value, or there is an argument too many.
        SystemExit: After `--help`.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(help_text(arguments, prog, summary, groups or {}))
        raise SystemExit(0)
    head, tail = _split(argv)
    options = {argument.flag: argument for argument in arguments if not argument.spelling.positional}
    parser = _parser(options.values())
    try:
        found, rest = parser.parse_known_args(head)
    except argparse.ArgumentError as error:
        flag = (error.argument_name or "").partition("/")[0]  # --cla/--no-cla
        raise ClcaError(f"{flag} takes no value" if options[flag].is_switch else f"{flag} needs a value") from None
    for word in rest:
        if word.startswith("-") and word != "-":
            raise ClcaError(_no_option(word.partition("=")[0], options, prog))
    given = vars(found)
    given |= _by_place([one for one in arguments if one.spelling.positional], [*rest, *tail], given, prog)
    for argument in arguments:
        if argument.may_be_one and len(given.get(argument.name, ())) == 1:
            (given[argument.name],) = given[argument.name]
    return given


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words with flags, each with hyphens in its name as in the help, and those behind a `--`."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    head = []
    for word in words[:end]:
        name, sign, value = word.partition("=")
        head.append(f"{name.replace('_', '-')}{sign}{value}" if word.startswith("--") else word)
    return head, words[end + 1 :]


class _Several(argparse.Action):
    """Stores the values of a flag, the flag that came last at the end of the namespace."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        vars(namespace).pop(self.dest, None)
        setattr(namespace, self.dest, values)


def _parser(options: Iterable[Argument]) -> argparse.ArgumentParser:
    """A parser of the flags alone; it checks no value, and what it does not know it leaves over."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for option in options:
        if option.spelling.only_on:
            parser.add_argument(option.flag, action="store_true", dest=option.name, default=argparse.SUPPRESS)
        elif option.is_switch:
            parser.add_argument(
                option.flag, action=argparse.BooleanOptionalAction, dest=option.name, default=argparse.SUPPRESS
            )
        elif option.spelling.repeated:
            parser.add_argument(option.flag, action="append", dest=option.name)
        elif option.takes_several:
            parser.add_argument(option.flag, action=_Several, nargs="+", dest=option.name)
        else:
            parser.add_argument(option.flag, dest=option.name)
    return parser


def _by_place(places: Sequence[Argument], words: list[str], given: dict[str, Any], prog: str) -> dict[str, Any]:
    """The values of positional arguments.

    A flag of several values takes all words that follow it, those of required arguments too (`--keep-rate 0.5 RUN`):
    what lacks is taken back from the end of the last such flag.
    """
    lacking = sum(place.info.is_required() for place in places) - len(words)
    last = next((value for value in reversed(given.values()) if isinstance(value, list)), [])
    if 0 < lacking < len(last):
        words = words + last[-lacking:]
        del last[-lacking:]
    found: dict[str, Any] = {}
    for place in places:
        if place.takes_several and words:
            found[place.name], words = words, []
        elif words:
            found[place.name], words = words[0], words[1:]
    if words:
        raise ClcaError(f"unexpected argument {words[0]!r}: see {prog} --help")
    return found


def _no_option(name: str, options: Iterable[str], prog: str) -> str:
    # Without the dashes, which would make any two short options near.
    near = get_close_matches(name.lstrip("-"), [flag.lstrip("-") for flag in options], 1)
    return f"no option {name}: " + (f"did you mean --{near[0]}?" if near else f"see {prog} --help")


@contextlib.contextmanager
def refusing_useless_rate(run: str, keep_rate: float | tuple[float, ...] | None) -> Iterator[None]:
    """Refuse a keep rate where no token is dropped; the library, which cannot know that it was typed, only warns.

    Raises:
        ClcaError: The library warned inside the context.
    """
    if keep_rate is None:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="reduction 'none' keeps every token")
        try:
            yield
        except UserWarning:
            raise ClcaError(f"{run} drops no tokens, so it has no keep rate: omit --keep-rate") from None
