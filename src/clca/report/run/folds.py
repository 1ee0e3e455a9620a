"""A cross-validation as a page: its parts, their mean and interval, and the confusions of all images together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError
from clca.evaluation.cross_validation import CONFUSION, MEASURES, RESULT
from clca.report.page import shown, write_page
from clca.report.run import figures as run_figures
from clca.system.files import make_writable, part, read_csv, read_json
from clca.system.numbers import is_whole_number, number
from clca.system.tables import Column

if TYPE_CHECKING:
    from clca.report.table import ReportTable

_MOST_FOLDS, _LONGEST_NAME = 100, 200


def is_cross_validation(folder: Path) -> bool:
    """Whether the folder is from `clca train --folds`."""
    return (folder / RESULT).is_file()


def folds_report(folder: Path, out: Path) -> tuple[Path, list[str], int, int]:
    """Write index.html, figures/ and tables/ of a cross-validation.

    Returns:
        The page, its first sentences, and the numbers of figures and tables.

    Raises:
        ClcaError: Its numbers cannot be read, or `out` cannot be written.
        WorkError: A file could not be written.
    """
    from clca.report.table import write_tables

    content = read_json(folder / RESULT) or {}
    folds = [one for one in content.get("folds") or [] if isinstance(one, dict)][:_MOST_FOLDS]
    if not folds or not all(_is_summary(part(content, measure)) for measure in MEASURES):
        raise ClcaError(f"{folder / RESULT}: cannot be read: remove it, and the same clca train writes it again")
    for place in (out, out / "figures", out / "tables"):
        make_writable(place)
    tables = {"folds": _table(content, folds)}
    write_tables(out / "tables", tables)
    known = read_csv(folder / CONFUSION)
    sound = len(known) > 1 and all(is_whole_number(cell) for row in known[1:] for cell in row[1:])
    counts = [[int(cell) for cell in row[1:]] for row in known[1:]] if sound else []
    picture = run_figures.confusion(counts, [row[0][:_LONGEST_NAME] for row in known[1:]])
    answer = _answer(content, len(folds))
    write_page(
        out / "index.html",
        "run/run.html.jinja",
        name=folder.resolve().name,
        back=None,
        answer=answer,
        warnings=[],
        traceback="",
        figures=[shown(picture, out / "figures")] if picture is not None else [],
        mistakes="",
        absent=[] if picture is not None else ["Confusion matrix: left out, because confusion.csv cannot be read."],
        tables=tables,
        links=True,
    )
    return out / "index.html", answer, int(picture is not None), len(tables)


def _is_summary(values: dict[str, Any]) -> bool:
    ends = values.get("interval")
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and all(number(value) is not None for value in (*ends, values.get("mean"), values.get("deviation")))
    )


def _shown(measure: str, value: Any) -> str:
    found = number(value)
    if found is None:
        return ""
    return f"{found:.3f}" if measure == "loss" else f"{100 * found:.1f}"


def _answer(content: dict[str, Any], folds: int) -> list[str]:
    top1 = part(content, "top1")
    low, high = (_shown("top1", end) for end in top1["interval"])
    images = number(content.get("images"))
    return [
        f"Top-1 {_shown('top1', top1['mean'])} % (95 % interval {low} to {high} %) over {folds} parts"
        + (f" of {images:.0f} images, each tested once." if images is not None else ".")
    ]


def _table(content: dict[str, Any], folds: list[dict[str, Any]]) -> ReportTable:
    import pandas as pd

    from clca.report.table import ReportTable

    columns = (Column("part", align="left"), Column("images"), *(_column(measure) for measure in MEASURES))
    rows = [
        (str(one.get("fold", ""))[:9], str(one.get("images", ""))[:12], *(_shown(m, one.get(m)) for m in MEASURES))
        for one in folds
    ]
    summaries = {measure: part(content, measure) for measure in MEASURES}
    for name, key in (("mean", "mean"), ("standard deviation", "deviation")):
        rows.append((name, "", *(_shown(measure, summaries[measure][key]) for measure in MEASURES)))
    intervals = [" to ".join(_shown(measure, end) for end in summaries[measure]["interval"]) for measure in MEASURES]
    rows.append(("95 % interval of the mean", "", *intervals))
    frame = pd.DataFrame([list(row) for row in rows], columns=[column.title for column in columns])
    caption = (
        "Every part was tested by a run that was trained on the others. The interval is Student's over the parts; they "
        "share most of their training images, so that the true uncertainty is somewhat larger."
    )
    return ReportTable("Parts", caption, columns, tuple(rows), frame)


def _column(measure: str) -> Column:
    return {"top1": Column("top-1", "%"), "macro": Column("macro accuracy", "%"), "loss": Column("loss")}[measure]
