"""Contact sheet: thumbnails in a grid, each with lines of text below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clca.plots.fonts import save_figure
from clca.system.paths import shown

_COLUMNS = 10
_SIDE = 132  # pixels of a thumbnail
_GAP = 16
_DPI = 120
_WIDTH, _LINES = 23, 2  # letters in a line, and lines of a name
_LINE = 13  # pixels


def draw_contact_sheet(
    path: Path, thumbnails: Sequence[NDArray[np.uint8]], right: Sequence[str], given: Sequence[str], title: str
) -> None:
    """Write thumbnails with the right and the given answer below each, as a JPEG file.

    Args:
        path: The file.
        thumbnails: Images [H, W, 3], at least one; scaled to fit.
        right, given: The texts below each, in green and in red.
        title: Above all of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    below = (2 * _LINES + 1) * _LINE
    columns = min(_COLUMNS, len(thumbnails))
    rows = -(-len(thumbnails) // columns)
    cell, high, head = _SIDE + _GAP, _SIDE + below + _GAP, 34
    wide, tall = max(columns * cell + _GAP, 460), rows * high + head + _GAP
    canvas = np.full((tall, wide, 3), 255, np.uint8)
    figure = Figure(figsize=(wide / _DPI, tall / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, (pixels, true, answer) in enumerate(zip(thumbnails, right, given, strict=True)):
        x, y = _GAP + number % columns * cell, head + number // columns * high
        small = Image.fromarray(pixels)
        small.thumbnail((_SIDE, _SIDE))
        left, top = x + (_SIDE - small.width) // 2, y + (_SIDE - small.height) // 2
        canvas[top : top + small.height, left : left + small.width] = np.asarray(small)
        for line, (text, colour) in enumerate(((true, "#006b4f"), (answer, "#b34700"))):
            axes.text(
                x, y + _SIDE + 4 + line * (_LINES * _LINE + 5), _wrapped(text), color=colour, fontsize=6.6, va="top",
                linespacing=1.1, parse_math=False,
            )  # fmt: skip
    axes.imshow(canvas, extent=(0, wide, tall, 0), interpolation="nearest", aspect="auto")
    axes.text(_GAP, head / 2, shown(title), fontsize=9, va="center", parse_math=False)
    save_figure(figure, path, format="jpg", dpi=_DPI, pil_kwargs={"quality": 88})


def _wrapped(text: str) -> str:
    """At most two lines; the end of a longer text stays, as names of cultivars often differ there."""
    text = shown(text)
    most = _WIDTH * _LINES - 2
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
    return "\n".join(textwrap.wrap(text, _WIDTH, max_lines=_LINES, placeholder="…"))
