"""A picture in panels: one figure in print (PNG, PDF), and on a page one small inline SVG a panel, which wraps.

Drawn once in the inks below. In an SVG they become CSS variables, so that one picture serves light and dark pages;
text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any
from xml.etree import ElementTree

from clca.plots.fonts import save_figure
from clca.system.files import replacing

INK, FAINT, GRID, PAPER = "#222222", "#6b6b6b", "#dddddd", "#ffffff"
LIGHT = {
    "ink": INK, "faint": FAINT, "grid": GRID, "paper": PAPER,
    "c-blue": "#0072b2", "c-orange": "#d55e00", "c-green": "#009e73", "c-pink": "#cc79a7", "c-amber": "#e69f00",
    "c-sky": "#56b4e9", "c-black": "#000000", "c-grey": "#888888", "c-stone": "#777777",
}  # fmt: skip
"""CSS variable → the colour that is drawn, which is also its value on a light page."""
DARK = {
    "ink": "#e8e8e4", "faint": "#a9aaa6", "grid": "#3c4043", "paper": "#191b1d",
    "c-blue": "#4aa8e8", "c-orange": "#ff8b4a", "c-green": "#2fc99b", "c-pink": "#eaa3cb", "c-amber": "#f5b83d",
    "c-sky": "#8fd3ff", "c-black": "#f4f4f0", "c-grey": "#a6a6a6", "c-stone": "#9a9a9a",
}  # fmt: skip
"""The same on a dark page: lighter, at the same hue."""

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Mark:
    """One line of a legend.

    Attributes:
        label: What it stands for.
        colour: As drawn, one of `LIGHT`.
        marker: matplotlib's letter; "" for none.
        line: "-", "--", ":", "-." or "" for none.
        filled: Whether the marker is filled with its colour, or open.
    """

    label: str
    colour: str
    marker: str = "o"
    line: str = "-"
    filled: bool = True

    def style(self, size: float = 5.5) -> dict[str, Any]:
        """Keywords for `axes.plot`."""
        edge = self.colour if not self.filled or self.marker in "x+1" else INK
        return {"color": self.colour, "marker": self.marker or "None", "linestyle": self.line or "None",
                "markerfacecolor": self.colour if self.filled else PAPER, "markeredgecolor": edge,
                "markersize": size * (1.35 if self.marker == "*" else 1),
                "markeredgewidth": 0.5 if self.filled else 1.1}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One coordinate system.

    Attributes:
        title: Above it.
        draw: Called with matplotlib axes; may be called more than once.
        alt: Description for screen readers.
        height: In inches, if not the picture's.
    """

    title: str
    draw: Callable[[Any], None]
    alt: str
    height: float | None = None


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: Of its files, and of its place on the page.
        title, caption: A heading, and what is shown, over what, from how many runs.
        panels: At least one.
        legend: Shared by all panels.
        width, height: Of a panel in inches.
        columns: Maximum number of panels side by side in print.
        note: Above the legend in the files, which have no caption: what letters in the panels stand for.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Sequence[Mark] = field(default_factory=tuple)
    width: float = 4.2
    height: float = 3.2
    columns: int = 3
    note: str = ""


@contextmanager
def plain_style(salt: str) -> Iterator[None]:
    """matplotlib's settings for the report: names are not mathematics, the same input gives the same bytes."""
    from matplotlib import rc_context

    settings: dict[Any, Any] = {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9.5,
        "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.edgecolor": FAINT,
        "axes.linewidth": 0.7, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.titlecolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "grid.color": GRID, "grid.linewidth": 0.6, "text.parse_math": False, "axes.unicode_minus": True,
        "svg.fonttype": "none", "svg.hashsalt": salt, "pdf.fonttype": 42, "path.simplify": True,
    }  # fmt: skip
    with rc_context(settings):
        yield


