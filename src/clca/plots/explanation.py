"""The figure of one explanation: the image, its stages, attention, evidence, the depths' shares, the answer."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clca.explain import Explanation, Stage, View
from clca.plots.fonts import save_figure
from clca.system.files import replacing

_INK, _FAINT = "#26302a", "#6d776f"
_FOR, _AGAINST, _LOOKED_AT = "#b5472f", "#2b6a9b", "#e08a00"
_DIM = (1.0, 1.0, 1.0, 0.8)  # over what is gone
_MAX_SIDE = 800  # pixels of the image as drawn
_PER_ROW = 4
_CELL = 2.3  # inches


def draw_explanation(path: str | Path, explanation: Explanation, title: str = "") -> None:
    """Write the figure of an explanation as a PNG, whole or not at all.

    Args:
        path: The file.
        explanation: From `clca.explain.explain`.
        title: Over the figure; the answer by default.

    Raises:
        WorkError: The file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = shrink(explanation.image)
    maps: list[list[Any]] = [[None, *explanation.stages], list(explanation.attention)]
    if not explanation.stages:
        maps = [[None, *explanation.attention]]
    rows = [row[i : i + _PER_ROW] for row in maps for i in range(0, len(row), _PER_ROW)]
    columns = max(max(map(len, rows)), 4 if explanation.depths else 3)
    high = _CELL * float(np.clip(image.shape[0] / image.shape[1], 0.4, 1.8))
    top, gap, side = 0.62, 0.3, 0.12
    bars = max(min(high, 1.9), 1.3, 0.17 * len(explanation.depths))
    last = max(high, bars)
    width, height = columns * _CELL + 2 * side, top + len(rows) * (high + gap) + last + 0.45
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def axes_at(column: float, y: float, wide: float, tall: float) -> Any:
        """Axes by their left edge and width in columns, top and height in inches."""
        left = side + column * _CELL
        return figure.add_axes((left / width, 1 - (y + tall) / height, wide * _CELL / width, tall / height))

    answer = f"{explanation.top[0][0]}, {explanation.top[0][1]:.0%}"
    if explanation.target != explanation.top[0][0]:
        answer += f" (explained: {explanation.target}, {explanation.probability:.0%})"
    figure.text(side / width, 1 - 0.2 / height, title or answer, size=12, weight="bold", color=_INK,
                va="center", parse_math=False)  # fmt: skip
    y = top
    for row in rows:
        for column, panel in enumerate(row):
            _panel(axes_at(column, y, 0.96, high), explanation, image, panel)
        y += high + gap
    _panel(axes_at(0, y, 0.96, high), explanation, image, "evidence")
    begin = 1.0
    if explanation.depths:
        begin = 1 + (columns - 1) / 2
        _depth_bars(axes_at(1.36, y, begin - 1.42, bars), explanation)
    _answer_bars(axes_at(begin + 0.56, y, columns - begin - 0.6, min(bars, 1.9)), explanation)
    figure.text(side / width, 0.17 / height, _note(explanation), size=6.8, color=_FAINT, va="center")
    with replacing(Path(path)) as temporary:
        save_figure(figure, temporary, dpi=200, format="png")


