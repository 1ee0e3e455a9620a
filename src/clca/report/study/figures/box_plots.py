"""Spread of accuracies: boxes by reduction, for base and CLCA, over all other varied settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clca.plots.axes import percent, rows, spread
from clca.plots.figure import INK, PAPER, Panel, Picture
from clca.report.study.figures.marks import arms_in_order, of_arm, reductions_in_order, short, slug

if TYPE_CHECKING:
    import pandas as pd

FEW = 36
"""Number of runs in a box up to which each is also drawn as a point."""

_VARIED = {"backbone": "backbones", "keep_rate": "keep rates", "img_size": "image sizes", "seed": "seeds"}


def accuracy_boxes(finished: pd.DataFrame) -> Picture | None:
    """Boxes of top-1 by reduction and arm, for all sets together and for each set.

    Args:
        finished: Of `finished_runs`.
    """
    if finished.empty:
        return None
    arms = arms_in_order(finished["arm"])
    names = reductions_in_order(finished["reduction"])
    sets = sorted(finished["data"].unique())
    panels = [_panel(short(name), finished[finished["data"] == name], names, arms) for name in sets]
    if len(sets) > 1:
        panels.insert(0, _panel(f"all {len(sets)} sets", finished, names, arms))
    varied = [(text, finished[name].nunique()) for name, text in _VARIED.items()]
    over = ", ".join(f"{count} {text}" for text, count in varied if count > 1) or "single runs"
    caption = (
        f"Top-1 of {len(finished):,} finished runs, over {over}. Box: quartiles and median; whiskers: the furthest"
        f" runs within 1.5 quartile ranges; beyond them, and where a box holds at most {FEW} runs, points are runs."
    )
    return Picture("accuracy-boxes", "Spread of accuracy", caption, panels, [of_arm(arm) for arm in arms])


def variant_boxes(finished: pd.DataFrame, axis: str, labels: list[str]) -> Picture | None:
    """As `accuracy_boxes`, with a row for each label of an axis of the study, such as the variants of an ablation.

    Args:
        finished: The finished runs of the results table.
        axis: Its name; the column is `axis.NAME`.
        labels: In the study's order.
    """
    column = f"axis.{axis}"
    if column not in finished:
        return None
    finished = finished[finished["top1"].notna() & finished[column].notna()]
    names = [label for label in labels if label in set(finished[column])]
    if len(names) < 2:
        return None
    arms = arms_in_order(finished["arm"])
    named = finished.assign(reduction=finished[column])
    panels = [_panel(short(str(name)), named[named["data"] == name], names, arms, together=True)
              for name in sorted(named["data"].unique())]  # fmt: skip
    caption = f"Top-1 of {len(named):,} finished runs by {axis}; boxes and points as above, coloured by arm."
    return Picture(f"by-{slug(axis)}", f"Accuracy by {axis}", caption, panels, [of_arm(arm) for arm in arms])


def _panel(title: str, own: Any, names: list[str], arms: list[str], together: bool = False) -> Panel:
    there = [name for name in names if (own["reduction"] == name).any()]
    spacing = 1.0 if together else float(len(arms))

    def draw(axes: Any) -> None:
        step = 0.8 / spacing
        for line, name in enumerate(there):
            for place, arm in enumerate(arms):
                values = 100 * own.loc[(own["reduction"] == name) & (own["arm"] == arm), "top1"].to_numpy(float)
                if len(values):
                    at = line if together else line + (place - (len(arms) - 1) / 2) * step
                    _box(axes, sorted(values), at, step, arm)
        for line in range(1, len(there)):
            axes.axhline(line - 0.5, color="#dddddd", linewidth=0.5, zorder=0)
        percent(axes, list(100 * own["top1"]), "x")
        rows(axes, [short("none (dense)" if name == "none" else name, 22) for name in there])
        axes.set_xlabel("top-1, %")

    middle = own.groupby(["reduction", "arm"])["top1"].median()
    listed = "; ".join(
        f"{name}: " + ", ".join(f"{arm} {100 * middle[name, arm]:.1f} %" for arm in arms if (name, arm) in middle)
        for name in there
    )
    alt = f"Box plots of top-1 accuracy on {title}; medians: {listed}."
    return Panel(title, draw, alt, height=1.0 + len(there) * (0.2 + 0.13 * spacing))


def _box(axes: Any, values: list[float], at: float, step: float, arm: str) -> None:
    mark = of_arm(arm)
    few = len(values) <= FEW
    axes.boxplot(
        [values], positions=[at], widths=0.75 * step, orientation="horizontal", patch_artist=True, manage_ticks=False,
        showfliers=not few, zorder=2,
        boxprops={"facecolor": mark.colour if mark.filled else PAPER, "alpha": 0.45 if mark.filled else 1.0,
                  "edgecolor": mark.colour, "linewidth": 1.0},
        medianprops={"color": INK, "linewidth": 1.6, "solid_capstyle": "butt"},
        whiskerprops={"color": mark.colour, "linewidth": 0.9}, capprops={"color": mark.colour, "linewidth": 0.9},
        flierprops={"marker": mark.marker, "markersize": 2.2, "markerfacecolor": mark.colour, "markeredgewidth": 0},
    )  # fmt: skip
    if few:
        axes.plot(values, [at + shift for shift in spread(len(values), 0.55 * step)], linestyle="None", zorder=3,
                  marker=mark.marker, markersize=2.4, color=mark.colour, markerfacecolor=mark.colour,
                  markeredgewidth=0.3, markeredgecolor=INK)  # fmt: skip