def write_files(picture: Picture, folder: Path) -> list[Path]:
    """Write `NAME.png` and `NAME.pdf`, all panels in one figure on white.

    Raises:
        WorkError: They could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(picture.columns, len(picture.panels))
    lines = [picture.panels[k : k + columns] for k in range(0, len(picture.panels), columns)]
    heights = [max(panel.height or picture.height for panel in line) for line in lines]
    across = max(1, min(len(picture.legend), int(columns * picture.width / 1.25)))
    below = 0.22 * math.ceil(len(picture.legend) / across) + 0.15 if picture.legend else 0.0
    with plain_style(picture.name):
        size = (max(4.0, columns * picture.width), sum(heights) + below + (0.4 if picture.note else 0))
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
        for axes in grid.flat[len(picture.panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, picture.panels, strict=False):
            axes.set_title(panel.title)
            panel.draw(axes)
        if picture.legend:
            handles = [Line2D([], [], label=mark.label, linewidth=1.2, **mark.style()) for mark in picture.legend]
            figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=8.5,
                          title=fill(picture.note, int(16 * size[0])) or None, title_fontsize=8.5)  # fmt: skip
        written = []
        for form, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            path = folder / f"{picture.name}.{form}"
            with replacing(path) as temporary:
                save_figure(figure, temporary, format=form, dpi=160, metadata=metadata)
            figure.set_layout_engine("none")  # found once
            written.append(path)
    return written


def panel_svgs(picture: Picture) -> list[str]:
    """Each panel as an inline `<svg>` whose colours are CSS variables and whose ids are its own."""
    return [_panel_svg(picture, panel, f"{picture.name}-{number}") for number, panel in enumerate(picture.panels, 1)]


def _panel_svg(picture: Picture, panel: Panel, key: str) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with plain_style(key):
        figure = Figure(figsize=(picture.width, panel.height or picture.height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(panel.title)
        panel.draw(axes)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        text = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        save_figure(figure, text, format="svg", metadata=nothing)
    return inline(text.getvalue(), key, panel.title, panel.alt)


def inline(svg: str, key: str, title: str, description: str) -> str:
    """An SVG file of matplotlib as an element of a page.

    Args:
        svg: The file.
        key: Put before every id, so that pictures of one page do not meet.
        title, description: For screen readers.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for name in [name for name in element.attrib if name.startswith(_XLINK)]:
            element.set(name.removeprefix(_XLINK), element.attrib.pop(name))
    used = {element.get("href", "").removeprefix("#") for element in root.iter("use")}
    used |= {element.get("clip-path", "")[5:-1] for element in root.iter()}
    for element in root.iter():
        _slim(element, key, used)
    _unwrap(root)
    for definitions in root.findall("defs"):
        if any(child.tag == "style" for child in definitions):  # it would reach into the whole page
            root.remove(definitions)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "panel", "role": "img", "aria-labelledby": f"{key}-t {key}-d"}
    for name, text in (("d", description), ("t", title)):
        child = ElementTree.Element("title" if name == "t" else "desc", {"id": f"{key}-{name}"})
        child.text, child.tail = text, "\n"
        root.insert(0, child)
    return ElementTree.tostring(root, encoding="unicode")


def _slim(element: ElementTree.Element, key: str, used: set[str]) -> None:
    """Own ids, variables for colours, two decimals, no font names."""
    own = element.attrib.pop("id", "")
    if own in used and own:
        element.set("id", f"{key}-{own}")
    for name, prefix in (("href", "#"), ("clip-path", "url(#")):
        if name in element.attrib:
            element.set(name, element.get(name, "").replace(prefix, f"{prefix}{key}-", 1))
    if "style" in element.attrib:
        element.set("style", _variables(element.get("style", "")))
    for name in ("d", "x", "y", "transform", "points", "width", "height"):
        if name in element.attrib:
            element.set(name, _rounded(element.get(name, "")))
    if element.get("transform", "").startswith("rotate(-0 "):
        element.attrib.pop("transform")
    element.tail = "\n" if (element.tail or "").strip() == "" else element.tail
    if element.tag == "g" and not (element.text or "").strip():
        element.text = None


def _variables(style: str) -> str:
    parts = []
    for part in style.split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name == "font-family":
            continue
        for variable, colour in LIGHT.items():
            value = value.replace(colour, f"var(--{variable})")
        parts.append(f"{name}:{_rounded(value)}")
    return ";".join(parts)


def _rounded(text: str) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda number: f"{round(float(number[0]), 2):g}", text)
    return " ".join(text.split())


def _unwrap(element: ElementTree.Element) -> None:
    """Put the children of groups without attributes in their place."""
    for child in list(element):
        _unwrap(child)
    place = 0
    for child in list(element):
        if child.tag == "g" and not child.attrib:
            element.remove(child)
            for inner in list(child):
                element.insert(place, inner)
                place += 1
        else:
            place += 1


_SHAPES = {
    "o": "M13 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "s": "M13.2 3.2h7.6v7.6h-7.6z", "^": "M17 2.6l4.6 8.4h-9.2z",
    "v": "M17 11.4l4.6-8.4h-9.2z", "D": "M17 2l5 5-5 5-5-5z", "P": "M15.5 2.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "X": "M14.8 2.5l2.2 2.2 2.2-2.2 2.3 2.3L19.3 7l2.2 2.2-2.3 2.3L17 9.3l-2.2 2.2-2.3-2.3L14.7 7l-2.2-2.2z",
    "*": "M17 1.2l1.5 4.2 4.5.1-3.6 2.7 1.3 4.3L17 10l-3.7 2.5 1.3-4.3L11 5.5l4.5-.1z",
    "h": "M17 2.2l4.2 2.4v4.8L17 11.8l-4.2-2.4V4.6z", "x": "M13.5 3.5l7 7m0-7l-7 7", "_": "M12 7h10", "|": "M17 2v10",
}  # fmt: skip
_DASHES = {"--": "5 3", ":": "1.5 2.5", "-.": "6 2 1.5 2"}


def swatch(mark: Mark) -> str:
    """The sign of a legend's line as an inline SVG, 34 × 14."""
    colour = _variables(f"fill:{mark.colour}").removeprefix("fill:")
    parts = []
    if mark.line:
        dash = f' stroke-dasharray="{_DASHES[mark.line]}"' if mark.line in _DASHES else ""
        parts.append(f'<path d="M1 7h32" style="stroke:{colour};fill:none;stroke-width:1.6"{dash}/>')
    if mark.marker:
        inside = colour if mark.filled else "var(--paper)"
        edge = "var(--ink);stroke-width:.5" if mark.filled else f"{colour};stroke-width:1.4"
        if mark.marker in "x_|":
            inside, edge = "none", f"{colour};stroke-width:1.8"
        parts.append(f'<path d="{_SHAPES[mark.marker]}" style="fill:{inside};stroke:{edge}"/>')
    return f'<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true">{"".join(parts)}</svg>'
