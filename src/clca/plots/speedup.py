"""Speed-up against MAC ratio: where wall clock follows the tokens, points lie on the diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.evaluation.stored import by_rate
from clca.models.config import spelled
from clca.plots.fonts import save_figure
from clca.reductions import list_reductions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clca.benchmark.result import Row

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


def draw_speed_ups(path: Path, panels: Sequence[tuple[str, Sequence[Row]]], form: str = "png") -> None:
    """Write a picture with one panel a setting.

    Args:
        path: The file.
        panels: Title and rows of each panel; rows without a speed-up are left out.
        form: "png" or "pdf".
    """
    save_figure(speed_up_figure(panels), path, dpi=160, format=form)


def speed_up_figure(panels: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """What `draw_speed_ups` draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (title, [row for row in rows if row.share and row.candidate.reduction != "dense"]) for title, rows in panels
    ]
    panels = [(title, rows) for title, rows in panels if rows]
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(6.0, 4.3 * columns + 0.4), 4.2 * lines + 1.1), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (title, rows) in zip(grid.flat, panels, strict=False):
        _panel(axes, title, rows, handles)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    handles["faster by as much"] = handles.pop("faster by as much")  # last
    across = min(len(handles), 2 * columns + 2)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, as many as have room for their labels on a logarithmic axis."""
    for ticks in _TICKS:
        ticks = [tick for tick in ticks if low <= tick <= high]
        if all(math.log(b / a) >= 0.13 * math.log(high / low) for a, b in pairwise(ticks)):
            break
    return ticks


def _panel(axes: Any, title: str, rows: Sequence[Row], handles: dict[str, Any]) -> None:
    ratios = [row.mac_ratio for row in rows if row.mac_ratio]
    speeds = [end for row in rows if row.speed_up for end in (row.speed_up.p10, row.speed_up.p90)]
    low, high = min([1.0, *ratios, *speeds]) * 0.9, max([1.2, *ratios, *speeds]) * 1.08
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.axhspan(low, 1, color="#EEEEEE", zorder=0, lw=0)
    (line,) = axes.plot([low, high], [low, high], color=_FAINT, lw=1, zorder=1)
    handles["faster by as much"] = line
    axes.text(high / 1.02, low * 1.01, "slower than dense", size=8, color=_FAINT, va="bottom", ha="right")
    ticks = _ticks(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}×" for tick in ticks])
        axis.set_ticks([], minor=True)
    for name in dict.fromkeys(row.candidate.reduction for row in rows):
        own = [row for row in rows if row.candidate.reduction == name]
        own.sort(key=lambda row: by_rate(row.candidate.keep_rate), reverse=True)
        x = [row.mac_ratio for row in own]
        y = [row.speed_up.median for row in own if row.speed_up]
        ends = [[row.speed_up.median - row.speed_up.p10 for row in own if row.speed_up],
                [row.speed_up.p90 - row.speed_up.median for row in own if row.speed_up]]  # fmt: skip
        style = style_of(name)
        axes.errorbar(x, y, yerr=ends, fmt="none", ecolor=style["color"], elinewidth=0.8, zorder=2)
        (handles[name],) = axes.plot(x, y, lw=0.9, zorder=3, **style)
    rates = sorted({row.candidate.keep_rate for row in rows}, key=by_rate, reverse=True)
    listed = ", ".join(map(spelled, rates))
    axes.set_xlabel(f"times fewer MACs (keep rate {listed})", color=_INK)
    axes.set_ylabel("times faster than dense", color=_INK)
    head, _, tail = title.partition(", ")
    axes.set_title(f"{head}\n{tail}", fontsize=9.5, color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
