"""Numbers from outside: as text (a command line, an address, YAML, a label), and as values in other people's files.

Python's own `int` and `float` also read `1_0`, `٣`, blanks around a number, `nan` and `infinity`. Here a number is
plain decimal in ASCII digits, and finite: what readers take for a number.
"""

import math
import re
from typing import Any

WHOLE = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONGEST = 400  # characters: more than the largest double has, and quick to convert

LARGEST_INTEGER = 2**53
LARGEST_NUMBER = 1e30


def whole_number(text: str) -> int:
    """The whole number that a text is.

    Args:
        text: Digits, with or without a sign.

    Raises:
        ValueError: It is anything else.
    """
    if len(text) > _LONGEST or not WHOLE.fullmatch(text):
        raise ValueError(f"invalid literal for int(): {text[:60]!r} is not a whole number in plain digits, such as 12")
    return int(text)


def decimal_number(text: str) -> float:
    """The number that a text is.

    Args:
        text: Digits, with or without a sign, a decimal point and an exponent.

    Raises:
        ValueError: It is anything else, or too large for a double.
    """
    if len(text) > _LONGEST or not DECIMAL.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"could not convert string to float: {text[:60]!r} is not a plain number, such as 0.25")
    return float(text)


def is_whole_number(text: str) -> bool:
    """Whether a text is a whole number without a sign: a length, a count, a label."""
    return len(text) <= _LONGEST and text.isascii() and text.isdecimal()


def refuse_odd_number(value: Any) -> Any:
    """A value as it came, unless it, or an element of it, is text other than a plain number.

    For fields that hold no text, before pydantic converts what they are given: it reads `1_0` as Python does. Text
    without a digit is left to pydantic, which names the type that is needed.

    Raises:
        ValueError: It is.
    """
    for part in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(part, str) and (any(letter.isnumeric() for letter in part) or _is_python_number(part)):
            try:
                decimal_number(part)
            except ValueError:
                raise ValueError("should be a valid number in plain digits, such as 12 or 0.25") from None
    return value


def number(value: Any, low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> float | None:
    """The value if it is a number within bounds, else None; true and false are no numbers, nor is NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if low <= value <= high else None


def integer(value: Any, low: int = -LARGEST_INTEGER, high: int = LARGEST_INTEGER) -> int | None:
    """The value as an int if it is a number without decimals within bounds (3 or 3.0), else None."""
    value = number(value, low, high)
    return int(value) if value is not None and math.floor(value) == value else None


def share(value: Any) -> float | None:
    """The value if it is a number from 0 to 1, else None."""
    return number(value, 0, 1)


def _is_python_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
