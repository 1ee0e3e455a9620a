"""A study's folder as one page, its figures and its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clca.errors import ClcaError
from clca.report.page import need_extras, shown, write_page
from clca.system.files import make_writable

if TYPE_CHECKING:
    import pandas as pd

    from clca.report.study.state import Missing

MOST_RUNS = 3000
"""Largest number of runs that the page lists, failed ones first; all are in tables/runs.csv."""
MOST_ERRORS = 5
_OTHERWISE = {
    "lowers": "CLCA lowers top-1 of",
    "no clear difference": "No clear difference for",
    "too few pairs": "Too few pairs for a conclusion on",
}
"""Heading for reductions that do not gain, by verdict of `gain_summary`."""


@dataclass(frozen=True)
class Report:
    """The files written, and their summary.

    Attributes:
        page: The page.
        answer: The sentences of the summary at the top.
        figures, tables, pages: Their numbers.
    """

    page: Path
    answer: list[str]
    figures: int
    tables: int
    pages: int


def report(folder: Path, out: Path, *, runs: bool = False) -> Report:
    """Write the page of a study, or of one run, with its figures and tables.

    Args:
        folder: Folder of a study or a run.
        out: Folder for index.html, figures/, tables/ and, with `runs`, runs/.
        runs: For a study, also write a page for every run that has begun.

    Raises:
        ClcaError: The folder does not exist, holds neither, or cannot be read, or `out` cannot be written.
        WorkError: A file could not be written.
    """
    need_extras()
    if not folder.is_dir():
        raise ClcaError(f"{folder}: there is no such folder; name the one that clca study run or clca train wrote")
    from clca.study.results.folder import STUDY

    if (folder / STUDY).is_file():
        return study_report(folder, out, runs=runs)
    from clca.report.run.folds import folds_report, is_cross_validation
    from clca.report.run.page import is_run, run_report

    if is_cross_validation(folder):
        if runs:
            raise ClcaError(f"--runs: name one of the runs in {folder}, such as {folder / 'fold-1'}")
        page, answer, figures, tables = folds_report(folder, out)
        return Report(page, answer, figures, tables, 1)
    if not is_run(folder):
        raise ClcaError(
            f"{folder}: neither a study nor a run (no {STUDY} and no config.json there); name a folder that"
            " clca study run or clca train wrote"
        )
    if runs:
        raise ClcaError(f"--runs: {folder} is one run, which has one page; drop --runs")
    page, answer, figures, tables = run_report(folder, out)
    return Report(page, answer, figures, tables, 1)


def study_report(folder: Path, out: Path, *, runs: bool = False) -> Report:
    """Write the report of a study; see `report`."""
    from clca.report.published import published
    from clca.report.study.figures import Numbers, study_figures
    from clca.report.study.gradients import gradients
    from clca.report.study.numbers import gain_summary, over_seeds, paired_gains
    from clca.report.study.settings import by_default, finished_runs, without_pretraining
    from clca.report.study.state import missing, mixed
    from clca.report.study.tables import study_tables
    from clca.report.table import write_frame, write_tables
    from clca.study.results.folder import begun_runs, left_out, read_study_file
    from clca.study.results.table import read_table

    study, table = read_study_file(folder), read_table(folder)
    others = len(list(begun_runs(folder))) - len(table)
    make_writable(out)
    for name in ("figures", "tables"):
        make_writable(out / name)
    finished = without_pretraining(table[table["state"] == "finished"])
    pairs = by_default(paired_gains(table))
    numbers = Numbers(
        finished=finished,
        default=by_default(finished_runs(table)),
        cells=over_seeds(table),
        pairs=pairs,
        by_reduction=gain_summary(pairs, ["reduction"]),
        by_rate=gain_summary(pairs, ["keep_rate"]),
        everything=gain_summary(pairs),
        gradients=gradients(folder, table),
        published=published(),
        axes={str(name): [str(label) for label in labels] for name, labels in study.get("axes", {}).items()},
    )
    pictures, absent = study_figures(numbers)
    tables = study_tables(study, table, numbers.gradients)
    write_tables(out / "tables", tables)
    write_frame(out / "tables" / "runs.csv", table)
    state = missing(study, table)
    answer = the_answer(numbers, state)
    figures = [
        shown(picture, out / "figures", numbers.gradients.sentences if picture.name == "gradients" else ())
        for picture in pictures
    ]
    pages = _run_pages(folder, out, table) if runs else {}
    listed = table.assign(_failed=table["state"] != "failed").sort_values(["_failed", "name"])
    write_page(
        out / "index.html",
        "study/study.html.jinja",
        name=str(study.get("name", folder.name)),
        about=str(study.get("about", "")),
        answer=answer,
        progress=_progress(state),
        warnings=[*_warnings(state, mixed(table), table), *([left_out(others)] if others else [])],
        axes=_axes(study),
        missing=state.sentences if state.complete else [],
        versions=_versions(finished),
        figures=figures,
        absent=absent,
        tables=tables,
        runs=[_listed(row, pages) for row in listed.head(MOST_RUNS).to_dict("records")],
        runs_left_out=max(0, len(listed) - MOST_RUNS),
    )
    return Report(out / "index.html", answer, len(figures), len(tables) + 1, len(pages))


def the_answer(numbers: Any, state: Missing) -> list[str]:
    """Whether CLCA improves every reduction, by how much, and where not: the first sentences of the page."""
    from clca.report.study.cells import signed

    if numbers.by_reduction.empty:
        if state.complete and len(numbers.cells):
            return ["This study does not compare CLCA with its absence.", *_best(numbers.cells)]
        return [
            f"There is no answer yet: no setting is finished both with CLCA and without ({state.finished} of"
            f" {state.total} runs are finished)."
        ]
    rows = numbers.by_reduction.to_dict("records")
    reductions = [row for row in rows if row["reduction"] != "none"]
    whole = numbers.everything.to_dict("records")[0]
    sentences = []
    if reductions:
        lifted = [row for row in reductions if row["verdict"] == "lifts"]
        count = f"all {len(reductions)}" if len(lifted) == len(reductions) else f"{len(lifted)} of {len(reductions)}"
        listed = ", ".join(
            f"{row['reduction']} {signed(row['mean'])}" for row in sorted(lifted, key=lambda row: -row["mean"])
        )
        if len(reductions) > 1:
            sentences.append(f"CLCA lifts top-1 of {count} token reductions{f': {listed} points' if lifted else ''}.")
        elif lifted:
            sentences.append(f"CLCA lifts top-1: {listed} points.")
        for verdict, words in _OTHERWISE.items():
            own = [row for row in reductions if row["verdict"] == verdict]
            if own:
                listed = ", ".join(f"{row['reduction']} ({signed(row['mean'])})" for row in own)
                sentences.append(f"{words} {listed}.")
    dense = [row for row in rows if row["reduction"] == "none"]
    tail = f"; the dense model gains {signed(dense[0]['mean'])}" if dense else ""
    between = (
        f" (95 % interval {signed(whole['low'])} to {signed(whole['high'])})" if math.isfinite(whole["low"]) else ""
    )
    sentences.append(
        f"Over all {whole['pairs']:,} pairs the mean gain is {signed(whole['mean'])} points{between}{tail}."
    )
    return sentences


def _best(cells: pd.DataFrame) -> list[str]:
    """The setting with the highest mean top-1 on each set."""
    from clca.report.study.cells import cost, with_sd
    from clca.report.study.settings import setting_text

    ranked = cells.assign(words=setting_text(cells, arm=True)).sort_values("top1_mean", ascending=False)
    return [
        f"Highest mean top-1: {row['words']}, {with_sd(row['top1_mean'], row['top1_sd'])} %, "
        f"{cost(row['gmacs'])} GMACs."
        for row in ranked.drop_duplicates("data").sort_values("data").to_dict("records")
    ]


def _progress(state: Missing) -> dict[str, Any]:
    counts = [
        ("finished", "finished", state.finished),
        ("failed", "failed", state.failed),
        ("interrupted", "begun, not finished", state.interrupted),
        ("new", "not begun", state.not_begun),
    ]
    label = ", ".join(f"{count} {words}" for _, words, count in counts) + f" of {state.total} runs"
    return {"counts": counts, "total": state.total, "label": label}


def _warnings(state: Missing, mixed: Sequence[str], table: pd.DataFrame) -> list[str]:
    from clca.report.study.state import failures

    warnings = [*(() if state.complete else state.sentences), *mixed]
    errors = failures(table).to_dict("records")
    for row in errors[:MOST_ERRORS]:
        warnings.append(f"{row['n']} run{'s' if row['n'] > 1 else ''} failed: {row['error']}")
    if len(errors) > MOST_ERRORS:
        warnings.append(f"{len(errors) - MOST_ERRORS} more errors are in the table of failures.")
    return warnings


def _axes(study: dict[str, Any]) -> list[tuple[str, str]]:
    axes = [(str(name), ", ".join(str(label) for label in labels)) for name, labels in study.get("axes", {}).items()]
    return [*axes, ("seeds", ", ".join(str(seed) for seed in study.get("seeds", ())))]


def _versions(finished: pd.DataFrame) -> str:
    parts = []
    for name in ("clca", "torch", "timm", "device", "precision", "threads"):
        there = sorted({str(value) for value in finished[name].dropna()}) if name in finished else []
        if there:
            if name == "precision":
                there = ["no mixed precision" if value == "no" else value for value in there]
            word = {"device": "on ", "precision": "", "threads": "threads "}.get(name, f"{name} ")
            parts.append(word + " and ".join(there))
    return ", ".join(parts)


def _listed(row: dict[str, Any], pages: dict[str, str]) -> dict[str, str]:
    def number(name: str, form: str, times: float = 1) -> str:
        value = row.get(name)
        return "" if value is None or not math.isfinite(value) else format(times * value, form)

    error = row.get("error")
    return {
        "name": str(row["name"]), "state": str(row["state"]), "top1": number("top1", ".1f", 100),
        "gmacs": number("gmacs", ".3g"), "gradient": number("grad_max", ".3g"), "seconds": number("seconds", ".0f"),
        "error": error if isinstance(error, str) else "", "page": pages.get(str(row["name"]), ""),
    }  # fmt: skip


def _run_pages(folder: Path, out: Path, table: pd.DataFrame) -> dict[str, str]:
    """Write a page for every run that has a folder. Returns links by name."""
    from clca.report.run.page import is_run, write_run_page

    make_writable(out / "runs")
    pages = {}
    for name in sorted(table["name"].astype(str)):
        if is_run(folder / "runs" / name):
            write_run_page(folder / "runs" / name, out / "runs" / f"{name}.html", back="../index.html")
            pages[name] = f"runs/{quote(name)}.html"
    return pages
