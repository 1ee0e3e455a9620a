"""A picture of which tokens survive: every patch that is still a token of its own, is merged, or is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clca.explain.survivors import Survivors
from clca.plots.fonts import save_figure

_FADED = 0.86  # how far a dropped patch goes towards paper
_PAPER = np.array([0.955, 0.95, 0.935])
_INK, _FAINT, _RIGHT, _WRONG = "#26302a", "#7b857e", "#2f7d4f", "#b5472f"
_LINE = (0.12, 0.16, 0.14, 0.8)


def paint(
    image: NDArray[np.float64], owner: NDArray[np.int64], grid: tuple[int, int], fused: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One image as a model holds it after a reduction.

    Patches that are tokens of their own keep their pixels, patches merged into one token share its mean colour, and
    dropped and fused ones fade.

    Args:
        image: Values in 0 … 1, [H, W, 3]; the sides are multiples of the grid's.
        owner: The token that holds each patch, -1 for none, [P].
        grid: Patches down and across.
        fused: Whether a patch is in a token that fuses what was dropped, [P].

    Returns:
        The painted image [H, W, 3], and the outlines of tokens as line segments [S, 2, 2] of (x, y) in pixels.
    """
    rows, columns = grid
    high, wide = image.shape[0] // rows, image.shape[1] // columns
    patches = (
        image.reshape(rows, high, columns, wide, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, high, wide, 3)
    )
    painted = patches.copy()
    alive = (owner >= 0) & ~fused
    painted[~alive] = _FADED * _PAPER + (1 - _FADED) * patches[~alive].mean(axis=-1, keepdims=True)
    for token in np.unique(owner[alive]):
        held = owner == token
        if held.sum() > 1:
            painted[held] = patches[held].mean(axis=(0, 1, 2))
    whole = painted.reshape(rows, columns, high, wide, 3).swapaxes(1, 2).reshape(image.shape)
    return whole, _outlines(np.where(alive, owner, -1).reshape(grid), high, wide)


def _outlines(owner: NDArray[np.int64], high: int, wide: int) -> NDArray[np.float64]:
    """Edges between patches of different tokens, [S, 2, 2] of (x, y)."""
    padded = np.pad(owner, 1, constant_values=-1)
    segments = []
    for row, column in np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1]):
        segments.append([(column * wide, row * high), ((column + 1) * wide, row * high)])
    for row, column in np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:]):
        segments.append([(column * wide, row * high), (column * wide, (row + 1) * high)])
    return np.array(segments, dtype=float).reshape(-1, 2, 2) - 0.5


def draw_survivors(
    path: Path, images: Sequence[NDArray[np.float64]], truths: Sequence[str], models: Sequence[Survivors], title: str
) -> None:
    """Write a PNG: a row for each image, and for each model a column for each stage.

    Args:
        path: The file.
        images: What the models saw, values in 0 … 1, [H, W, 3] each.
        truths: The class of each.
        models: What each model did to them; those without stages (dense ones) get no columns of their own.
        title: Over the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    drawn = [model for model in models if model.stages]
    widths = [1.0]
    for model in drawn:
        widths += [0.16] + [1.0] * len(model.stages)
    cell, top, bottom = 1.28, 0.98, 0.62
    size = (sum(widths) * cell + 0.9, len(images) * (cell + 0.2) + top + bottom)
    figure = Figure(figsize=size, facecolor=tuple(_PAPER))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(images), len(widths), width_ratios=widths, wspace=0.06, hspace=0.2,
        left=0.62 / size[0], right=1 - 0.22 / size[0], top=1 - top / size[1], bottom=bottom / size[1],
    )  # fmt: skip
    figure.text(0.62 / size[0], 1 - 0.3 / size[1], title, size=13, weight="bold", color=_INK, va="center")

    def show(row: int, column: int, image: NDArray[np.float64]) -> Any:
        axes = figure.add_subplot(grid[row, column])
        axes.imshow(np.clip(image, 0, 1), interpolation="lanczos" if column == 0 else "nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    for row, (image, truth) in enumerate(zip(images, truths, strict=True)):
        axes = show(row, 0, image)
        axes.set_ylabel(truth, size=8.5, color=_INK, labelpad=5)
        if row == 0:
            axes.set_title("the leaf", size=8.5, color=_INK, pad=5)
        column = 1
        for model in drawn:
            column += 1
            first = None
            for stage in model.stages:
                painted, outlines = paint(image, stage.owner[row], model.grid, stage.fused[row])
                axes = show(row, column, painted)
                axes.add_collection(LineCollection(list(outlines), colors=[_LINE], linewidths=0.7))
                if row == 0:
                    axes.set_title(f"block {stage.block} · {stage.tokens} tokens", size=7.8, color=_INK, pad=5)
                first = first or axes
                column += 1
            assert first is not None
            if row == 0:
                box, last = first.get_position(), axes.get_position()
                y = 1 - (top - 0.32) / size[1]
                figure.text((box.x0 + last.x1) / 2, y, model.name, size=10.5, color=_INK, ha="center", weight="bold")
            right = model.answers[row] == truth
            caption = f"{'✓' if right else '✗'} {model.answers[row]}, {model.probabilities[row]:.0%}"
            axes.text(
                1, -0.035, caption, transform=axes.transAxes, size=7.5, ha="right", va="top",
                color=_RIGHT if right else _WRONG,
            )  # fmt: skip
    note = (
        "In full detail: a token of its own. One outline, one colour: merged into one token. Faded: dropped (EViT "
        "fuses the dropped into one token). Counts include CLS, carriers and recovered tokens. Below: the answer."
    )
    figure.text(0.62 / size[0], 0.26 / size[1], note, size=8, color=_FAINT, va="center")
    save_figure(figure, path, dpi=160, format="png", facecolor=figure.get_facecolor())