def shrink(image: Image.Image, side: int = _MAX_SIDE) -> NDArray[np.float64]:
    """An image as it is drawn, 0 … 1, [H, W, 3], its longer side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    return np.asarray(small, dtype=np.float64) / 255


def _panel(axes: Any, explanation: Explanation, image: NDArray[np.float64], panel: Any) -> None:
    draw_panel(axes, explanation.view, image, panel, explanation)
    if panel is None:
        title = "image"
    elif isinstance(panel, Stage):
        kept = int((~panel.gone).sum())
        title = f"block {panel.block}: {panel.tokens} tokens, {kept} of {len(panel.gone)} patches left"
    elif panel == "evidence":
        title = f"evidence for {explanation.target}"
    else:
        title = f"CLS attention, block {panel.block}: {1 - panel.elsewhere:.0%} on patches"
    axes.set_title(_short(title, 44), size=7.2, color=_INK, pad=4, parse_math=False)


def draw_panel(
    axes: Any, view: View, image: NDArray[np.float64], panel: Any, explanation: Explanation | None = None
) -> None:
    """Draw one map over the image into matplotlib axes.

    Args:
        axes: Empty.
        view: What the model saw of the image.
        image: From `shrink`.
        panel: None for the image alone; a `Stage`; "evidence"; or an `Attention`.
        explanation: With the evidence, or with all attentions, which share one scale.
    """
    width, height = view.size
    grey = image @ np.array([0.299, 0.587, 0.114])
    plain = panel is None or isinstance(panel, Stage)
    shown = image if plain else np.repeat((0.35 + 0.65 * grey)[..., None], 3, axis=2)
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="lanczos" if plain else "bilinear")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if panel is None:
        _frame(axes, view)
    elif isinstance(panel, Stage):
        _stage(axes, view, panel)
    elif explanation is None:
        raise ValueError("evidence and attention are drawn from an explanation: give it")
    elif panel == "evidence":
        _signed(axes, view, explanation.evidence)
    else:
        largest = max(float(depth.patches.max()) for depth in explanation.attention)  # one scale: depths compare
        _heat(axes, view, panel.patches / max(largest, 1e-12))
    if panel is not None:
        _unseen(axes, view)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _extent(view: View) -> tuple[float, float, float, float]:
    left, top, width, height = view.box
    return left, left + width, top + height, top


def _stage(axes: Any, view: View, stage: Stage) -> None:
    from matplotlib.collections import LineCollection

    veil = np.zeros((*view.grid, 4))
    veil[stage.gone.reshape(view.grid)] = _DIM
    groups = list(stage.groups.values())
    for patches in groups:
        veil.reshape(-1, 4)[patches] = (*_colour(patches[0]), 0.22)
    axes.imshow(veil, extent=_extent(view), interpolation="nearest")
    alone = np.flatnonzero(~stage.gone & ~np.isin(stage.owner, list(stage.groups)))
    edges = [edge for patch in alone for edge in outline(view, np.arange(len(stage.owner)) == patch, 0.0)]
    axes.add_collection(LineCollection(edges, colors=["#26302a80"], linewidths=0.4))
    for patches in groups:
        inside = np.isin(np.arange(len(stage.owner)), patches)
        lines = LineCollection(outline(view, inside, 0.07), colors=[_colour(patches[0])], linewidths=1.0)
        lines.set_capstyle("projecting")
        axes.add_collection(lines)


def _colour(number: int) -> tuple[float, float, float]:
    """The colour of a group by its first patch, the same in every stage; hues by the golden angle stay far apart."""
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.85, (0.85, 0.6)[number % 2])


def outline(view: View, inside: NDArray[np.bool_], inset: float) -> list[list[tuple[float, float]]]:
    """Edges between patches that are inside [P] and others, moved inwards by a share of a patch, as (x, y) pairs."""
    across, down = view.edges()
    dx, dy = inset * (across[1] - across[0]), inset * (down[1] - down[0])
    padded = np.pad(inside.reshape(view.grid), 1)
    segments = []
    for row, column in np.argwhere(inside.reshape(view.grid)):
        x0, x1, y0, y1 = across[column], across[column + 1], down[row], down[row + 1]
        above, below = padded[row, column + 1], padded[row + 2, column + 1]
        before, behind = padded[row + 1, column], padded[row + 1, column + 2]
        left, right = x0 + dx * (not before), x1 - dx * (not behind)
        upper, lower = y0 + dy * (not above), y1 - dy * (not below)
        if not above:
            segments.append([(left, upper), (right, upper)])
        if not below:
            segments.append([(left, lower), (right, lower)])
        if not before:
            segments.append([(left, upper), (left, lower)])
        if not behind:
            segments.append([(right, upper), (right, lower)])
    return segments


def _heat(axes: Any, view: View, strength: NDArray[np.float64]) -> None:
    from matplotlib.colors import to_rgb

    colours = np.empty((*view.grid, 4))
    # The root, as a token's attention is often spread over many patches.
    colours[..., :3], colours[..., 3] = to_rgb(_LOOKED_AT), 0.9 * np.sqrt(strength.reshape(view.grid))
    axes.imshow(colours, extent=_extent(view), interpolation="nearest")


def _signed(axes: Any, view: View, values: NDArray[np.float64]) -> None:
    from matplotlib.colors import to_rgb

    strength = (np.abs(values) / max(float(np.abs(values).max()), 1e-12)).reshape(view.grid)
    colours = np.empty((*view.grid, 4))
    colours[..., :3] = np.where((values.reshape(view.grid) > 0)[..., None], to_rgb(_FOR), to_rgb(_AGAINST))
    colours[..., 3] = 0.92 * strength
    axes.imshow(colours, extent=_extent(view), interpolation="nearest")


def _unseen(axes: Any, view: View) -> None:
    """Hatch what the crop took away."""
    from matplotlib.patches import Rectangle

    width, height = view.size
    x0, x1, y1, y0 = _extent(view)
    strips = [
        (0.0, 0.0, width, y0),
        (0.0, y1, width, height - y1),
        (0.0, y0, x0, y1 - y0),
        (x1, y0, width - x1, y1 - y0),
    ]
    for x, y, wide, high in strips:
        if wide > 0 and high > 0:
            axes.add_patch(
                Rectangle((x, y), wide, high, facecolor="#f4f3ef", edgecolor="#c9cdc8", hatch="//////", linewidth=0)
            )


def _frame(axes: Any, view: View) -> None:
    """Where the crop lies in the image."""
    from matplotlib.patches import Rectangle

    left, top, width, height = view.box
    for colour, begin in (("#ffffff", 0), ("#26302a", 4)):  # one of them is seen on any background
        line = (begin, (4, 4))
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, lw=0.9, linestyle=line))


def _depth_bars(axes: Any, explanation: Explanation) -> None:
    values = [depth.logit for depth in explanation.depths]
    names = [depth.name for depth in explanation.depths]
    places = np.arange(len(values))
    axes.barh(places, values, color=[_FOR if value > 0 else _AGAINST for value in values], height=0.62)
    reach = max(max(map(abs, values)), 1e-9)
    for place, value in zip(places, values, strict=True):
        text = f"{value:+.2f}"
        axes.text(value + 0.03 * reach * np.sign(value or 1), place, text, size=6.8, va="center", color=_INK,
                  ha="left" if value >= 0 else "right")  # fmt: skip
    axes.set_xlim(min(0.0, *values) - 0.28 * reach * (min(values) < 0), max(0.0, *values) + 0.28 * reach)
    assert explanation.baseline is not None
    head = f"what each depth adds: {explanation.baseline:+.2f} → logit {explanation.logit:+.2f}"
    _bars(axes, places, names, head)
    axes.axvline(0, color=_INK, linewidth=0.7)


def _answer_bars(axes: Any, explanation: Explanation) -> None:
    names = [name for name, _ in explanation.top]
    values = [probability for _, probability in explanation.top]
    places = np.arange(len(values))
    axes.barh(places, values, color=["#2f7d4f" if name == explanation.target else "#a9b3ab" for name in names],
              height=0.62)  # fmt: skip
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.015, place, f"{value:.1%}", size=6.8, va="center", color=_INK)
    axes.set_xlim(0, 1.16)
    _bars(axes, places, [_short(name, 22) for name in names], "probability")


def _bars(axes: Any, places: NDArray[np.int64], names: Sequence[str], title: str) -> None:
    axes.set_yticks(places, names, size=6.8, color=_INK, parse_math=False)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, size=7.2, color=_INK, pad=4, loc="left")


def _note(explanation: Explanation) -> str:
    parts = []
    if any(stage.gone.any() for stage in explanation.stages):
        gone = "dropped, or fused into one token" if explanation.stages[0].fuses else "dropped"
        parts.append(f"Faded: {gone}.")
    if any(stage.groups for stage in explanation.stages):
        parts.append("One colour: merged into one token.")
    parts.append("Orange: the root of the attention, one scale for all depths. Red: for, blue: against.")
    left, top, width, height = explanation.view.box
    if left > 0 or top > 0 or left + width < explanation.view.size[0] or top + height < explanation.view.size[1]:
        parts.append("Hatched: cropped away, never seen.")
    return " ".join(parts)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
