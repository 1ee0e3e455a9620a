"""Numbers that arrive as text: a command line, an address, a YAML file, an environment variable, a list of labels.

Python's own `int` and `float` also read `1_0`, `٣`, blanks around a number, `nan` and `infinity`. Here a number is
plain decimal in ASCII digits, and finite: what readers take for a number.
"""

import math
import re
from typing import Any

from pydantic import BeforeValidator

_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_LONGEST = 400  # characters: more than the largest double has, and quick to convert


def whole_number(text: str) -> int:
    """The whole number that a text is.

    Args:
        text: Digits, with or without a sign.

    Raises:
        ValueError: It is anything else.
    """
    if len(text) > _LONGEST or not _WHOLE.fullmatch(text):
        raise ValueError(f"invalid literal for int(): {text[:60]!r} is not a whole number in plain digits, such as 12")
    return int(text)


def decimal_number(text: str) -> float:
    """The number that a text is.

    Args:
        text: Digits, with or without a sign, a decimal point and an exponent.

    Raises:
        ValueError: It is anything else, or too large for a double.
    """
    if len(text) > _LONGEST or not _DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"could not convert string to float: {text[:60]!r} is not a plain number, such as 0.25")
    return float(text)


def is_whole_number(text: str) -> bool:
    """Whether a text is a whole number without a sign: a length, a count, a label."""
    return len(text) <= _LONGEST and text.isascii() and text.isdecimal()


def refuse_odd_number(value: Any) -> Any:
    """A value as it came, unless it or a part of it is text that Python takes for a number and a reader does not.

    For fields that hold no text, before pydantic converts what they are given.

    Raises:
        ValueError: It is.
    """
    if isinstance(value, str):
        decimal_number(value)
    elif isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, str):
                decimal_number(part)
    return value


PLAIN = BeforeValidator(refuse_odd_number)
"""For the annotation of a field or a parameter that pydantic converts from text."""


def plain_yaml(loader: Any) -> Any:
    """A YAML loader for which only plain decimal numbers are numbers: not 1_0, 0x10, 017, 1:30, .inf or .nan.

    Args:
        loader: A class of PyYAML's safe loader.

    Returns:
        A subclass of it; what is no number there is text, which a setting that needs a number refuses.
    """
    tags = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

    class Plain(loader):
        yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
            first: [(tag, pattern) for tag, pattern in patterns if tag not in tags]
            for first, patterns in loader.yaml_implicit_resolvers.items()
        }

    first_letters = list("+-.0123456789")
    Plain.add_implicit_resolver(tags[0], re.compile(f"^(?:{_WHOLE.pattern})$", re.ASCII), first_letters)
    Plain.add_implicit_resolver(tags[1], re.compile(f"^(?:{_DECIMAL.pattern})$", re.ASCII), first_letters)
    Plain.add_constructor(tags[0], lambda made, node: whole_number(made.construct_scalar(node)))
    Plain.add_constructor(tags[1], lambda made, node: decimal_number(made.construct_scalar(node)))
    return Plain
