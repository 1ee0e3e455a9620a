"""Accuracy against cost, in GMACs and in measured time: a line per reduction and arm, a point per keep rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clca.plots.axes import cost_scale, percent
from clca.plots.figure import FAINT, INK, PAPER, Panel, Picture
from clca.report.study.figures import cells as cells_of
from clca.report.study.figures.marks import arms_in_order, legend, of_arm, of_reduction, reductions_in_order
from clca.report.study.settings import by_default

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("base", "clca")
_CIRCLE = {"boxstyle": "circle,pad=0.18", "fc": PAPER, "ec": FAINT, "lw": 0.8}


def accuracy_gmacs(cells: pd.DataFrame, published: pd.DataFrame) -> Picture | None:
    """Accuracy against GMACs per image, with published results of the same set and image size as letters.

    Args:
        cells: From `over_seeds`.
        published: From `clca.report.published.published`.
    """
    return _Against(cells, "gmacs", "GMACs an image", published).picture()


def accuracy_time(cells: pd.DataFrame, devices: Sequence[str]) -> Picture | None:
    """Accuracy against milliseconds per image, measured in evaluation.

    Args:
        cells: From `over_seeds`.
        devices: Names of the devices that it was measured on.
    """
    if "images_per_second" not in cells:
        return None
    cells = cells.assign(ms=[cells_of.ms(rate) for rate in cells["images_per_second"]])
    return _Against(cells, "ms", "milliseconds an image (forward pass)", None, devices).picture()


class _Against:
    def __init__(self, cells: Any, measure: str, label: str, published: Any, devices: Sequence[str] = ()) -> None:
        cells = by_default(cells)
        cells = cells[cells["arm"].isin(_SHOWN) & cells["top1_mean"].notna() & cells[measure].notna()]
        self.cells, self.measure, self.label, self.devices = cells, measure, label, devices
        self.keys = cells_of.panel_keys(cells) if len(cells) else []
        self.points, self.left_out = cells_of.pooled(cells, self.keys, ("top1_mean", measure))
        self.published = published
        self.several = len(cells) > 0 and cells["reduction"].nunique() > 1
        self.letters: dict[str, str] = {}
        if published is not None and len(self.points):
            seen = [self._theirs(data, size) for data, size in
                    self.points[["data", "img_size"]].drop_duplicates().itertuples(index=False)]  # fmt: skip
            methods = dict.fromkeys(name for rows in seen for name in rows["method"])
            self.letters = {name: "abcdefghijklmnopqrstuvwxyz"[k % 26] for k, name in enumerate(sorted(methods))}

    def picture(self) -> Picture | None:
        if self.cells.empty:
            return None
        panels = [self._panel(values, own) for values, own in self.points.groupby(self.keys, sort=True)]
        arms = arms_in_order(self.points["arm"])
        marks = legend(reductions_in_order(self.points["reduction"]), arms) if self.several else [*map(of_arm, arms)]
        by_time = self.measure == "ms"
        return Picture(
            name="accuracy-time" if by_time else "accuracy-gmacs",
            title="Accuracy against measured time" if by_time else "Accuracy against cost",
            caption=self._caption(by_time),
            panels=panels,
            legend=marks,
            note=self._letters_key() if self.letters else "",
            height=3.4,
        )

    def _letters_key(self) -> str:
        listed = ", ".join(f"{letter} {name}" for name, letter in self.letters.items())
        return f"published top-1 on the same set at the same image size ({listed})"

    def _caption(self, by_time: bool) -> str:
        over = "each point is the mean over seeds"
        if len(self.keys) == 2 and self.cells["backbone"].nunique() > 1:
            over += f" and over {int(self.points['backbones'].max())} backbones"
        reduced = self.points.loc[self.points["reduction"] != "none", "keep_rate"].dropna().unique()
        rates = ", ".join(f"{rate:g}" for rate in sorted(reduced, reverse=True))
        text = f"Lines join keep rates ({rates}); {over}." if rates else f"{over[0].upper()}{over[1:]}."
        text += " Open and dashed: base; filled: CLCA."
        text += cells_of.also_over(self.cells)
        if self.left_out:
            text += f" {self.left_out} points are left out because runs of some backbones are not finished."
        if self.letters:
            text += (
                f" Letters: {self._letters_key()}; one that hides another stands beside its point, and one beyond the"
            )
            text += " panel at its edge with its numbers."
        if by_time:
            where = ", ".join(self.devices) or "a device that was not recorded"
            text += (
                f" Time is that of the evaluation's forward pass on {where}; other runs may have run at the same"
                " time, so it is approximate; clca benchmark measures speed properly."
            )
        return text

    def _theirs(self, data: Any, size: Any) -> Any:
        """Published numbers of this set at this size that have a cost."""
        known = self.published
        return known[
            (known["data"] == data) & (known["img_size"] == size) & known["gmacs"].notna() & known["top1"].notna()
        ]

    def _panel(self, values: tuple[Any, ...], own: Any) -> Panel:
        title = cells_of.panel_title(self.keys, values, self.cells)
        theirs = self._theirs(*values[:2]) if self.published is not None else own.iloc[:0]

        def draw(axes: Any) -> None:
            self._draw(axes, own, theirs)

        best = own.loc[own["top1_mean"].idxmax()]
        alt = (
            f"Top-1 accuracy against {self.label} on {title}: {len(own)} points; the highest is {best['reduction']}"
            f" with {best['arm']} at keep rate {best['keep_rate']:g}, {best['top1_mean']:.1f} %"
            f" at {best[self.measure]:.3g}."
        )
        return Panel(title, draw, alt)

    def _draw(self, axes: Any, own: Any, theirs: Any) -> None:
        costs, heights = list(own[self.measure]), list(own["top1_mean"])
        for (reduction, arm), line in own.groupby(["reduction", "arm"], sort=True):
            mark = of_reduction(str(reduction), str(arm)) if self.several else of_arm(str(arm))
            line = line.sort_values(self.measure)
            thin = arm == "base"
            axes.plot(line[self.measure], line["top1_mean"], linewidth=0.8 if thin else 1.3, zorder=2 if thin else 3,
                      **mark.style(4.5 if thin else 5.5))  # fmt: skip
        cost_scale(axes, costs)
        percent(axes, heights)
        axes.set_xlabel(self.label)
        axes.set_ylabel("top-1, %")
        if len(theirs):
            _references(axes, theirs, self.letters)


def _references(axes: Any, theirs: Any, letters: dict[str, str]) -> None:
    """A letter in a circle for each published result; one outside the panel is at its edge, with its numbers."""
    from matplotlib.collections import LineCollection

    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    right = min(max(right, 1.06 * theirs["gmacs"].max()), 1.25 * right)
    reach = 0.35 * (high - low)
    bottom = max(min(low, theirs["top1"].min() - 1.5), low - reach)
    top = min(max(high, theirs["top1"].max() + 1.5), high + reach, 101)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    taken: list[tuple[float, float]] = []
    beyond: list[tuple[float, float, str]] = []
    for row in theirs.sort_values(["gmacs", "top1"]).to_dict("records"):
        cost, height = row["gmacs"], row["top1"]
        at = axes.transLimits.transform(axes.transScale.transform((cost, height)))
        x, y = (min(max(place, 0.03), 0.97) for place in at)
        while any(abs(x - other) < 0.06 and abs(y - level) < 0.06 for other, level in taken):
            x, y = (x + 0.02, y) if x < 0.9 else (x, y + 0.02)
        taken.append((x, y))
        inside = left <= cost <= right and bottom <= height <= top
        if inside and math.hypot(x - at[0], y - at[1]) > 0.01:
            letter = (axes.transScale + axes.transLimits).inverted().transform((x, y))
            axes.add_collection(
                LineCollection([[(cost, height), letter]], colors=[FAINT], linewidths=0.7), autolim=False
            )
            axes.scatter([cost], [height], s=5, color=INK, zorder=4)
        axes.text(x, y, letters[row["method"]], size=7.5, weight="bold", color=INK, ha="center", va="center", zorder=5,
                  transform=axes.transAxes, bbox=_CIRCLE)  # fmt: skip
        if not inside:
            beyond.append((x, y, f"{height:.1f} %" + (f" at {cost:.0f}" if cost > right else "")))
    for x, y, text in beyond:
        half_width = 0.0072 * len(text)
        beside = x - 0.045 - half_width if x > 0.5 else x + 0.045 + half_width
        centre = min(max(x, half_width), 1 - half_width)
        places = [(beside, y), (centre, y - 0.065), *((centre, y + 0.065 + 0.045 * k) for k in range(9))]
        free = (place for place in places if place[1] > 0 and not _overlaps(place, half_width, taken))
        x, y = next(free, places[0])
        taken += [(x + step * half_width, y) for step in (-1, 0, 1)]
        axes.text(x, y, text, size=7, color=FAINT, ha="center", va="center", transform=axes.transAxes, zorder=5)


def _overlaps(place: tuple[float, float], half_width: float, taken: Sequence[tuple[float, float]]) -> bool:
    """Whether a text of this half width would overlap anything drawn."""
    return any(abs(place[0] - x) < half_width + 0.03 and abs(place[1] - y) < 0.045 for x, y in taken)
