"""Accuracy against cost over the keep rates of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clca.plots.fonts import save_figure

_INK, _FAINT, _LINE = "#26302a", "#7b857e", "#2f7d4f"


@dataclass(frozen=True)
class KeepRatePoint:
    """One point of the picture.

    Attributes:
        keep_rate: Its label.
        gmacs: Multiply-accumulates of an image in 10⁹.
        top1, top1_error: Share of images that are right, and its standard error, 0 … 1.
        trained: Whether the run was trained with this keep rate; it is circled.
    """

    keep_rate: str
    gmacs: float
    top1: float
    top1_error: float
    trained: bool


def draw_sweep(path: Path, marks: Sequence[KeepRatePoint], title: str) -> None:
    """Write a PNG: top-1 with its standard error against GMACs, every point labelled with its keep rate.

    Args:
        path: The file.
        marks: In the order in which a line connects them.
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = [mark.gmacs for mark in marks]
    y = [100 * mark.top1 for mark in marks]
    errors = [100 * mark.top1_error for mark in marks]
    axes.errorbar(x, y, yerr=errors, color=_LINE, marker="o", ms=5, lw=1.2, elinewidth=0.9, capsize=2, zorder=2)
    for mark, cost, accuracy in zip(marks, x, y, strict=True):
        if mark.trained:
            axes.plot(cost, accuracy, "o", ms=12, mfc="none", mec=_INK, mew=1.3, zorder=3, label="trained with")
        axes.annotate(mark.keep_rate, (cost, accuracy), xytext=(7, 6), textcoords="offset points", size=8.5, color=_INK)
    axes.legend(loc="best", frameon=False, fontsize=8.5)
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("GMACs an image (numbers: keep rates)", color=_INK)
    axes.set_ylabel("top-1, % (± standard error)", color=_INK)
    axes.set_title(title, size=9.5, parse_math=False)
    axes.grid(axis="y", color=_FAINT, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save_figure(figure, path, dpi=150, format="png")
