"""Numbers in files that others may have written: checked, or None."""

from __future__ import annotations

import math
from typing import Any

LARGEST_INTEGER = 2**53
LARGEST_NUMBER = 1e30


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
