"""Panels of an explanation as pictures of their own, for pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from clca.explain import Explanation, Stage, View
from clca.plots.explanation import draw_panel, shrink

_INCHES = 3.0


def stage_pictures(image: Image.Image, view: View, stages: Sequence[Stage], side: int = 480) -> list[Image.Image]:
    """What each reduction left, drawn over the image: dropped patches faded, merged ones outlined in one colour.

    Args:
        image: The original.
        view: What the model saw of it.
        stages: From `clca.explain.stages`.
        side: Of the longer side of each picture, in pixels.
    """
    pixels = shrink(image, side)
    return [_picture(view, pixels, panel, side) for panel in stages]


def reason_pictures(explanation: Explanation, side: int = 480) -> list[Image.Image]:
    """The evidence, then the attention of each depth, drawn over the image."""
    pixels = shrink(explanation.image, side)
    panels = ("evidence", *explanation.attention)
    return [_picture(explanation.view, pixels, panel, side, explanation) for panel in panels]


def _picture(
    view: View, pixels: np.ndarray, panel: object, side: int, explanation: Explanation | None = None
) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = view.size
    scale = _INCHES / max(width, height)
    figure = Figure(figsize=(max(width * scale, 0.3), max(height * scale, 0.3)), dpi=side / _INCHES)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_panel(axes, view, pixels, panel, explanation)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
