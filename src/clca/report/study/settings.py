"""The setting of each run in a results table, independent of the names of the study's axes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clca.report.published import BY_BLOCK, VARIANTS
from clca.report.study.cells import ARM_TITLES

SETTING = ["data", "backbone", "reduction", "keep_rate", *BY_BLOCK, "img_size"]
"""The columns of a setting that a base model and one with CLCA have in common."""

ARMS = ("base", "cla", "clc", "clca")

RAW = "raw."
"""Prefix of a variant's column that keeps its value also for arms that it does not apply to."""

_WORDS = {
    "num_clr": lambda value: f"{value:g} carrier{'' if value == 1 else 's'}",
    "clc_gap": lambda value: "GAP" if value else "no GAP",
    "clc_recover_at_last": lambda value: "recovery at last" if value else "no recovery at last",
    "cla_width": lambda value: f"head width {value:g}",
}


def finished_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of a results table, each with its setting.

    A setting of one module is blank for the arms that it does not apply to. An axis whose labels follow from the other
    columns is left out; one that follows from the arm (such as `variant: base, clca, clca long`) is blank except where
    it distinguishes runs of one arm. Pretraining runs (on no axis) are left out.

    Args:
        table: As from `clca.study.results.table.read_table`; any column may be absent.

    Returns:
        The runs, sorted, with all of `SETTING`, `arm`, `seed`, `run`, `name`, `top1`, the `VARIANTS` (numbers; NaN
        where blank), the same under `RAW` names, `variant` (those other than the default, in words) and the
        distinguishing `axis.*` columns ("" where blank).
    """
    runs = without_pretraining(table)
    for name in ("data", "backbone", "reduction", *BY_BLOCK, "arm", "run", "name", "finished_at"):
        runs[name] = _text(runs, name)
    for name in ("keep_rate", "img_size", "seed", "top1", "gmacs"):
        runs[name] = number_column(runs, name)
    runs["keep_rate"] = runs["keep_rate"].round(6)
    for name, (_, arms) in VARIANTS.items():
        runs[RAW + name] = number_column(runs, name)
        runs[name] = runs[RAW + name].where(runs["arm"].isin(arms))
    runs["variant"] = [_in_words(row) for row in runs[list(VARIANTS)].itertuples(index=False)]
    runs = _distinguishing_axes(runs)  # before any is left out: failed runs too distinguish an axis from the arm
    finished = runs["top1"].notna()
    if "state" in runs:
        finished &= (runs["state"] == "finished").fillna(False).astype(bool)
    runs = runs[finished]
    runs = runs.drop(columns=[name for name in axes_of(runs) if (runs[name] == "").all()])
    return runs.sort_values(
        [*SETTING, "arm", *VARIANTS, *axes_of(runs), "seed", "finished_at", "run"], ignore_index=True
    )


def axes_of(runs: pd.DataFrame) -> list[str]:
    """The columns of the study's axes."""
    return [name for name in runs if str(name).startswith("axis.")]


def without_pretraining(table: pd.DataFrame) -> pd.DataFrame:
    """The runs on an axis of the study; pretraining runs are on none."""
    axes = axes_of(table)
    on_one = table[axes].notna().any(axis=1) if axes else pd.Series(False, index=table.index)
    return table[on_one].copy() if on_one.any() else table.copy()


def by_default(rows: pd.DataFrame) -> pd.DataFrame:
    """For each arm, the rows with the default carriers, GAP and head if there are any, else all of its rows.

    Args:
        rows: Runs, pairs or settings with `arm` and `variant`.
    """
    default = rows["variant"] == ""
    return rows[default | ~default.groupby(rows["arm"]).transform("any")]


def setting_text(runs: pd.DataFrame, *, arm: bool = False) -> pd.Series:
    """Each run's setting in words: leaves · evit · 0.5 · 64 px."""
    sizes = runs["img_size"].map(lambda size: "" if pd.isna(size) else f"{size:g} px")
    rates = runs["keep_rate"].map(lambda rate: "" if pd.isna(rate) else f"{rate:g}")
    rates = rates.where(runs["keep_rates"] == "", runs["keep_rates"])
    blocks = runs["locations"].map(lambda blocks: blocks and f"blocks {blocks}")
    parts = [runs["data"], runs["backbone"], runs["reduction"], rates, blocks, sizes]
    parts += [runs["arm"].map(lambda name: ARM_TITLES.get(name, name))] if arm else []
    parts += [runs["variant"], *(runs[axis] for axis in axes_of(runs))]
    texts = [" · ".join(part for part in row if part) for row in zip(*parts, strict=True)]
    return pd.Series(texts, index=runs.index, dtype=object)


def _distinguishing_axes(runs: pd.DataFrame) -> pd.DataFrame:
    axes = axes_of(runs)
    labels = pd.DataFrame({name: _text(runs, name) for name in axes}, index=runs.index)
    raw = [runs[name] for name in SETTING] + [runs[RAW + name] for name in VARIANTS]
    known = [*raw, runs["arm"], *(runs[name] for name in VARIANTS)]
    for name in axes:
        own = labels[name]
        if name == "axis.seed" or not _several(own, raw).any():
            own = own.where(own == "", "")
        elif not (_several(own, [runs["arm"]]).any() and _several(runs["arm"], [own]).any()):
            own = own.where(_several(own, known), "")  # it follows from the arm, or the arm from it
        runs[name] = own
    return runs


def _several(values: pd.Series, groups: list[pd.Series]) -> pd.Series:
    """Whether each row's group has more than one value."""
    return values.groupby(groups, dropna=False).transform("nunique") > 1


def number_column(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column as floats; NaN if it is missing or not a number."""
    if name not in runs:
        return pd.Series(np.nan, index=runs.index, dtype=float)
    column = runs[name]
    return pd.to_numeric(column.astype(object).where(column.notna(), np.nan), errors="coerce").astype(float)


def _text(runs: pd.DataFrame, name: str) -> pd.Series:
    if name not in runs:
        return pd.Series("", index=runs.index, dtype=object)
    column = runs[name]
    return column.astype(object).map(str).where(column.notna(), "").astype(object)


def _in_words(row: tuple[float, ...]) -> str:
    values = zip(VARIANTS.items(), row, strict=True)
    return ", ".join(
        _WORDS[name](value) for (name, (default, _)), value in values if not pd.isna(value) and value != default
    )
