"""The keep rates that one model is trained for, as settings spell them: a list, or a range such as `0.05..1`."""

from __future__ import annotations

from typing import Any

from clca.system.numbers import decimal_number

MOST_RATES = 64
RANGE_RATES = 5
"""Keep rates that stand for a range, its ends included."""


def parsed_rates(value: Any) -> Any:
    """The keep rates of a setting, for pydantic to check.

    Args:
        value: A list, of numbers or of text; or a range `LOW..HIGH`, alone or as the only element of a list. A range
            becomes five rates in equal ratios, rounded to three significant digits; the ends stay as they are.

    Raises:
        ValueError: It is text, but no range of two keep rates.
    """
    text = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    if not isinstance(text, str) or (text is not value and ".." not in text):
        return value
    low_text, sign, high_text = text.strip().partition("..")
    try:
        low, high = decimal_number(low_text.strip()), decimal_number(high_text.strip())
    except ValueError:
        low = high = 0.0
    if not sign or not 0 < low < high <= 1:
        raise ValueError("should be a list of keep rates, or a range such as 0.05..1, above 0 and at most 1")
    ratio = (high / low) ** (1 / (RANGE_RATES - 1))
    inner = [float(f"{low * ratio**step:.3g}") for step in range(1, RANGE_RATES - 1)]
    return [low, *inner, high]


def distinct_rates(rates: tuple[float, ...]) -> tuple[float, ...]:
    """The rates in ascending order, each once.

    Raises:
        ValueError: There are fewer than two.
    """
    found = tuple(sorted(set(rates)))
    if len(found) < 2:
        raise ValueError("needs at least two different keep rates; for one, set keep_rate")
    return found
