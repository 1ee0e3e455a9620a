"""Reading a command's arguments with tyro, and saying in one line what is wrong with them."""

import contextlib
import inspect
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_origin, get_type_hints

from clca.cli.help_text import HeldOutput, unbroken, word_values
from clca.errors import ClcaError
from clca.system.numerals import decimal_number, whole_number


def parse(what: Any, prog: str, argv: Sequence[str], description: str | None = None) -> Any:
    """Parse with tyro; a mistake becomes a ClcaError of one line instead of tyro's box."""
    import tyro

    if inspect.isfunction(what):
        word_values(what)
        what.__doc__ = unbroken(what.__doc__ or "")
    if description is None:  # tyro would take the examples for a section of the docstring that it does not show
        description = what.__doc__.split("\nArgs:")[0]
    told, asked = io.StringIO(), HeldOutput()
    try:
        with _plain_numbers(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(asked):
            chosen, unknown = tyro.cli(
                what, prog=prog, args=list(argv), description=description, return_unknown_args=True
            )
    except SystemExit as end:
        if end.code in (0, None):
            print(asked.text(), end="")
            raise
        raise ClcaError(_reworded(_without_box(told.getvalue()), prog)) from None
    if unknown:
        raise ClcaError(_not_there(unknown[0], _help_of(what, prog, description), prog))
    _refuse_empty(what, argv)
    return chosen


def _plain_numbers() -> Any:
    """While it is entered, tyro reads numbers as `clca.system.numerals` does: Python would take 1_0 for 10."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()
    readers: dict[Any, Any] = {int: whole_number, float: decimal_number}

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type not in readers:
            return None
        read, kind = readers[info.type], info.type
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: isinstance(value, (int, kind)) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _help_of(what: Any, prog: str, description: str | None) -> str:
    import tyro

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        tyro.cli(what, prog=prog, args=["--help"], description=description)
    return told.getvalue()


def _not_there(word: str, help_text: str, prog: str) -> str:
    if not word.startswith("-"):
        return f"{word!r} is one word too many: {prog} --help says what there is"
    name = word.partition("=")[0]
    # Without the dashes, which would make any two short options near.
    flags = re.findall(r"--([a-z][\w-]*)", help_text)
    near = get_close_matches(name.lstrip("-").replace("_", "-"), flags, 1)
    return f"no option {name}: " + (f"did you mean --{near[0]}?" if near else f"{prog} --help lists what there is")


def _without_box(text: str) -> str:
    """The words of tyro's report, without frame and without the pointer to --help that it ends with."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = " ".join(re.sub(r"[─│╭╮╰╯╴╶┌┐└┘├┤]+|-{3,}", " ", text).split())
    return re.split(r" For full helptext", text)[0]


def _reworded(text: str, prog: str) -> str:
    """One plain sentence for what tyro says; its own words where they are none of those known here."""
    if found := re.search(r"Missing value for argument '(-.+?)'", text):
        return f"{found[1]} needs a value"
    if found := re.search(r"Missing value for argument '(.+?)'", text):
        return f"{found[1].upper()} is missing: {prog} --help says what it is"
    if found := re.search(r"Missing from .*?: (\S+) (.*?)\.? \(required\)", text):
        return f"{found[1]} is missing: {found[2]}; {prog} --help says more"
    if found := re.search(r"invalid choice ('.*') for argument '(.+?)'\. Expected one of \((.*?),?\)", text):
        choices = found[3].replace("'", "")
        return f"{found[2]} is {found[1]}: choose from {choices}"
    if found := re.search(r"Error parsing (\S+): (.*?) Argument helptext: ", text):
        flag, reason = found.groups()
        given = re.search(r"\['.*?'\]|'.*'", reason)
        # tyro names the type of a value, but not that of several: there the word for each tells.
        kind = re.search(r"\b(int|float)\b", reason) or re.match(r"--\S+ (N|PIXELS|NUMBER|RATE)\b", text[found.end() :])
        if given and kind:
            words = " ".join(re.findall(r"'(.*?)'", given[0]))
            number = "a whole number" if kind[1] in ("int", "N", "PIXELS") else "a number"
            return f"{flag} is {words!r}: needs {number}"
        return f"{flag}: {reason}"
    return f"{text}; {prog} --help says more"


def _refuse_empty(what: Any, argv: Sequence[str]) -> None:
    """Refuse an option without the values it takes any number of: tyro would take it for omitted."""
    flags = {f"--{name.replace('_', '-')}" for name in _lists_of(what)}
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        if word.replace("_", "-") in flags and following.startswith("--"):
            raise ClcaError(f"{word} needs a value")


def _lists_of(what: Any) -> Iterator[str]:
    """Names of the arguments of a function, or fields of a dataclass, that hold several values."""
    for name, kind in get_type_hints(what).items():
        if is_dataclass(kind):
            yield from _lists_of(kind)
        elif get_origin(kind) is tuple and name != "return":
            yield name


def value_of(flag: str, argv: Sequence[str]) -> str:
    """The value given to a flag, before the rest is parsed; empty where there is none."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):  # of no words it makes none
        if word == flag:
            return "" if following.startswith("--") else following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def rate(rates: tuple[float, ...]) -> float | tuple[float, ...] | None:
    if not rates:
        return None
    return rates[0] if len(rates) == 1 else rates


@contextlib.contextmanager
def refusing_useless_rate(run: str, keep_rate: float | tuple[float, ...] | None) -> Iterator[None]:
    """Refuse a keep rate where no token is dropped; the library, which cannot know that it was typed, only warns.

    Raises:
        ClcaError: What is done inside warned of it.
    """
    if keep_rate is None:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="reduction 'none' keeps every token")
        try:
            yield
        except UserWarning:
            raise ClcaError(f"{run} drops no tokens, so it has no keep rate: leave --keep-rate away") from None
