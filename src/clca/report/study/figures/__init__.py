"""The figures of a study's report, from the numbers of `clca.report.study.numbers` and its neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clca.plots.figure import Picture
from clca.report.study.figures.accuracy_cost import accuracy_gmacs, accuracy_time
from clca.report.study.figures.box_plots import accuracy_boxes, variant_boxes
from clca.report.study.figures.gains import paired_gain
from clca.report.study.figures.gradient_curves import gradient_curves
from clca.report.study.figures.keep_rates import accuracy_keep_rates

if TYPE_CHECKING:
    import pandas as pd

    from clca.report.study.gradients import Gradients

_OWN_COLUMNS = frozenset({"data", "model", "backbone", "reduction", "keep_rate", "img_size", "arm", "seed"})


@dataclass(frozen=True)
class Numbers:
    """The data of the figures.

    Attributes:
        finished: The finished runs of the results table.
        default: From `finished_runs` and `by_default`.
        cells: From `over_seeds`.
        pairs: From `paired_gains`.
        by_reduction, by_rate, everything: From `gain_summary`, by reduction, by keep rate, and over all pairs.
        gradients: From `clca.report.study.gradients.gradients`.
        published: From `clca.report.published.published`.
        axes: Labels of the study's axes, by name.
    """

    finished: pd.DataFrame
    default: pd.DataFrame
    cells: pd.DataFrame
    pairs: pd.DataFrame
    by_reduction: pd.DataFrame
    by_rate: pd.DataFrame
    everything: pd.DataFrame
    gradients: Gradients
    published: pd.DataFrame
    axes: dict[str, list[str]]


def study_figures(numbers: Numbers) -> tuple[list[Picture], list[str]]:
    """The figures that have data, in the order of the page, and a sentence for each that is left out."""
    finished = numbers.finished
    devices = sorted(finished["device"].dropna().astype(str).unique()) if "device" in finished else []
    makers: Sequence[tuple[str, Callable[[], Picture | list[Picture] | None], str]] = (
        ("What CLCA adds",
         lambda: paired_gain(numbers.pairs, numbers.by_reduction, numbers.by_rate, numbers.everything),
         "no setting is finished both with CLCA and without"),
        ("Accuracy against cost", lambda: accuracy_gmacs(numbers.cells, numbers.published),
         "no base or CLCA run is finished"),
        ("Accuracy by keep rate", lambda: accuracy_keep_rates(numbers.cells), "no base or CLCA run is finished"),
        ("Spread of accuracy", lambda: accuracy_boxes(numbers.default), "no run is finished"),
        ("Gradients in training", lambda: gradient_curves(numbers.gradients),
         "no finished run has the gradients of its steps"),
        ("Accuracy against measured time", lambda: accuracy_time(numbers.cells, devices),
         "no base or CLCA run is finished, or none has its time"),
    )  # fmt: skip
    pictures: list[Picture] = []
    absent = []
    for title, make, reason in makers:
        made = make()
        several = made if isinstance(made, list) else [made]
        more = [picture for picture in several if picture is not None and picture.panels]  # rows may lack a reduction
        pictures += more
        if not more:
            absent.append(f"{title}: left out, because {reason}.")
    for axis, labels in numbers.axes.items():
        if axis not in _OWN_COLUMNS and len(labels) > 1:
            picture = variant_boxes(finished, axis, labels)
            pictures += [picture] if picture is not None else []
    return _with_unique_names(pictures), absent


def _with_unique_names(pictures: Sequence[Picture]) -> list[Picture]:
    """Add a number to repeated names: names of sets in other scripts can lead to the same file name."""
    seen: Counter[str] = Counter()
    unique = []
    for picture in pictures:
        seen[picture.name] += 1
        count = seen[picture.name]
        unique.append(picture if count == 1 else replace(picture, name=f"{picture.name}-{count}"))
    return unique
