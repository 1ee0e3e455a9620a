"""The columns of the result table, and the check of rows that are read from files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clca.system.files import as_utf8
from clca.system.numbers import integer, number

TEXT = ("run", "name", "state", "error", "data", "split", "backbone", "reduction", "keep_rates", "locations",
        "arm", "device", "precision", "host", "clca", "torch", "timm", "finished_at")  # fmt: skip
INTEGER = ("img_size", "num_clr", "cla_width", "seed", "params", "train_images", "epochs", "steps", "threads")
BOOLEAN = ("clc_gap", "clc_recover_at_last")
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
"""Prefix of the columns that hold the label of a run's value on an axis."""
MOST_AXES = 64

LONGEST_TEXT = 20_000
LONGEST_NAME = 600


def checked_row(content: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the table's columns only; a value of the wrong type becomes None.

    Args:
        content: The object read from a file.
    """
    row: dict[str, Any] = {}
    axes = 0
    for name, value in content.items():
        if name in _CHECKS:
            row[name] = _CHECKS[name](value)
        elif isinstance(name, str) and name.startswith(AXIS) and len(name) <= LONGEST_NAME and axes < MOST_AXES:
            axes += 1
            row[as_utf8(name)] = _text(value)
    return row


def _text(value: Any) -> str | None:
    return as_utf8(value[:LONGEST_TEXT]) if isinstance(value, str) else None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


_CHECKS: dict[str, Any] = {
    **dict.fromkeys(TEXT, _text),
    **dict.fromkeys(INTEGER, integer),
    **dict.fromkeys(BOOLEAN, _boolean),
    **dict.fromkeys(NUMBER, number),
}
