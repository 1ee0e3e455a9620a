"""The columns of the result table, and rows as they are read back: from files that anybody may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clca.system.files import as_utf8

TEXT = ("run", "name", "state", "error", "data", "split", "backbone", "reduction", "keep_rates", "locations",
        "arm", "device", "precision", "host", "clca", "torch", "timm", "finished_at")  # fmt: skip
WHOLE = ("img_size", "num_clr", "cla_width", "seed", "params", "train_images", "epochs", "steps", "threads")
YES_NO = ("clc_gap", "clc_recover_at_last")
NUMBER = ("keep_rate", "top1", "top5", "macro", "loss", "train_loss", "train_top1", "gmacs", "computed_gmacs",
          "images_per_second", "train_seconds", "seconds", "grad_max", "grad_median")  # fmt: skip
COLUMNS = (
    "run", "name", "state", "error", "data", "split", "backbone", "reduction", "keep_rate", "keep_rates", "locations",
    "img_size", "arm", "num_clr", "clc_gap", "clc_recover_at_last", "cla_width", "seed", "top1", "top5", "macro",
    "loss", "train_loss", "train_top1", "gmacs", "computed_gmacs", "params", "images_per_second", "train_images",
    "train_seconds", "seconds", "epochs", "steps", "grad_max", "grad_median", "device", "precision", "threads", "host",
    "clca", "torch", "timm", "finished_at",
)  # fmt: skip
AXIS = "axis."
"""What the name of a column begins with that says what a run's value on an axis is called."""
MOST_AXES = 64

LONGEST_TEXT = 20_000
LONGEST_NAME = 600
LARGEST_WHOLE = 2**53
LARGEST_NUMBER = 1e30


def sound_row(content: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the columns of the table alone, each None or of its kind.

    Args:
        content: What a file holds.
    """
    row: dict[str, Any] = {}
    axes = 0
    for name, value in content.items():
        if name in _OF_KIND:
            row[name] = _OF_KIND[name](value)
        elif isinstance(name, str) and name.startswith(AXIS) and len(name) <= LONGEST_NAME and axes < MOST_AXES:
            axes += 1
            row[as_utf8(name)] = _text(value)
    return row


def number(value: Any, most: float = LARGEST_NUMBER) -> float | None:
    """A number that is finite and not beyond all measure; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -most <= value <= most else None


def whole(value: Any) -> int | None:
    """A whole number; None for all else."""
    value = number(value, LARGEST_WHOLE)
    return int(value) if value is not None and math.floor(value) == value else None


def _text(value: Any) -> str | None:
    return as_utf8(value[:LONGEST_TEXT]) if isinstance(value, str) else None


def _yes_no(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


_OF_KIND: dict[str, Any] = {
    **dict.fromkeys(TEXT, _text),
    **dict.fromkeys(WHOLE, whole),
    **dict.fromkeys(YES_NO, _yes_no),
    **dict.fromkeys(NUMBER, number),
}
