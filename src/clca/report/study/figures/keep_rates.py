"""Accuracy by keep rate: a panel per set and reduction, base against CLCA, a line per image size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clca.plots.axes import percent
from clca.plots.figure import Mark, Panel, Picture
from clca.report.study.figures import cells as cells_of
from clca.report.study.figures.marks import arms_in_order, of_arm, reductions_in_order, short, slug
from clca.report.study.settings import by_default

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("base", "clca")
_WIDTHS = (0.9, 1.7, 2.4)  # of a line, from the smallest image to the largest


def accuracy_keep_rates(cells: pd.DataFrame) -> list[Picture]:
    """Accuracy by keep rate with its deviation over seeds: a picture per set, or one for all if they fit.

    Args:
        cells: Of `over_seeds`.
    """
    cells = by_default(cells)
    cells = cells[cells["arm"].isin(_SHOWN) & cells["top1_mean"].notna() & cells["keep_rate"].notna()]
    if cells.empty:
        return []
    sets = sorted(cells["data"].unique())
    if len(sets) * cells["reduction"].nunique() <= cells_of.MOST_PANELS:
        return [_picture("keep-rates", "Accuracy by keep rate", cells, sets)]
    return [
        _picture(f"keep-rates-{slug(name)}", f"Accuracy by keep rate: {short(name)}", own, [name])
        for name, own in cells.groupby("data", sort=True)
    ]


def _picture(key: str, title: str, cells: Any, sets: Sequence[str]) -> Picture:
    points, left_out = cells_of.pooled(cells, ["data", "img_size"], ("top1_mean", "top1_sd"))
    alone = points.groupby("data")["reduction"].transform(lambda own: (own == "none").all()).astype(bool)
    drawn = points[alone | (points["reduction"] != "none")]  # beside others, the dense model is a horizontal line
    sizes, rates = sorted(points["img_size"].unique()), sorted(drawn["keep_rate"].unique())
    panels = [panel for name in sets for panel in _of_set(points[points["data"] == name], sizes, rates, len(sets) > 1)]
    backbones = int(points["backbones"].max())
    caption = "Mean ± standard deviation over seeds."
    if backbones > 1:
        caption = f"Mean over {backbones} backbones; bars: mean of their deviations over seeds."
    caption += cells_of.also_over(cells)
    if (points["reduction"] == "none").any() and (points["reduction"] != "none").any():
        caption += " Level lines: the dense model, with and without CLCA."
    if left_out:
        caption += f" {left_out} points are left out because runs of some backbones are not finished."
    marks = []
    for arm in arms_in_order(points["arm"]):
        for size in sizes:
            base = of_arm(arm)
            label = base.label + (f", {size} px" if len(sizes) > 1 else "")
            marks.append(Mark(label, base.colour, _marker(arm, sizes.index(size)), base.line, base.filled))
    return Picture(key, title, caption, panels, marks, width=3.1, height=2.6, columns=4)


def _of_set(points: Any, sizes: list[int], rates: list[float], several: bool) -> Iterator[Panel]:
    """A panel per reduction, all on one scale."""
    heights = [value for row in points.to_dict("records") for value in
               (row["top1_mean"] - _bar(row["top1_sd"]), row["top1_mean"] + _bar(row["top1_sd"]))]  # fmt: skip
    for name in [name for name in reductions_in_order(points["reduction"]) if name != "none"] or ["none"]:
        title = "none (dense)" if name == "none" else short(name)
        title = f"{short(str(points['data'].iloc[0]))}: {title}" if several else title
        dense = points[(points["reduction"] == "none") & (name != "none")]
        yield _panel(title, points[points["reduction"] == name], dense, sizes, rates, heights)


def _bar(deviation: float) -> float:
    return deviation if deviation == deviation else 0.0


def _marker(arm: str, size: int) -> str:
    return (("s", "D", "P") if arm == "base" else ("o", "^", "v"))[min(size, 2)]


def _panel(title: str, own: Any, dense: Any, sizes: list[int], rates: list[float], heights: list[float]) -> Panel:
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
    return Panel(title, draw, f"Top-1 by keep rate, {title}: {listed}.")
