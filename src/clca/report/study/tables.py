"""The tables of a study: results by setting, gains of CLCA, the frontier, gradients, progress, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from clca.report.published import plain
from clca.report.study.cells import (
    ARM_TITLES,
    cell,
    column,
    cost,
    intervals,
    means_with_sd,
    p_text,
    setting_column,
    signed,
    varies,
)
from clca.report.study.gradients import Gradients
from clca.report.study.numbers import SETTING, frontier_of, gain_summary, over_seeds, paired_gains
from clca.report.study.results import results_table
from clca.report.study.settings import axes_of, by_default
from clca.report.study.state import failures, missing
from clca.report.table import ReportTable, write_tables
from clca.system.tables import Column

__all__ = ["Column", "ReportTable", "results_table", "study_tables", "write_tables"]

_FACTORS = ("reduction", "keep_rate", "img_size", "data", "backbone")
_HOW_GAINS = (
    "The two runs of a pair differ in the arm only, and have the same seed. The interval is for the mean gain "
    "(bootstrap, BCa, settings resampled with all their seeds; runs if there are fewer than three settings); with "
    "fewer than about ten settings or runs it is too narrow. p: two-sided sign test over pairs, without ties, not "
    "corrected for the number of rows."
)


def study_tables(
    study: Mapping[str, Any], table: pd.DataFrame, gradients: Gradients | None = None, *, limit: int = 60
) -> dict[str, ReportTable]:
    """All tables of a study, by file name, without empty ones.

    Args:
        study: The content of study.json.
        table: The results table.
        gradients: From `clca.report.study.gradients.gradients`; None leaves that table out.
        limit: Largest number of rows shown per table; the CSV has all.

    Returns:
        `results`, `gains`, `gains_by_keep_rate`, `frontier`, `published`, `gradients`, `progress`, `failures`.
    """
    means = over_seeds(table)
    pairs = {arm: paired_gains(table, arm) for arm in ("clca", "cla", "clc")}
    made = {
        "results": results_table(means, pairs["clca"], limit=limit),
        "gains": _gains_table(pairs, limit),
        "gains_by_keep_rate": _rates_table(pairs["clca"], limit),
        "frontier": _frontier_table(frontier_of(means), limit),
        "published": _published_table(means, limit),
        "gradients": None if gradients is None else _gradients_table(gradients),
        "progress": _progress_table(study, table),
        "failures": _failures_table(table, limit),
    }
    return {name: one for name, one in made.items() if one is not None and len(one.frame)}


def _gains_table(pairs: Mapping[str, pd.DataFrame], limit: int) -> ReportTable | None:
    """The gain of CLCA, and of each module alone, over all pairs; for CLCA also by each varied setting."""
    parts = []
    for arm, own in pairs.items():
        if own.empty:
            continue
        default = by_default(own)
        parts.append(gain_summary(default).assign(by="all", arm=arm))
        if arm == "clca":
            factors = [name for name in (*_FACTORS, *axes_of(default)) if varies(default, name)]
            parts += [gain_summary(default, [name]).assign(by=name, arm=arm) for name in factors]
            if varies(own, "variant"):
                parts.append(gain_summary(own, ["variant"]).assign(by="variant", arm=arm))
    if not parts:
        return None
    return _summary_table("Gain over the base model", pd.concat(parts, ignore_index=True), limit)


def _rates_table(pairs: pd.DataFrame, limit: int) -> ReportTable | None:
    own = by_default(pairs)
    if own.empty or not (varies(own, "reduction") and varies(own, "keep_rate")):
        return None
    summary = gain_summary(own, ["reduction", "keep_rate"]).assign(by="reduction · keep_rate", arm="clca")
    return _summary_table("Gain of CLCA by reduction and keep rate", summary, limit)


def _summary_table(title: str, summary: pd.DataFrame, limit: int) -> ReportTable:
    columns = (
        Column("Arm", align="left"),
        Column("Runs", align="left"),
        Column("pairs"),
        Column("settings"),
        Column("mean gain", "points"),
        Column("95 % interval"),
        Column("median"),
        Column("better / equal / worse"),
        Column("p"),
        Column("Verdict", align="left"),
    )
    shown = summary.head(limit)
    signs = zip(shown["wins"], shown["ties"], shown["losses"], strict=True)
    texts = [
        [ARM_TITLES[arm] for arm in shown["arm"]],
        list(shown["group"]),
        [f"{count:,}" for count in shown["pairs"]],
        [f"{count:,}" for count in shown["settings"]],
        column(shown, "mean", signed),
        intervals(shown["low"], shown["high"]),
        column(shown, "median", signed),
        [" / ".join(f"{count:,}" for count in row) for row in signs],
        column(shown, "p", lambda p: p_text(p).removeprefix("p ").removeprefix("= ")),
        list(shown["verdict"]),
    ]
    names = ["arm", "by", "group", "pairs", "settings", "mean", "median", "low", "high", "unit"]
    frame = summary[[*names, "wins", "ties", "losses", "p", "verdict", "sentence"]]
    return ReportTable(title, _HOW_GAINS, columns, tuple(zip(*texts, strict=True)), frame, len(summary) - len(shown))


def _frontier_table(best: pd.DataFrame, limit: int) -> ReportTable | None:
    if best.empty:
        return None
    keys = [name for name in (*SETTING, "variant", *axes_of(best)) if name == "data" or varies(best, name)]
    shown = best.head(limit)
    columns = [Column("Arm", align="left")]
    columns += [setting_column(best, name) for name in keys]
    texts = [[ARM_TITLES.get(arm, arm) for arm in shown["arm"]]]
    texts += [[cell(name, value) for value in shown[name]] for name in keys]
    columns += [Column("GMACs"), Column("top-1", "%"), Column("runs")]
    texts += [column(shown, "gmacs", cost), means_with_sd(shown), [f"{n}" for n in shown["n"]]]
    caption = "For each set and arm, the settings such that no other is both cheaper and at least as accurate."
    rows = tuple(zip(*texts, strict=True))
    return ReportTable("Best accuracy for the cost", caption, tuple(columns), rows, best, len(best) - len(shown))


def _published_table(means: pd.DataFrame, limit: int) -> ReportTable | None:
    """Other methods and the best setting of each arm, by set."""
    parts = []
    for data in dict.fromkeys(means["data"]):
        theirs = plain(data)
        if theirs.empty:
            continue
        parts.append(theirs[["data", "method", "top1", "gmacs", "img_size"]].assign(source="published"))
        own = means[means["data"] == data].sort_values("top1_mean", kind="stable")
        best = own.drop_duplicates("arm", keep="last")
        names = [f"{ARM_TITLES.get(arm, arm)}, best setting here" for arm in best["arm"]]
        parts.append(
            best.assign(method=names, top1=best["top1_mean"], source="this study")[
                ["data", "method", "top1", "gmacs", "img_size", "source"]
            ]
        )
    if not parts:
        return None
    frame = pd.concat(parts, ignore_index=True).sort_values(
        ["data", "top1", "method"], ascending=[True, False, True], ignore_index=True
    )
    shown = frame.head(limit)
    columns = (
        Column("Set", align="left"),
        Column("Method", align="left"),
        Column("top-1", "%"),
        Column("GMACs"),
        Column("Image"),
        Column("From", align="left"),
    )
    texts = [
        [cell("data", value) for value in shown["data"]],
        list(shown["method"]),
        column(shown, "top1", lambda value: f"{value:.1f}"),
        column(shown, "gmacs", lambda value: f"{value:.1f}"),
        [cell("img_size", value) for value in shown["img_size"]],
        list(shown["source"]),
    ]
    caption = (
        "Published numbers of other methods (as in Rios et al., ICASSP 2025) beside the most accurate setting of each "
        "arm in this study, selected on the same images, which favours it."
    )
    rows = tuple(zip(*texts, strict=True))
    return ReportTable("Other methods on the same sets", caption, columns, rows, frame, len(frame) - len(shown))


def _gradients_table(found: Gradients) -> ReportTable:
    columns = (
        Column("Arm", align="left"),
        Column("finished runs"),
        Column("largest gradient"),
        Column("median gradient"),
        Column("largest over median"),
    )
    texts = [
        [ARM_TITLES[arm] for arm in found.arms["arm"]],
        [f"{count:,}" for count in found.arms["finished"]],
        *(column(found.arms, name, cost) for name in ("largest", "median", "spike")),
    ]
    caption = "The largest and the median gradient over the training steps of a run; the table has medians over runs. "
    caption += " ".join(found.sentences)
    return ReportTable("Gradients by arm", caption, columns, tuple(zip(*texts, strict=True)), found.arms)


def _progress_table(study: Mapping[str, Any], table: pd.DataFrame) -> ReportTable:
    found = missing(study, table)
    names = ["planned", "finished", "failed", "interrupted", "not_begun"]
    columns = (
        Column("Axis", align="left"),
        Column("Value", align="left"),
        *(Column(name.replace("_", " ")) for name in names),
    )
    whole = {"axis": "all", "label": "", "planned": found.total}
    whole |= {name: getattr(found, name) for name in names[1:]}
    frame = pd.concat([pd.DataFrame([whole]), found.by_axis], ignore_index=True)
    frame = frame.astype(dict.fromkeys(names, "Int64"))
    texts = [list(frame["axis"]), list(frame["label"]), *(column(frame, name, "{:,}".format) for name in names)]
    return ReportTable("Runs", " ".join(found.sentences), columns, tuple(zip(*texts, strict=True)), frame)


def _failures_table(table: pd.DataFrame, limit: int) -> ReportTable | None:
    found = failures(table)
    columns = (Column("Error", align="left"), Column("runs"), Column("Names", align="left"))
    rows = tuple((str(row.error), f"{row.n:,}", str(row.names)) for row in found.head(limit).itertuples())
    return ReportTable("Failed runs", "Grouped by equal error.", columns, rows, found, max(0, len(found) - limit))
