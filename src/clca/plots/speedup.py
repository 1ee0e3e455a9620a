"""Speed-up against the ratio of MACs: points lie on the diagonal where time falls as the MACs do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.plots.fonts import save_figure
from clca.reductions import list_reductions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours (grey for their yellow, which is lost in print), with a marker each, so that neither colour
# vision nor colour print is needed.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
          ("#000000", "X"), ("#888888", "*"))  # fmt: skip
# From close to wide.
_TICKS = ([0.25, 0.35, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16],
          [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)],
          [10.0**power for power in range(-3, 4)])  # fmt: skip
_INK, _FAINT = "#222222", "#777777"


def style_of(reduction: str) -> dict[str, Any]:
    """Colour and marker of a reduction, the same in every picture."""
    known = [name for name in list_reductions() if name != "none"]
    colour, marker = STYLES[known.index(reduction) % len(STYLES)] if reduction in known else ("#777777", "h")
    size = 9 if marker == "*" else 6.5
    return {"color": colour, "marker": marker, "markersize": size, "markeredgecolor": _INK, "markeredgewidth": 0.5}


@dataclass(frozen=True)
class SpeedUp:
    """One reduced model beside the dense one with the same kernels.

    Attributes:
        reduction: Its colour and marker.
        mac_ratio: The dense model's MACs over its own.
        median, p10, p90: Times faster than the dense model.
    """

    reduction: str
    mac_ratio: float
    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class SpeedUpPanel:
    """The models of one setting.

    Attributes:
        title: Model, then a comma, then the setting.
        keep_rates: Those of the points, in words.
        speed_ups: Of one reduction in the order in which a line connects them.
        kernels: Times that the dense model with the same kernels is faster than timm's; None if timm's has no times.
    """

    title: str
    keep_rates: str
    speed_ups: Sequence[SpeedUp]
    kernels: float | None = None


def draw_speed_ups(path: Path, panels: Sequence[SpeedUpPanel], form: str = "png") -> None:
    """Write a picture with one panel a setting.

    Args:
        path: The file.
        panels: At least one, none of them empty.
        form: "png" or "pdf".
    """
    save_figure(speed_up_figure(panels), path, dpi=160, format=form)


def speed_up_figure(panels: Sequence[SpeedUpPanel]) -> Figure:
    """What `draw_speed_ups` draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(6.0, 4.7 * columns + 0.4), 4.2 * lines + 1.1), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel, handles)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    handles["faster by as much"] = handles.pop("faster by as much")  # last
    across = min(len(handles), 2 * columns + 2)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, as many as fit with their labels on a logarithmic axis."""
    for ticks in _TICKS:
        ticks = [tick for tick in ticks if low <= tick <= high]
        if all(math.log(b / a) >= 0.13 * math.log(high / low) for a, b in pairwise(ticks)):
            break
    return ticks


def _panel(axes: Any, panel: SpeedUpPanel, handles: dict[str, Any]) -> None:
    points = panel.speed_ups
    ends = [value for point in points for value in (point.mac_ratio, point.p10, point.p90)]
    low, high = min([1.0, *ends]) * 0.9, max([1.2, *ends]) * 1.08
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.axhspan(low, 1, color="#EEEEEE", zorder=0, lw=0)
    (line,) = axes.plot([low, high], [low, high], color=_FAINT, lw=1, zorder=1)
    handles["faster by as much"] = line
    axes.text(high / 1.02, low * 1.01, "slower than dense", size=8, color=_FAINT, va="bottom", ha="right")
    _set_ticks([axes.xaxis, axes.yaxis], low, high)
    for name in dict.fromkeys(point.reduction for point in points):
        own = [point for point in points if point.reduction == name]
        x, y = [point.mac_ratio for point in own], [point.median for point in own]
        ranges = [[point.median - point.p10 for point in own], [point.p90 - point.median for point in own]]
        style = style_of(name)
        axes.errorbar(x, y, yerr=ranges, fmt="none", ecolor=style["color"], elinewidth=0.8, zorder=2)
        (handles[name],) = axes.plot(x, y, lw=0.9, zorder=3, **style)
    axes.set_xlabel(f"times fewer MACs (keep rate {panel.keep_rates})", color=_INK)
    axes.set_ylabel("times faster than dense, same kernels", color=_INK)
    head, _, tail = panel.title.partition(", ")
    axes.set_title(f"{head}\n{tail}", fontsize=9.5, color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if panel.kernels is not None:
        _second_axis(axes, panel.kernels, low, high)


def _second_axis(axes: Any, kernels: float, low: float, high: float) -> None:
    """On the right the same heights over timm's dense model, which is slower by what the kernels give."""
    right = axes.secondary_yaxis("right", functions=(lambda y: y * kernels, lambda y: y / kernels))
    _set_ticks([right.yaxis], low * kernels, high * kernels)
    right.tick_params(colors=_FAINT)
    right.spines["right"].set_color(_FAINT)
    right.set_ylabel(f"than timm's dense (kernels alone: {kernels:.2f}×)", color=_FAINT)


def _set_ticks(axes: Sequence[Any], low: float, high: float) -> None:
    ticks = _ticks(low, high)
    for axis in axes:
        axis.set_ticks(ticks, [f"{tick:g}×" for tick in ticks])
        axis.set_ticks([], minor=True)
