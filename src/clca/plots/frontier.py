"""Accuracy against cost: what a budget buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.plots.fonts import save_figure
from clca.plots.speedup import STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clca.tune import Point, Tuning

_INK, _FAINT = "#222222", "#777777"
_BEST = "Pareto frontier (numbers: keep rates)"
_AXIS = {
    "latency_ms": "milliseconds a batch of {batch} (median, to the 90th percentile)",
    "gmacs": "GMACs an image",
    "images_per_second": "images a second",
}


def draw_frontier(path: Path, tuning: Tuning, best: Sequence[Point]) -> None:
    """Write a PNG: every candidate with its standard error, the frontier, the budget and the chosen point.

    Args:
        path: The file.
        tuning: What `clca.tune.tune` found.
        best: Its frontier, from cheap to dear.
    """
    save_figure(frontier_figure(tuning, best), path, dpi=160, format="png")


def family_style(number: int) -> dict[str, Any]:
    """Colour, marker, filling and line of the number-th run and size; three times eight differ."""
    again, first = divmod(number, len(STYLES))
    colour, _ = STYLES[first]
    _, marker = STYLES[(first + 3 * again) % len(STYLES)]  # a colour comes back with another marker
    face, line = ((colour, "-"), ("white", "--"), ("#D8D8D8", ":"))[again % 3]
    size = 9 if marker == "*" else 6.5
    edge = _INK if face == colour else colour
    return {"color": colour, "marker": marker, "markersize": size, "mfc": face, "mec": edge, "ls": line,
            "mew": 0.5 if face == colour else 1.2}  # fmt: skip


def frontier_figure(tuning: Tuning, best: Sequence[Point]) -> Figure:
    """What `draw_frontier` draws; it grows with the legend, which leaves the picture itself its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    measure, budget = tuning.budget.measure, tuning.budget.value
    families: dict[tuple[str, int], list[Point]] = {}
    for point in tuning.points:
        families.setdefault((point.run, point.img_size), []).append(point)
    names = {
        (run, size): f"{tuning.names[run]}: {own[0].reduction}, {size} px"
        + ("" if own[0].trained_size else " (not trained)")
        for (run, size), own in families.items()
    }
    width, columns, lines = _room(list(names.values()))
    figure = Figure(figsize=(width, 4.1 + 0.2 * lines), layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (family, own) in enumerate(families.items()):
        late = [point.latency.p90 - point.latency.median for point in own]
        axes.errorbar(
            [_x(point, measure) for point in own], [100 * point.top1 for point in own],
            xerr=[[0.0] * len(own), late] if measure == "latency_ms" else None,
            yerr=[100 * point.error for point in own],
            label=names[family], elinewidth=0.8, lw=0.8, zorder=3, **family_style(number),
        )  # fmt: skip
    axes.plot([_x(p, measure) for p in best], [100 * p.top1 for p in best], color=_FAINT, lw=2.2, alpha=0.5, zorder=2,
              label=_BEST)  # fmt: skip
    costs = [_x(point, measure) for point in tuning.points]
    if max([budget, *costs]) > 4 * min([budget, *costs]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    low, high = axes.get_xlim()
    low, high = min(max(low, 0.5 * min(costs)), budget * 0.9), max(high, budget * 1.1)
    axes.set_xlim(low, high)
    beyond = (low, budget) if measure == "images_per_second" else (budget, high)
    axes.axvspan(*beyond, color="#EEEEEE", zorder=0, lw=0)
    axes.axvline(budget, color=_INK, lw=1, ls="--", zorder=1)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom), min(top, 101) + 0.08 * (top - bottom))
    left = budget * budget < low * high if axes.get_xscale() == "log" else 2 * budget < low + high
    axes.text(
        budget,
        axes.get_ylim()[1],
        f"  {tuning.budget}  ",
        size=8.5,
        color=_INK,
        va="top",
        ha="left" if left else "right",
    )
    chosen = tuning.chosen
    if chosen is not None:
        axes.plot(_x(chosen, measure), 100 * chosen.top1, "o", ms=15, mfc="none", mec=_INK, mew=1.4, zorder=4,
                  label=f"chosen: keep rate {chosen.rates}")  # fmt: skip
    axes.set_xlabel(_AXIS[measure].format(batch=tuning.batch_size), color=_INK)
    axes.set_ylabel("top-1, % (± standard error)", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    ends = [own[k] for own in families.values() for k in (0, -1)]
    _label(axes, canvas, tuning.points, [*([chosen] if chosen is not None else []), *best, *ends], measure)
    return figure


def _room(names: list[str]) -> tuple[float, int, int]:
    """Width of the figure in inches, and columns and lines of its legend, which names two things more."""
    longest = max(map(len, [*names, _BEST]))
    wide = len(names) > 8
    width = 10.0 if wide else 7.2
    columns = max(1, min(3 if wide else 2, int(width / (0.5 + 0.064 * longest))))
    return width, columns, math.ceil((len(names) + 2) / columns)


def _x(point: Point, measure: str) -> float:
    return point.latency.median if measure == "latency_ms" else getattr(point, measure)


def _label(axes: Any, canvas: Any, points: list[Point], named: list[Point], measure: str) -> None:
    """Keep rates beside some points, in order of importance, where they lie neither on a marker nor on one another."""
    from matplotlib.transforms import Bbox

    canvas.draw()
    marks = [axes.transData.transform((_x(point, measure), 100 * point.top1)) for point in points]
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in marks]
    sides = {"left": 7, "right": -7}, {"bottom": 5, "top": -5}
    for point in dict.fromkeys(named):
        for (across, dx), (up, dy) in product(sides[0].items(), sides[1].items()):
            text = axes.annotate(
                point.rates,
                (_x(point, measure), 100 * point.top1),
                xytext=(dx, dy),
                textcoords="offset points",
                size=8,
                color=_INK,
                ha=across,
                va=up,
            )
            box = text.get_window_extent(canvas.get_renderer())
            if not any(box.overlaps(other) for other in taken) and axes.bbox.contains(box.x0, box.y0):
                taken.append(box)
                break
            text.remove()
