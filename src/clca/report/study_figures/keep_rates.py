"""Accuracy by keep rate: a panel a reduction, base against CLCA, a line an image size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clca.report.picture import Mark, Panel, Picture
from clca.report.study_figures import cells as cells_of
from clca.report.study_figures.axes import percent
from clca.report.study_figures.marks import arms_in_order, of_arm, reductions_in_order, short
from clca.report.study_settings import by_default

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("base", "clca")
_WIDTHS = (0.9, 1.7, 2.4)  # of a line, from the smallest image to the largest


def accuracy_keep_rates(cells: pd.DataFrame) -> list[Picture]:
    """A picture a set: accuracy by keep rate with its deviation over seeds.

    Args:
        cells: Of `over_seeds`.
    """
    cells = by_default(cells)
    cells = cells[cells["arm"].isin(_SHOWN) & cells["top1_mean"].notna() & cells["keep_rate"].notna()]
    if cells.empty:
        return []
    sets = sorted(cells["data"].unique())
    return [_picture(str(name), cells[cells["data"] == name], len(sets) > 1) for name in sets]


def _picture(data: str, cells: Any, several: bool) -> Picture:
    keys = ["data", "img_size"]
    one = cells["backbone"].nunique() == 1
    points, left_out = cells_of.pooled(cells, keys, ("top1_mean", "top1_sd"))
    dense = points[points["reduction"] == "none"]
    sizes = sorted(points["img_size"].unique())
    heights = [value for row in points.to_dict("records") for value in
               (row["top1_mean"] - _bar(row["top1_sd"]), row["top1_mean"] + _bar(row["top1_sd"]))]  # fmt: skip
    rates = sorted(points["keep_rate"].unique())
    names = [name for name in reductions_in_order(points["reduction"]) if name != "none"] or ["none"]
    panels = [_panel(name, points[points["reduction"] == name], dense, sizes, rates, heights) for name in names]
    over = "over seeds" if one else f"over seeds, of {int(points['backbones'].max())} backbones' means"
    caption = (
        f"{data}: mean ± standard deviation {over}"
        if one
        else (
            f"{data}: mean over {int(points['backbones'].max())} backbones; bars: mean of their deviations over seeds"
        )
    )
    caption += ". Level lines: the dense model, with and without CLCA." if len(dense) and names != ["none"] else "."
    if left_out:
        caption += f" {left_out} points are left out because runs of some backbones are not finished."
    marks = []
    for arm in arms_in_order(points["arm"]):
        for size in sizes:
            base = of_arm(arm)
            label = base.label + (f", {size} px" if len(sizes) > 1 else "")
            marks.append(Mark(label, base.colour, _marker(arm, sizes.index(size)), base.line, base.filled))
    slug = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in data)
    title = f"Accuracy by keep rate: {short(data)}" if several else "Accuracy by keep rate"
    return Picture(f"keep-rates-{slug}" if several else "keep-rates", title, caption, panels, marks,
                   width=3.1, height=2.6, columns=4)  # fmt: skip


def _bar(deviation: float) -> float:
    return deviation if deviation == deviation else 0.0


def _marker(arm: str, size: int) -> str:
    return (("s", "D", "P") if arm == "base" else ("o", "^", "v"))[min(size, 2)]


def _panel(name: str, own: Any, dense: Any, sizes: list[int], rates: list[float], heights: list[float]) -> Panel:
    def draw(axes: Any) -> None:
        for (arm, size), line in own.groupby(["arm", "img_size"], sort=True):
            number = sizes.index(size)
            mark = of_arm(str(arm))
            mark = Mark(mark.label, mark.colour, _marker(str(arm), number), mark.line, mark.filled)
            line = line.sort_values("keep_rate")
            places = [rates.index(rate) for rate in line["keep_rate"]]
            axes.errorbar(places, line["top1_mean"], yerr=[_bar(value) for value in line["top1_sd"]],
                          ecolor=mark.colour, elinewidth=0.9, capsize=2, linewidth=_WIDTHS[min(number, 2)],
                          **mark.style(5))  # fmt: skip
        if name != "none":
            for row in dense.to_dict("records"):
                mark = of_arm(row["arm"])
                axes.axhline(row["top1_mean"], color=mark.colour, linestyle=mark.line, zorder=1, alpha=0.55,
                             linewidth=0.6 * _WIDTHS[min(sizes.index(row["img_size"]), 2)])  # fmt: skip
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_xlim(-0.35, len(rates) - 0.65)
        percent(axes, heights)
        axes.set_xlabel("keep rate")
        axes.set_ylabel("top-1, %")

    listed = "; ".join(
        f"{row['arm']} {row['img_size']} px keep rate {row['keep_rate']:g}: {row['top1_mean']:.1f} %"
        for row in own.to_dict("records")
    )
    return Panel("none (dense)" if name == "none" else short(name), draw, f"Top-1 by keep rate for {name}: {listed}.")
