"""A sweep as a picture: what is right, against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clca.plots.fonts import save_figure

if TYPE_CHECKING:
    from clca.evaluation.keep_rate_sweep import Sweep

_INK, _FAINT, _LINE = "#26302a", "#7b857e", "#2f7d4f"


def draw_sweep(path: Path, sweep: Sweep) -> None:
    """Write a PNG: top-1 with its standard error against GMACs, every point named by its keep rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = [point.gmacs for point in sweep.points]
    y = [100 * point.top1 for point in sweep.points]
    errors = [100 * point.top1_error for point in sweep.points]
    axes.errorbar(x, y, yerr=errors, color=_LINE, marker="o", ms=5, lw=1.2, elinewidth=0.9, capsize=2, zorder=2)
    for point, cost, right in zip(sweep.points, x, y, strict=True):
        if point.own:
            axes.plot(cost, right, "o", ms=12, mfc="none", mec=_INK, mew=1.3, zorder=3, label="trained with")
        axes.annotate(point.rates, (cost, right), xytext=(7, 6), textcoords="offset points", size=8.5, color=_INK)
    axes.legend(loc="best", frameon=False, fontsize=8.5)
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("GMACs an image (numbers: keep rates)", color=_INK)
    axes.set_ylabel("top-1, % (± standard error)", color=_INK)
    title = f"{Path(sweep.run).name}: {sweep.reduction}, {sweep.split}, {sweep.images} images"
    axes.set_title(title, size=9.5, parse_math=False)
    axes.grid(axis="y", color=_FAINT, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save_figure(figure, path, dpi=150, format="png")
