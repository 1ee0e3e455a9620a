"""What the axes of several figures share: scales, grids, numbers beside rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def percent(axes: Any, values: Sequence[float], which: str = "y") -> None:
    """Limits and grid for accuracies in percent, never beyond what an accuracy can be."""
    there = [value for value in values if math.isfinite(value)]
    if not there:
        return
    low, high = min(there), max(there)
    margin = max(1.0, 0.08 * (high - low))
    limits = (max(0.0, low - margin) if low >= 0 else low - margin, min(100.0 + 0.2 * margin, high + margin))
    (axes.set_ylim if which == "y" else axes.set_xlim)(*limits)
    axes.grid(axis=which)


def cost_scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis with plain numbers where costs lie more than fourfold apart, else a linear one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    there = [value for value in values if math.isfinite(value) and value > 0]
    if there and max(there) > 4 * min(there):
        axes.set_xscale("log")
        wide = max(there) > 40 * min(there)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(there) / 1.15, max(there) * 1.15)
    elif there:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
        margin = 0.07 * (max(there) - min(there)) or 0.1 * max(there)
        axes.set_xlim(max(0.0, min(there) - margin), max(there) + margin)


def log_y(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")


def plain_number(value: float, _: Any = None) -> str:
    """3, 0.25, 1200, 2e6: no mathematics, which the report does not set."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.10g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def rows(axes: Any, names: Sequence[str], beside: Sequence[str] = ()) -> None:
    """A horizontal line of the picture a name, the first on top, with a note at its right end."""
    places = list(range(len(names)))
    axes.set_yticks(places, list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if any(beside):
        right = axes.secondary_yaxis("right")
        right.set_yticks(places, list(beside))
        right.tick_params(length=0, labelsize=8)
        right.spines["right"].set_visible(False)


def spread(count: int, width: float) -> list[float]:
    """Places beside a line for points that would hide one another: even, not random, so that pictures repeat."""
    steps = [((k * 0.6180339887) % 1.0 - 0.5) * width for k in range(count)]
    return steps if count > 1 else [0.0] * count


def thinned(length: int, most: int) -> list[int]:
    """At most that many places of a sequence, evenly, its end among them."""
    if length <= most:
        return list(range(length))
    return sorted({round(k * (length - 1) / (most - 1)) for k in range(most)})
