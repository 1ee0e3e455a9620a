"""The rows of `over_seeds` for figures: settings averaged to points, and the points divided into panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clca.report.published import BY_BLOCK
from clca.report.study.settings import axes_of

if TYPE_CHECKING:
    import pandas as pd

MOST_PANELS = 12


def panel_keys(cells: pd.DataFrame) -> list[str]:
    """The columns that define a panel: set, image size and backbone; set and size if that gives too many panels."""
    keys = ["data", "img_size", "backbone"]
    return keys if cells.groupby(keys).ngroups <= MOST_PANELS else keys[:2]


def pooled(cells: pd.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """One row per point: means over the settings that share it.

    A point that lacks some of the backbones that others of its panel are of would be a mean over something else; it is
    left out.

    Args:
        cells: Of `over_seeds`.
        keys: Of the panels (`panel_keys`).
        columns: To be averaged.

    Returns:
        `keys`, reduction, arm, keep_rate, `BY_BLOCK`, `columns`, `backbones` and `n` (runs); and how many points were
        left out.
    """
    if cells.empty:
        return cells, 0
    whole = [*keys, "reduction", "arm", "keep_rate", *(name for name in BY_BLOCK if name in cells)]
    grouped = cells.groupby(whole, sort=True, dropna=False)
    points = grouped[list(columns)].mean()
    points["backbones"], points["n"] = grouped["backbone"].nunique(), grouped["n"].sum()
    points = points.reset_index()
    most = points.groupby(list(keys))["backbones"].transform("max")
    full = points[points["backbones"] == most]
    return full.reset_index(drop=True), len(points) - len(full)


def also_over(cells: pd.DataFrame) -> str:
    """A sentence on what else a point is a mean over, and on the position of one with several keep rates."""
    several = " Rates that differ from block to block stand at their mean." if (cells["keep_rates"] != "").any() else ""
    axes = [name.removeprefix("axis.") for name in axes_of(cells) if cells[name].nunique() > 1]
    return several + (f" Points are means over {', '.join(axes)} too." if axes else "")


def panel_title(keys: Sequence[str], values: Sequence[object], cells: pd.DataFrame) -> str:
    """The title of a panel, without what all panels share."""
    from clca.report.study.figures.marks import short

    parts = []
    for key, value in zip(keys, values, strict=True):
        if key == "data":
            parts.append(short(str(value)))
        elif key == "img_size" and (cells["img_size"].nunique() > 1 or len(keys) == 2):
            parts.append(f"{value} px")
        elif key == "backbone" and cells["backbone"].nunique() > 1:
            parts.append(short(str(value), 30))
    return ", ".join(parts)


def ms(rate: float) -> float:
    """Milliseconds per image, from images per second."""
    return 1000 / rate if rate and rate > 0 else float("nan")
