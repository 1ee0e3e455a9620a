"""How large gradients get during training, by arm (the paper: the base model's are larger and spikier)."""

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
        curves: One row an arm and step: `arm`, `step`, `median`, `low`, `high` (quartiles over runs), `runs`.
        arms: One row an arm: `arm`, `runs` (that the curve is of), `finished` (that there are), `unreadable` (that were
            to be read and could not be), and over all finished ones the medians `median` (of a run's median over
            steps), `largest` (of its largest) and `spike` (of its largest over its median).
        pairs: One row a pair of base and CLCA: the columns of `paired_gains`, and base's over CLCA's as `ratio_median`,
            `ratio_max` and `ratio_spike` (largest over median).
        sentences: What it comes to, for the report.
    """

    curves: pd.DataFrame
    arms: pd.DataFrame
    pairs: pd.DataFrame
    sentences: list[str]


def gradients(folder: Path, table: pd.DataFrame, *, most: int = 96, points: int = 400) -> Gradients:
    """Read how gradients went from runs/<name>/run/metrics.jsonl of finished runs.

    The curves of all arms are of the same settings and seeds wherever there are some that all arms have. The ratios
    and the medians are of all finished runs, from the table. Carriers, GAP or heads other
    than the default are left out.

    Args:
        folder: The study's folder.
        table: Its results table.
        most: Runs read of an arm at most; of more, as many are taken, evenly spread over the settings.
        points: Points of a curve at most; of longer runs, neighbouring steps are taken together and the largest counts.
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
        own = runs[runs["arm"] == arm]
        arms.append(
            {
                "arm": arm,
                "runs": len(read),
                "finished": len(own),
                "unreadable": len(chosen[arm]) - len(read),
                "median": own["grad_median"].median(),
                "largest": own["grad_max"].median(),
                "spike": own["spike"].median(),
            }
        )
    pairs = _ratios(by_default(paired_gains(table)))
    by_arm = pd.DataFrame(arms, columns=_ARMS)
    curve = pd.concat(curves, ignore_index=True)[_CURVES] if curves else pd.DataFrame(columns=_CURVES)
    return Gradients(curve, by_arm, pairs, [*_pair_sentences(pairs), *_run_sentences(by_arm)])


def read_steps(run: Path) -> pd.Series | None:
    """The largest gradient at each training step of a run; None where metrics.jsonl has none.

    What an interruption left behind (half a line, a step written twice) is left out: of a step, the last line counts.

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
    """The names of the runs to read of each arm: the same settings and seeds, as far as they all have some."""
    names = runs[runs["name"] != ""].drop_duplicates([*SETTING, "seed", "arm"], keep="last")
    if names.empty:
        return {arm: [] for arm in arms}
    by_place = names.pivot(index=[*SETTING, "seed"], columns="arm", values="name").reindex(columns=arms).sort_index()
    shared = by_place.dropna()
    chosen = {}
    for arm in arms:
        own = (shared if len(shared) else by_place)[arm].dropna()
        picks = np.unique(np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int))
        chosen[arm] = own.iloc[picks].tolist()
    return chosen


def _curve(runs: list[pd.Series], points: int) -> pd.DataFrame:
    """Median and quartiles over runs at each step, or at each of so many stretches of steps."""
    if not runs:
        return pd.DataFrame(columns=_CURVES[1:])
    last = max(int(steps.index.max()) for steps in runs)
    width = max(1, math.ceil((last + 1) / points))
    together = pd.concat([steps.groupby(steps.index // width).max() for steps in runs], axis=1).sort_index()
    return pd.DataFrame(
        {
            "step": together.index * width + (width - 1) // 2,
            "median": together.median(axis=1).to_numpy(),
            "low": together.quantile(0.25, axis=1).to_numpy(),
            "high": together.quantile(0.75, axis=1).to_numpy(),
            "runs": together.notna().sum(axis=1).to_numpy(),
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
        return ["No pair of finished runs of base and CLCA has its gradients written down."]
    sentences = []
    for column, what in (
        ("ratio_max", "largest gradient of a training"),
        ("ratio_median", "median gradient over its steps"),
        ("ratio_spike", "largest over the median"),
    ):
        own = pairs[column].dropna()
        if own.empty:
            continue
        low, middle, high = own.quantile([0.25, 0.5, 0.75])
        above, below = int((own > 1).sum()), int((own < 1).sum())
        test = f", sign test {p_text(float(binomtest(above, above + below).pvalue))}" if above + below else ""
        sentences.append(
            f"Base over CLCA, {what}: {middle:.2f} times (quartiles {low:.2f} to {high:.2f}; base's is larger in "
            f"{above} of {len(own)} pairs{test})."
        )
    return sentences


def _run_sentences(arms: pd.DataFrame) -> list[str]:
    sentences = []
    fewer = arms[arms["runs"] + arms["unreadable"] < arms["finished"]]
    if len(fewer):
        listed = ", ".join(f"{row.runs} of {row.finished} of {ARM_TITLES[row.arm]}" for row in fewer.itertuples())
        sentences.append(f"The curves are of some of the finished runs, evenly spread over the settings: {listed}.")
    if (unread := int(arms["unreadable"].sum())) > 0:
        sentences.append(f"Of {unread} run{'s' if unread > 1 else ''} the metrics could not be read.")
    return sentences
