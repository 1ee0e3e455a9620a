"""The largest gradient by training step, for every arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clca.plots.axes import log_y, thinned
from clca.plots.figure import Panel, Picture
from clca.report.study.figures.marks import ARM_NAMES, arms_in_order, of_arm

if TYPE_CHECKING:
    from clca.report.study.gradients import Gradients

MOST_STEPS = 200


def gradient_curves(gradients: Gradients) -> Picture | None:
    """Median over runs and the band between the quartiles, on a logarithmic scale.

    Args:
        gradients: Of `clca.report.study.gradients.gradients`.
    """
    curves = gradients.curves
    if curves.empty:
        return None
    arms = arms_in_order(curves["arm"])

    def draw(axes: Any) -> None:
        for arm in arms:
            own = curves[curves["arm"] == arm].sort_values("step")
            own = own.iloc[thinned(len(own), MOST_STEPS)]
            mark = of_arm(arm)
            band = own[own["low"] > 0]
            axes.fill_between(band["step"], band["low"], band["high"], color=mark.colour, alpha=0.18, linewidth=0)
            axes.plot(own["step"], own["median"], color=mark.colour, linestyle=mark.line, linewidth=1.4,
                      marker=mark.marker, markersize=4, markevery=max(1, len(own) // 8),
                      markerfacecolor=mark.style()["markerfacecolor"], markeredgecolor=mark.colour)  # fmt: skip
        log_y(axes)
        axes.set_xlabel("training step")
        axes.set_ylabel("largest gradient, absolute")

    runs = curves.groupby("arm")["runs"].max()
    middle = curves.groupby("arm")["median"].median()
    counted = ", ".join(f"{ARM_NAMES.get(arm, arm)} {int(runs[arm])}" for arm in arms)
    listed = "; ".join(f"{ARM_NAMES.get(arm, arm)} {middle[arm]:.3g}" for arm in arms)
    caption = (
        "Largest absolute gradient of any parameter at each step: median over runs, and the band between the quartiles."
        f" Runs: {counted}."
    )
    alt = f"Largest gradient by training step on a logarithmic scale; typical medians: {listed}."
    marks = [of_arm(arm) for arm in arms]
    return Picture("gradients", "Gradients in training", caption, [Panel("", draw, alt)], marks, width=5.2, height=3.2)
