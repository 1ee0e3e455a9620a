"""Sizes of gradients during training, by arm (in the paper, those of the base model are larger, with more spikes)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clca.report.study.cells import ARM_TITLES, p_text
from clca.report.study.numbers import paired_gains
from clca.report.study.settings import ARMS, SETTING, by_default, finished_runs, number_column
from clca.system.files import file_objects
from clca.system.numbers import integer, number

_CURVES = ["arm", "step", "median", "low", "high", "runs"]
_ARMS = ["arm", "runs", "finished", "unreadable", "median", "largest", "spike"]


@dataclass(frozen=True)
class Gradients:
    """Largest gradient by training step.

    Attributes:
        curves: One row per arm and step: `arm`, `step`, `median`, `low`, `high` (quartiles over runs), `runs`.
        arms: One row per arm: `arm`, numbers of runs as `runs` (in the curve), `finished` and `unreadable` (selected
            for the curve, but not readable), and medians over all finished runs: `median` (of a run's median over
            steps), `largest` (of its largest) and `spike` (of its largest over its median).
        pairs: One row per pair of base and CLCA: the columns of `paired_gains`, and the ratios of base to CLCA as
            `ratio_median`, `ratio_max` and `ratio_spike` (largest over median).
        sentences: The summary for the report.
    """

    curves: pd.DataFrame
    arms: pd.DataFrame
    pairs: pd.DataFrame
    sentences: list[str]


def gradients(folder: Path, table: pd.DataFrame, *, most: int = 96, points: int = 400) -> Gradients:
    """Read the gradients of finished runs from runs/<name>/run/metrics.jsonl.

    The curves of all arms cover the same settings and seeds, if all arms have some in common. Ratios and medians cover
    all finished runs, from the table. Runs with other carriers, GAP or heads than the default are left out.

    Args:
        folder: The study's folder.
        table: Its results table.
        most: Largest number of runs to read per arm; from more, this many are selected evenly over the settings.
        points: Largest number of points per curve; in longer runs, each point is the maximum of neighbouring steps.
    """
    runs = by_default(finished_runs(table))
    for name in ("grad_max", "grad_median"):
        runs[name] = number_column(runs, name)
    runs["spike"] = runs["grad_max"] / runs["grad_median"].where(runs["grad_median"] > 0)
    present = [arm for arm in ARMS if (runs["arm"] == arm).any()]
    chosen = _chosen(runs, present, most)
    curves, arms = [], []
    for arm in present:
        read = {
            name: steps for name in chosen[arm] if (steps := read_steps(folder / "runs" / name / "run")) is not None
        }
        curves.append(_curve(list(read.values()), points).assign(arm=arm))
        of_arm = runs[runs["arm"] == arm]
        arms.append(
            {
                "arm": arm,
                "runs": len(read),
                "finished": len(of_arm),
                "unreadable": len(chosen[arm]) - len(read),
                "median": of_arm["grad_median"].median(),
                "largest": of_arm["grad_max"].median(),
                "spike": of_arm["spike"].median(),
            }
        )
    pairs = _ratios(by_default(paired_gains(table)))
    by_arm = pd.DataFrame(arms, columns=_ARMS)
    curve = pd.concat(curves, ignore_index=True)[_CURVES] if curves else pd.DataFrame(columns=_CURVES)
    return Gradients(curve, by_arm, pairs, [*_pair_sentences(pairs), *_run_sentences(by_arm)])


def read_steps(run: Path) -> pd.Series | None:
    """The largest gradient at each training step of a run; None if metrics.jsonl has none.

    An interruption can leave an incomplete line, which is skipped, and repeated steps, of which the last counts.

    Args:
        run: The run's folder, with metrics.jsonl.
    """
    found: dict[int, float] = {}
    for content in file_objects(run / "metrics.jsonl"):
        step, value = integer(content.get("step")), number(content.get("grad_max"))
        if step is not None and value is not None:
            found[step] = float(value)
    return pd.Series(found, dtype=float).sort_index() if found else None


def _chosen(runs: pd.DataFrame, arms: list[str], most: int) -> dict[str, list[str]]:
    """The names of the runs to read for each arm: of the same settings and seeds, if all arms have some in common."""
    names = runs[runs["name"] != ""].drop_duplicates([*SETTING, "seed", "arm"], keep="last")
    if names.empty:
        return {arm: [] for arm in arms}
    by_setting = names.pivot(index=[*SETTING, "seed"], columns="arm", values="name").reindex(columns=arms).sort_index()
    shared = by_setting.dropna()
    chosen = {}
    for arm in arms:
        candidates = (shared if len(shared) else by_setting)[arm].dropna()
        picks = np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round().astype(int)
        chosen[arm] = candidates.iloc[np.unique(picks)].tolist()
    return chosen


def _curve(runs: list[pd.Series], points: int) -> pd.DataFrame:
    """Median and quartiles over runs at each step, or at each of at most `points` intervals of steps."""
    if not runs:
        return pd.DataFrame(columns=_CURVES[1:])
    last = max(int(steps.index.max()) for steps in runs)
    width = max(1, math.ceil((last + 1) / points))
    joined = pd.concat([steps.groupby(steps.index // width).max() for steps in runs], axis=1).sort_index()
    return pd.DataFrame(
        {
            "step": joined.index * width + (width - 1) // 2,
            "median": joined.median(axis=1).to_numpy(),
            "low": joined.quantile(0.25, axis=1).to_numpy(),
            "high": joined.quantile(0.75, axis=1).to_numpy(),
            "runs": joined.notna().sum(axis=1).to_numpy(),
        }
    )


def _ratios(pairs: pd.DataFrame) -> pd.DataFrame:
    pairs = pairs.copy()
    positive = pairs[["grad_median", "grad_max", "grad_median_against", "grad_max_against"]]
    positive = positive.where(positive > 0).astype(float)
    pairs["ratio_median"] = positive["grad_median_against"] / positive["grad_median"]
    pairs["ratio_max"] = positive["grad_max_against"] / positive["grad_max"]
    pairs["ratio_spike"] = pairs["ratio_max"] / pairs["ratio_median"]
    return pairs[pairs["ratio_max"].notna() | pairs["ratio_median"].notna()].reset_index(drop=True)


def _pair_sentences(pairs: pd.DataFrame) -> list[str]:
    from scipy.stats import binomtest

    if pairs.empty:
        return ["No pair of finished runs of base and CLCA has recorded gradients."]
    sentences = []
    for column, what in (
        ("ratio_max", "largest gradient of a training"),
        ("ratio_median", "median gradient over its steps"),
        ("ratio_spike", "largest over the median"),
    ):
        ratios = pairs[column].dropna()
        if ratios.empty:
            continue
        low, middle, high = ratios.quantile([0.25, 0.5, 0.75])
        above, below = int((ratios > 1).sum()), int((ratios < 1).sum())
        test = f", sign test {p_text(float(binomtest(above, above + below).pvalue))}" if above + below else ""
        sentences.append(
            f"Base over CLCA, {what}: {middle:.2f} times (quartiles {low:.2f} to {high:.2f}; base's is larger in "
            f"{above} of {len(ratios)} pairs{test})."
        )
    return sentences


def _run_sentences(arms: pd.DataFrame) -> list[str]:
    sentences = []
    fewer = arms[arms["runs"] + arms["unreadable"] < arms["finished"]]
    if len(fewer):
        listed = ", ".join(f"{row.runs} of {row.finished} of {ARM_TITLES[row.arm]}" for row in fewer.itertuples())
        sentences.append(f"The curves cover some of the finished runs, selected evenly over the settings: {listed}.")
    if (unread := int(arms["unreadable"].sum())) > 0:
        sentences.append(f"The metrics of {unread} run{'s' if unread > 1 else ''} could not be read.")
    return sentences
