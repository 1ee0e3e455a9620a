"""How often answers of each probability are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from clca.plots.fonts import save_figure

_INK, _FAINT, _LINE = "#26302a", "#7b857e", "#2f7d4f"
_LARGEST, _SMALLEST = 220.0, 12.0  # areas of the dots, in points²


class Bin(Protocol):
    """The answers with a probability within one bin."""

    @property
    def images(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def accuracy(self) -> float: ...


def draw_reliability(path: Path, bins: Sequence[Bin], error: float) -> None:
    """Write a PNG: the share of right answers against their mean probability, a dot for each bin.

    Dots on the diagonal mean what they say; below it the model is too sure. Their area is the share of the images, and
    bars are 95 % intervals (Wilson) of the share that is right.

    Args:
        path: The file.
        bins: Those with images.
        error: The expected calibration error.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = sum(one.images for one in bins)
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
    for one in bins:
        low, high = _interval(one.accuracy, one.images)
        axes.plot([one.confidence] * 2, [low, high], color=_LINE, linewidth=1, alpha=0.6)
    axes.scatter(
        [one.confidence for one in bins],
        [one.accuracy for one in bins],
        [max(_SMALLEST, _LARGEST * one.images / total) for one in bins],
        color=_LINE,
        zorder=3,
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("probability of the answer")
    axes.set_ylabel("share of answers that are right")
    axes.set_title(f"{total} images, expected calibration error {error:.3f}", fontsize=10, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=130, format="png", bbox_inches="tight", pad_inches=0.15)


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many images."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
