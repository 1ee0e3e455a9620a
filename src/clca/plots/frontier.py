"""Accuracy against cost: what a budget buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clca.plots.fonts import save_figure
from clca.plots.speedup import STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _FAINT = "#222222", "#777777"
_BEST = "Pareto frontier (numbers: keep rates)"
_AXIS = {
    "latency_ms": "milliseconds a batch of {batch} (median, to the 90th percentile)",
    "gmacs": "GMACs an image",
    "images_per_second": "images a second",
}


@dataclass(frozen=True)
class FrontierPoint:
    """One candidate.

    Attributes:
        family: Legend entry that it belongs to; points of one family are connected.
        keep_rate: Its label.
        cost: In the unit of the axis.
        late: How far its 90th percentile lies above `cost`; 0 where there is none.
        top1, top1_error: Share of images that are right, and its standard error, 0 … 1.
    """

    family: str
    keep_rate: str
    cost: float
    late: float
    top1: float
    top1_error: float


@dataclass(frozen=True)
class Frontier:
    """What the picture shows.

    Attributes:
        points: Every candidate, families together.
        best: Those that no other beats, from cheap to dear.
        chosen: The one to circle, if any.
        measure: What costs are; of images a second more is better.
        budget, budget_text: The limit as a cost and in words.
        batch_size: Of the measured latency.
    """

    points: Sequence[FrontierPoint]
    best: Sequence[FrontierPoint]
    chosen: FrontierPoint | None
    measure: Literal["latency_ms", "gmacs", "images_per_second"]
    budget: float
    budget_text: str
    batch_size: int


def draw_frontier(path: Path, frontier: Frontier) -> None:
    """Write a PNG: every candidate with its standard error, the frontier, the budget and the chosen point."""
    save_figure(frontier_figure(frontier), path, dpi=160, format="png")


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


def frontier_figure(frontier: Frontier) -> Figure:
    """What `draw_frontier` draws; it grows with the legend, which leaves the picture itself its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families: dict[str, list[FrontierPoint]] = {}
    for point in frontier.points:
        families.setdefault(point.family, []).append(point)
    width, columns, lines = _legend_layout(list(families))
    figure = Figure(figsize=(width, 4.1 + 0.2 * lines), layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (family, own) in enumerate(families.items()):
        axes.errorbar(
            [point.cost for point in own], [100 * point.top1 for point in own],
            xerr=[[0.0] * len(own), [point.late for point in own]] if any(point.late for point in own) else None,
            yerr=[100 * point.top1_error for point in own],
            label=family, elinewidth=0.8, lw=0.8, zorder=3, **family_style(number),
        )  # fmt: skip
    axes.plot([p.cost for p in frontier.best], [100 * p.top1 for p in frontier.best], color=_FAINT, lw=2.2, alpha=0.5,
              zorder=2, label=_BEST)  # fmt: skip
    _draw_budget(axes, frontier)
    chosen = frontier.chosen
    if chosen is not None:
        axes.plot(chosen.cost, 100 * chosen.top1, "o", ms=15, mfc="none", mec=_INK, mew=1.4, zorder=4,
                  label=f"chosen: keep rate {chosen.keep_rate}")  # fmt: skip
    axes.set_xlabel(_AXIS[frontier.measure].format(batch=frontier.batch_size), color=_INK)
    axes.set_ylabel("top-1, % (± standard error)", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    ends = [own[k] for own in families.values() for k in (0, -1)]
    _label(axes, canvas, frontier.points, [*([chosen] if chosen is not None else []), *frontier.best, *ends])
    return figure


def _draw_budget(axes: Any, frontier: Frontier) -> None:
    """Limits and scale of the axes, what lies over the budget in grey, and the budget as a line with its name."""
    from matplotlib.ticker import LogLocator

    budget, costs = frontier.budget, [point.cost for point in frontier.points]
    if max([budget, *costs]) > 4 * min([budget, *costs]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    low, high = axes.get_xlim()
    low, high = min(max(low, 0.5 * min(costs)), budget * 0.9), max(high, budget * 1.1)
    axes.set_xlim(low, high)
    beyond = (low, budget) if frontier.measure == "images_per_second" else (budget, high)
    axes.axvspan(*beyond, color="#EEEEEE", zorder=0, lw=0)
    axes.axvline(budget, color=_INK, lw=1, ls="--", zorder=1)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom), min(top, 101) + 0.08 * (top - bottom))
    left = budget * budget < low * high if axes.get_xscale() == "log" else 2 * budget < low + high
    side = "left" if left else "right"
    text = f"  {frontier.budget_text}  "
    axes.text(budget, axes.get_ylim()[1], text, size=8.5, color=_INK, va="top", ha=side)


def _legend_layout(names: list[str]) -> tuple[float, int, int]:
    """Width of the figure in inches, and columns and lines of its legend, which has two entries more."""
    longest = max(map(len, [*names, _BEST]))
    wide = len(names) > 8
    width = 10.0 if wide else 7.2
    columns = max(1, min(3 if wide else 2, int(width / (0.5 + 0.064 * longest))))
    return width, columns, math.ceil((len(names) + 2) / columns)


def _label(axes: Any, canvas: Any, points: Sequence[FrontierPoint], named: list[FrontierPoint]) -> None:
    """Keep rates beside some points, in order of importance, where they lie neither on a marker nor on one another."""
    from matplotlib.transforms import Bbox

    canvas.draw()
    marks = [axes.transData.transform((point.cost, 100 * point.top1)) for point in points]
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in marks]
    sides = {"left": 7, "right": -7}, {"bottom": 5, "top": -5}
    for point in dict.fromkeys(named):
        for (across, dx), (up, dy) in product(sides[0].items(), sides[1].items()):
            text = axes.annotate(
                point.keep_rate,
                (point.cost, 100 * point.top1),
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
