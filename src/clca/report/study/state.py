"""Progress of a study, its failures, and differences between runs that affect comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from clca.report.study.numbers import paired_gains
from clca.report.study.settings import without_pretraining

_SAME = {
    "clca": "the version of clca",
    "torch": "the version of torch",
    "timm": "the version of timm",
    "device": "the device",
    "precision": "the precision",
}


@dataclass(frozen=True)
class Missing:
    """Progress of a study.

    Attributes:
        total: Number of runs of the study.
        finished, failed, interrupted, not_begun: Numbers of runs by state.
        by_axis: One row per label: `axis`, `label`, `planned` (NaN if unknown), `finished`, `failed`, `interrupted`,
            `not_begun` (NaN if unknown).
        sentences: For the report, most important first; never empty.
    """

    total: int
    finished: int
    failed: int
    interrupted: int
    not_begun: int
    by_axis: pd.DataFrame
    sentences: list[str]

    @property
    def complete(self) -> bool:
        return self.finished >= self.total


def missing(study: Mapping[str, Any], table: pd.DataFrame) -> Missing:
    """Progress of a study, in total and for every label of every axis.

    Args:
        study: The content of study.json: `total`, `axes` {axis: [labels]}, `seeds`, `planned` {axis: {label: runs}}
            (without `planned`, the numbers per label are known for a full grid only).
        table: The results table; a run that is neither finished nor failed was interrupted, or is in progress.
    """
    runs = without_pretraining(table)
    states = runs["state"].astype(object) if "state" in runs else pd.Series(index=runs.index, dtype=object)
    finished, failed = int((states == "finished").sum()), int((states == "failed").sum())
    interrupted = len(runs) - finished - failed
    total = int(study.get("total", len(runs)))
    by_axis = _by_axis(study, runs, states, total)
    found = Missing(total, finished, failed, interrupted, max(0, total - len(runs)), by_axis, [])
    found.sentences.extend([_in_all(found), *_uneven(by_axis), *_alone(table)])
    if len(runs) > total:
        found.sentences.append(f"The folder holds {_runs(len(runs) - total)} more than the study asks for.")
    return found


def mixed(table: pd.DataFrame) -> list[str]:
    """A sentence for each of versions, device and precision that differs between finished runs; empty if none does.

    Each sentence has the number of runs of each kind, and of pairs of CLCA and base whose runs differ.
    """
    runs = table[table["state"] == "finished"] if "state" in table else table
    differing = [name for name in _SAME if name in runs and runs[name].nunique() > 1]
    if not differing:
        return []
    pairs = paired_gains(table)
    sentences = []
    for name in differing:
        counts = runs[name].astype(str)[runs[name].notna()].value_counts().sort_index()
        listed = ", ".join(f"{value} ({_runs(count)})" for value, count in counts.items())
        sentence = f"Not all runs have {_SAME[name]} in common: {listed}"
        if "run" in runs:
            of = dict(zip(runs["run"].astype(str), runs[name].astype(str), strict=True))
            split = sum(of.get(a) != of.get(b) for a, b in zip(pairs["run"], pairs["run_against"], strict=True))
            sentence += f"; {split} of {len(pairs)} pairs of CLCA and base differ in it" if split else ""
        sentences.append(sentence + ".")
    return sentences


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """Failed runs by their error line, most frequent first.

    Returns:
        `error`, `n` (runs), `names` (text: the first five, and how many more).
    """
    failed = table[table["state"] == "failed"] if "state" in table else table.iloc[:0]
    errors = failed["error"].astype(object) if "error" in failed else pd.Series(index=failed.index, dtype=object)
    errors = errors.where(errors.notna(), "no reason was recorded")
    names = failed["name"] if "name" in failed else failed.index.to_series()
    rows = [
        {"error": error, "n": len(own), "names": _first(sorted(map(str, own)))} for error, own in names.groupby(errors)
    ]
    found = pd.DataFrame(rows, columns=["error", "n", "names"])
    return found.sort_values(["n", "error"], ascending=[False, True], ignore_index=True)


def _by_axis(study: Mapping[str, Any], runs: pd.DataFrame, states: pd.Series, total: int) -> pd.DataFrame:
    axes = {str(axis): [str(label) for label in labels] for axis, labels in study.get("axes", {}).items()}
    full_grid = math.prod(map(len, axes.values())) * max(1, len(study.get("seeds", ()))) == total
    rows = []
    for axis, labels in axes.items():
        if len(runs) and f"axis.{axis}" not in runs:
            continue
        own = runs[f"axis.{axis}"].astype(str) if len(runs) else pd.Series(dtype=object)
        counted = study.get("planned", {}).get(axis, {})
        for label in labels:
            mine = states[own == label]
            finished, failed = int((mine == "finished").sum()), int((mine == "failed").sum())
            planned = counted.get(label, total // len(labels) if full_grid else None)
            rows.append(
                {
                    "axis": axis,
                    "label": label,
                    "planned": planned,
                    "finished": finished,
                    "failed": failed,
                    "interrupted": len(mine) - finished - failed,
                    "not_begun": None if planned is None else max(0, planned - len(mine)),
                }
            )
    counts = ["planned", "finished", "failed", "interrupted", "not_begun"]
    return pd.DataFrame(rows, columns=["axis", "label", *counts]).astype(dict.fromkeys(counts, "Int64"))


def _in_all(found: Missing) -> str:
    left = max(0, found.total - found.finished)
    if not left:
        return f"All {found.total:,} runs are finished." if found.total != 1 else "The one run is finished."
    parts = {
        "failed": found.failed,
        "begun and not finished": found.interrupted,
        "not begun": found.not_begun,
    }
    listed = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
    return f"{left:,} of {found.total:,} runs {'is' if left == 1 else 'are'} not finished: {listed}."


def _uneven(by_axis: pd.DataFrame) -> list[str]:
    """Labels without finished runs, and labels with fewer than others, which would bias a mean."""
    sentences = []
    for axis, own in by_axis.groupby("axis", sort=False):
        done = own["finished"] > 0
        if not done.any():
            continue
        if not done.all():
            sentences.append(f"Nothing is finished yet for {axis} {_first(own.loc[~done, 'label'].tolist())}.")
        share = (own["finished"] / own["planned"])[done & (own["planned"] > 0)]
        if len(share) and share.max() - share.min() > 0.1:
            lagging = own.loc[share[share < share.max() - 0.1].sort_values(kind="stable").index]
            rows = [f"{row.label} ({row.finished} of {row.planned})" for row in lagging.itertuples()]
            sentences.append(f"Further behind than the rest of {axis}: {_first(rows, 3)}.")
    return sentences


def _alone(table: pd.DataFrame) -> list[str]:
    """Runs with CLCA without a base run to compute a gain from."""
    if "state" not in table or "arm" not in table:
        return []
    arms = table.loc[table["state"] == "finished", "arm"]
    alone = int((arms == "clca").sum()) - len(paired_gains(table))
    if "base" not in set(table["arm"]) or alone <= 0:
        return []
    return [f"{_runs(alone)} with CLCA {'has' if alone == 1 else 'have'} no finished base run to compare with."]


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _first(names: list[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
