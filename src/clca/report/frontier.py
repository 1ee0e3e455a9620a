"""Accuracy against cost: what a budget buys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.report.speedup import STYLES

if TYPE_CHECKING:
    from clca.tune import Point, Tuning

_INK, _FAINT = "#222222", "#777777"
_AXIS = {
    "latency_ms": "milliseconds a batch of {batch} (median, to the 90th percentile)",
    "gmacs": "GMACs an image",
    "images_per_second": "images a second",
}


def draw_frontier(path: Path, tuning: Tuning) -> None:
    """Write a PNG: every candidate with its standard error, the frontier, the budget and the chosen point.

    Args:
        path: The file.
        tuning: What `clca.tune.tune` found.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from clca.tune import frontier

    measure, budget = tuning.budget.measure, tuning.budget.value
    figure = Figure(figsize=(7.2, 4.6), layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    families = list(dict.fromkeys((point.run, point.img_size) for point in tuning.points))
    for number, (run, size) in enumerate(families):
        own = [point for point in tuning.points if (point.run, point.img_size) == (run, size)]
        colour, marker = STYLES[number % len(STYLES)]
        late = [point.latency.p90 - point.latency.median for point in own]
        name = f"{Path(run).name}: {own[0].reduction}, {size} px" + ("" if own[0].trained_size else " (not trained)")
        axes.errorbar(
            [_x(point, measure) for point in own], [100 * point.top1 for point in own],
            xerr=[[0.0] * len(own), late] if measure == "latency_ms" else None,
            yerr=[100 * point.error for point in own],
            fmt=marker, color=colour, markeredgecolor=_INK, markeredgewidth=0.5, markersize=6.5, elinewidth=0.8,
            label=name, zorder=3,
        )  # fmt: skip
    best = frontier(tuning.points, measure)
    axes.plot([_x(p, measure) for p in best], [100 * p.top1 for p in best], color=_FAINT, lw=1, zorder=2,
              label="none is both more accurate and cheaper")  # fmt: skip
    low, high = axes.get_xlim()
    low, high = max(0.0, min(low, budget * 0.9)), max(high, budget * 1.1)
    axes.set_xlim(low, high)
    beyond = (low, budget) if measure == "images_per_second" else (budget, high)
    axes.axvspan(*beyond, color="#EEEEEE", zorder=0, lw=0)
    axes.axvline(budget, color=_INK, lw=1, ls="--", zorder=1)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0, bottom), top + 0.08 * (top - bottom))
    left = budget - low < high - budget
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
    axes.set_ylabel("top-1 on the validation images, % (± standard error)", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8.5)
    first = [chosen] if chosen is not None else []
    _label(axes, canvas, [*first, *best, *tuning.points], measure)
    figure.savefig(path, dpi=160, format="png")


def _x(point: Point, measure: str) -> float:
    return point.latency.median if measure == "latency_ms" else getattr(point, measure)


def _label(axes: Any, canvas: Any, points: list[Point], measure: str) -> None:
    """Keep rates beside their points, in order of importance, as long as they do not lie on one another."""
    canvas.draw()
    taken: list[Any] = []
    for point in dict.fromkeys(points):
        place = (_x(point, measure), 100 * point.top1)
        for shift, sides in (((6, 6), ("left", "bottom")), ((-6, 6), ("right", "bottom")), ((6, -6), ("left", "top")),
                             ((-6, -6), ("right", "top"))):  # fmt: skip
            text = axes.annotate(
                point.rates,
                place,
                xytext=shift,
                textcoords="offset points",
                size=8,
                color=_INK,
                ha=sides[0],
                va=sides[1],
            )
            box = text.get_window_extent(canvas.get_renderer()).expanded(1.05, 1.05)
            if not any(box.overlaps(other) for other in taken) and axes.bbox.contains(box.x0, box.y0):
                taken.append(box)
                break
            text.remove()
