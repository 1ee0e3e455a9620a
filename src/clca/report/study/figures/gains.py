"""The gain of CLCA, run by run: the same setting and seed with and without it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from clca.plots.axes import rows, spread, thinned
from clca.plots.figure import FAINT, INK, Mark, Panel, Picture
from clca.report.study.cells import signed
from clca.report.study.figures.marks import of_arm, reductions_in_order

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 100
"""Largest number of single gains shown per row; of more, every n-th in order of size."""


def paired_gain(
    pairs: pd.DataFrame, by_reduction: pd.DataFrame, by_rate: pd.DataFrame, everything: pd.DataFrame
) -> Picture | None:
    """Gains by reduction and by keep rate with mean, interval, number of pairs and sign test.

    Args:
        pairs: Of `paired_gains`.
        by_reduction, by_rate, everything: Of `gain_summary` by reduction, by keep rate, and of all pairs.
    """
    if pairs.empty:
        return None
    by_name = {row["reduction"]: row for row in by_reduction.to_dict("records")}
    reductions = [(("none (dense)" if name == "none" else name), by_name[name], pairs[pairs["reduction"] == name])
                  for name in reductions_in_order(by_name)]  # fmt: skip
    rates = [(f"{row['keep_rate']:g}", row, pairs[pairs["keep_rate"] == row["keep_rate"]])
             for row in by_rate.sort_values("keep_rate", ascending=False).to_dict("records")]  # fmt: skip
    whole = [("all", row, pairs) for row in everything.to_dict("records")]
    limits = _limits(pairs["gain"])
    panels = [_panel("by reduction", "reduction", reductions + whole, limits)]
    if len(rates) > 1:
        title = "by keep rate, the dense model at 1" if "none" in by_name else "by keep rate"
        panels.append(_panel(title, "keep rate", rates + whole, limits))
    unit = "settings" if (by_reduction["unit"] == "settings").any() else "runs"
    caption = (
        "Top-1 with CLCA less top-1 without, in points; a point is a pair of runs equal in all else, seed included."
        f" Diamond and bar: mean and its 95 % bootstrap interval over {unit}. Right: pairs, and the p value of a"
        " two-sided sign test."
    )
    if max(row["pairs"] for _, row, _ in reductions + whole) > MOST_POINTS:
        caption += f" Of a row with more pairs, {MOST_POINTS} are shown, evenly from lowest to highest."
    marks = [
        Mark("one pair", of_arm("clca").colour, "o", "", True),
        Mark("mean and 95 % interval", INK, "D", "-", True),
    ]
    return Picture("paired-gain", "What CLCA adds", caption, panels, marks, width=4.5, columns=2)


def _limits(gains: Any) -> tuple[float, float]:
    low, high = min(0.0, float(gains.min())), max(0.0, float(gains.max()))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _panel(title: str, what: str, lines: list[tuple[str, dict[str, Any], Any]], limits: tuple[float, float]) -> Panel:
    colour = of_arm("clca").colour

    def draw(axes: Any) -> None:
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.axvspan(limits[0], 0, color="#dddddd", alpha=0.4, zorder=0, linewidth=0)
        for at, (_, row, own) in enumerate(lines):
            gains = own["gain"].sort_values().tolist()
            shown = [gains[k] for k in thinned(len(gains), MOST_POINTS)]
            axes.plot(shown, [at + shift for shift in spread(len(shown), 0.5)], linestyle="None", marker="o",
                      markersize=2.6, color=colour, alpha=0.55, markeredgewidth=0, zorder=2)  # fmt: skip
            if math.isfinite(row["low"]) and math.isfinite(row["high"]):
                axes.plot([row["low"], row["high"]], [at, at], color=INK, linewidth=2, zorder=3, solid_capstyle="butt")
            axes.plot([row["mean"]], [at], marker="D", markersize=5, color=INK, zorder=4)
        rows(axes, [name for name, _, _ in lines], [_beside(row) for _, row, _ in lines])
        if len(lines) > 2:
            axes.axhline(len(lines) - 1.5, color=FAINT, linewidth=0.6)
        axes.set_xlim(*limits)
        axes.grid(axis="x")
        axes.set_xlabel("gain of CLCA in top-1, points")

    listed = "; ".join(f"{name} {signed(row['mean'])} ({row['pairs']} pairs)" for name, row, _ in lines)
    alt = f"Gain of CLCA in points of top-1 by {what}, means: {listed}."
    return Panel(title, draw, alt, height=1.0 + 0.3 * len(lines))


def _beside(row: dict[str, Any]) -> str:
    p = row["p"]
    if not math.isfinite(p):
        return f"n {row['pairs']}"
    return f"n {row['pairs']}, p {'< 0.001' if p < 0.001 else f'{p:.2g}'}"
