"""The confusion matrix as a picture, readable from five classes to a few hundred."""

from pathlib import Path

import numpy as np

from clca.plots.fonts import save_figure
from clca.system.paths import shown

MOST_WITH_NUMBERS = 25
MOST_WITH_NAMES = 120


def write_confusion_picture(path: Path, confusion: np.ndarray, names: list[str]) -> None:
    """Draw the share of each true class that went to each predicted class.

    Up to 25 classes each cell shows its count; up to 120 every class is named, beyond that every n-th. Colours go from
    light to dark in one hue, so they can be distinguished without colour vision and in print; their scale is that
    of a square root, so that a single mistake shows.

    Args:
        path: PNG file to write.
        confusion: Images by true class (row) and predicted class (column), [K, K].
        names: Of the classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(names)
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    cell = 0.55 if count <= MOST_WITH_NUMBERS else 0.17 if count <= MOST_WITH_NAMES else max(0.02, 16 / count)
    labels = [name if len(name) <= 22 else name[:20] + "…" for name in map(shown, names)]
    margin = 1.2 + 0.085 * max(len(name) for name in labels)
    side = max(3.0, cell * count)
    figure = Figure(figsize=(side + margin + 0.9, side + margin), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    step = 1 if count <= MOST_WITH_NAMES else -(-count // 60)
    ticks = range(0, count, step)
    size = 9 if count <= MOST_WITH_NUMBERS else 7
    axes.set_xticks(ticks, [labels[k] for k in ticks], rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, [labels[k] for k in ticks], fontsize=size, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right = np.trace(confusion) / max(1, confusion.sum())
    axes.set_title(f"{confusion.sum()} images, {right:.1%} right", fontsize=10)
    if count <= MOST_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, shrink=0.8, aspect=30)
    bar.set_label("share of the true class")
    save_figure(figure, path, dpi=130, format="png", bbox_inches="tight", pad_inches=0.15)


def most_confused(confusion: np.ndarray, names: list[str], count: int = 5) -> list[tuple[str, str, int]]:
    """The pairs (true class, taken for, images) that are confused most, most first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = (np.unravel_index(place, wrong.shape) for place in order)
    return [(names[row], names[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column]]
