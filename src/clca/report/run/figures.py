"""The figures of one run: its curves, gradients and confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from clca.plots.axes import log_y, percent, plain_number
from clca.plots.figure import FAINT, Mark, Panel, Picture

MOST_POINTS = 300
_STEP, _EPOCH, _WATCHED = "#888888", "#d55e00", "#0072b2"
MOST_NAMES = 60


def curves(steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> Picture | None:
    """Loss, accuracy and learning rate by training step.

    Args:
        steps, epochs: The two kinds of lines of metrics.jsonl.
    """
    split = next((name for line in epochs for name in ("val", "test") if name in line), None)
    panels = []
    for title, of_step, of_epoch, times in (("loss", "loss", "loss", 1), ("accuracy, %", "accuracy", "top1", 100)):
        panel = _curve(title, steps, epochs, of_step, of_epoch, times, split)
        panels += [panel] if panel is not None else []
    rates = _points(steps, "lr", sum)
    if rates:
        panels.append(Panel("learning rate", lambda axes: _line(axes, rates), f"Learning rate by step, at most"
                            f" {max(y for _, y in rates):.3g}."))  # fmt: skip
    if not panels:
        return None
    marks = [Mark("training, by step", _STEP, "", "-"), Mark("training, by epoch", _EPOCH, "s", "--", False)]
    if split:
        marks.append(Mark(f"{split}, by epoch", _WATCHED, "o", "-"))
    caption = "By training step"
    caption += f"; of {len(steps)} steps, neighbours are averaged." if len(steps) > MOST_POINTS else "."
    return Picture("curves", "Curves", caption, panels, marks, width=3.8, height=2.8)


def gradient(steps: Sequence[dict[str, Any]]) -> Picture | None:
    """The largest gradient by training step, on a logarithmic scale.

    Args:
        steps: The lines of metrics.jsonl for single steps.
    """
    points = [(x, y) for x, y in _points(steps, "grad_max", lambda values: max(values) * len(values)) if y > 0]
    if not points:
        return None

    def draw(axes: Any) -> None:
        axes.plot(*zip(*points, strict=True), color=_WATCHED, linewidth=1)
        log_y(axes)
        axes.set_xlabel("training step")
        axes.set_ylabel("largest gradient, absolute")

    several = f" Of {len(steps)} steps, the largest of neighbours is shown." if len(steps) > MOST_POINTS else ""
    top = max(points, key=lambda point: point[1])
    panel = Panel("", draw, f"Largest gradient by step; highest {top[1]:.3g} near step {top[0]:g}.")
    caption = f"Largest absolute gradient of any parameter at each step.{several}"
    return Picture("gradient", "Gradients in training", caption, [panel], width=5.2, height=2.8)


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Picture | None:
    """The confusion matrix as fractions of each true class, light to dark.

    Args:
        counts: Images by true class (row) and predicted class (column).
        names: Names of the classes.
    """
    if not counts or not any(map(sum, counts)):
        return None
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    every = 1 if len(names) <= MOST_NAMES else math.ceil(len(names) / 30)
    ticks = list(range(0, len(names), every))
    shown = [names[k] if len(names[k]) <= 18 else names[k][:17] + "…" for k in ticks]
    side = min(7.0, 2.6 + 0.16 * len(names))

    def draw(axes: Any) -> None:
        from matplotlib.colors import PowerNorm

        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        size = 8.5 if len(ticks) <= 30 else 6.5
        axes.set_xticks(ticks, shown, rotation=90, fontsize=size)
        axes.set_yticks(ticks, shown, fontsize=size)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        bar = axes.figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, ticks=[0, 0.05, 0.25, 0.5, 1])
        bar.ax.set_yticklabels(["0", "5 %", "25 %", "50 %", "100 %"])
        bar.outline.set_edgecolor(FAINT)

    right = sum(row[k] for k, row in enumerate(counts))
    images = sum(map(sum, counts))
    caption = f"Share of each true class by predicted class; {right} of {images} images are correct."
    panel = Panel("", draw, f"Confusion matrix of {len(names)} classes; {caption}", height=side)
    return Picture("confusion", "Confusion matrix", caption, [panel], width=side + 0.8)


def _points(steps: Sequence[dict[str, Any]], name: str, combine: Any) -> list[tuple[float, float]]:
    """Step and value; in a long run, neighbouring steps are merged (`combine` of their values, over their number)."""
    there = [(line["step"], line[name]) for line in steps if isinstance(line.get(name), (int, float))]
    size = math.ceil(len(there) / MOST_POINTS) if there else 1
    parts = [there[k : k + size] for k in range(0, len(there), size)]
    return [(part[-1][0], combine([value for _, value in part]) / len(part)) for part in parts]


def _curve(
    title: str, steps: Any, epochs: Any, of_step: str, of_epoch: str, times: float, split: str | None
) -> Panel | None:
    fine = [(x, times * y) for x, y in _points(steps, of_step, sum)]
    train = [(line["step"], times * line["train"][of_epoch]) for line in epochs if of_epoch in line.get("train", {})]
    watched = [(line["step"], times * line[split][of_epoch]) for line in epochs if split and split in line]
    if not (fine or train):
        return None

    def draw(axes: Any) -> None:
        if fine:
            axes.plot(*zip(*fine, strict=True), color=_STEP, linewidth=0.8)
        every = max(1, len(train) // 12)
        if train:
            style = Mark("", _EPOCH, "s", "--", False).style(4.5)
            axes.plot(*zip(*train, strict=True), linewidth=1.2, markevery=every, **style)
        if watched:
            axes.plot(*zip(*watched, strict=True), linewidth=1.5, markevery=every, **Mark("", _WATCHED).style(4.5))
        if times == 100:
            percent(axes, [y for part in (fine, train, watched) for _, y in part])
        axes.grid(axis="y")
        axes.set_xlabel("training step")

    end = "; ".join(f"{what} {part[-1][1]:.3g} at the end" for what, part in
                    (("training", train or fine), (split, watched)) if part)  # fmt: skip
    return Panel(title, draw, f"{title} by training step: {end}.")


def _line(axes: Any, points: list[tuple[float, float]]) -> None:
    axes.plot(*zip(*points, strict=True), color=_WATCHED, linewidth=1.4)
    axes.yaxis.set_major_formatter(plain_number)
    axes.grid(axis="y")
    axes.set_xlabel("training step")
