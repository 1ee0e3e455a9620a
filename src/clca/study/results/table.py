"""The result table: one row per run that has begun. It can always be rebuilt from the runs' folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError
from clca.study.results.folder import (
    DESCRIPTION,
    RESULT,
    TABLE,
    begun_runs,
    of_study,
    read_failure,
    read_result,
    run_folder,
    study_content,
)
from clca.study.results.record import by_block
from clca.study.results.rows import AXIS, BOOLEAN, COLUMNS, INTEGER, MOST_AXES, NUMBER, TEXT, checked_row
from clca.study.results.stored_table import stored_rows
from clca.system.files import as_utf8, part, read_json, replacing

if TYPE_CHECKING:
    import pandas

_MOST_REMOVED = 1000  # rows that the table may have for runs whose folders were removed


def read_table(out: str | Path) -> pandas.DataFrame:
    """The table of a study, from its runs' folders; results.parquet serves as a cache for finished runs.

    Runs that are no longer part of the study are left out.

    Raises:
        ClcaError: pandas or pyarrow is not installed.
    """
    return make_table(table_rows(Path(out), {}))


def table_rows(out: Path, known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table, for the runs of all processes.

    Args:
        out: The study's folder.
        known: Rows of runs by name; those of finished runs are not read again.

    Raises:
        ClcaError: pandas or pyarrow is not installed.
    """
    known = {name: row for name, row in known.items() if row.get("state") == "finished"}
    stored: dict[str, dict[str, Any]] = {}
    written = 0.0
    begun = sorted(begun_runs(out))
    if (out / TABLE).is_file():
        _pandas()
        written = (out / TABLE).stat().st_mtime
        found = stored_rows(out / TABLE, most=len(begun) + _MOST_REMOVED)
        stored = {row["name"]: row for row in found if row.get("state") == "finished"}
    rows = []
    for name in begun:
        row = known.get(name) or (stored.get(name) if _is_unchanged(out, name, written) else None)
        rows.append(row or row_of(out, name))
    return list(filter(of_study(study_content(out) or {}), rows))


def _is_unchanged(out: Path, name: str, written: float) -> bool:
    """Whether the result of a run is no newer than the table."""
    try:
        return (run_folder(out, name) / RESULT).stat().st_mtime <= written
    except OSError:
        return False


def row_of(out: Path, name: str) -> dict[str, Any]:
    """The row of one run that has begun."""
    folder = run_folder(out, name)
    result = read_result(folder)
    if result is not None and "keep_rates" in result:
        return {**result, "name": as_utf8(name)}  # the folder's name, from which the file's may differ
    description = read_json(folder / DESCRIPTION) or {}
    if result is not None:  # from a version without these columns
        return {**result, **checked_row(_by_block(description)), "name": as_utf8(name)}
    described = checked_row({**_by_block(description), **part(description, "row")})
    failure = read_failure(folder)
    state = {"state": "interrupted", "error": None}
    if failure is not None:
        state = {"state": "failed", "error": failure.error}
    return {**described, **state, "name": as_utf8(name)}


def _by_block(description: Mapping[str, Any]) -> dict[str, str | None]:
    """The columns of `record.by_block`, for a run.json that lacks them."""
    model = part(part(description, "train"), "model")
    try:
        return by_block(model.get("reduction", "none"), model.get("keep_rate", 1.0), model.get("locations"))
    except (TypeError, ValueError):  # not as this library writes it
        return {"keep_rates": None, "locations": None}


def make_table(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """Rows as a table with all columns, each of its type."""
    pandas = _pandas()
    rows = [as_utf8(row) for row in rows]
    axes = sorted(dict.fromkeys(name for row in rows for name in row if name.startswith(AXIS)))[:MOST_AXES]
    table = pandas.DataFrame(rows, columns=[*COLUMNS, *axes])
    kinds = {name: "string" for name in (*TEXT, *axes)} | {name: "Int64" for name in INTEGER}
    kinds |= {name: "boolean" for name in BOOLEAN} | {name: "float64" for name in NUMBER}
    return table.astype(kinds)


def write_table(out: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write results.parquet atomically.

    Raises:
        ClcaError: pandas or pyarrow is not installed.
        WorkError: It could not be written.
    """
    table = make_table(rows)
    with replacing(out / TABLE) as temporary:
        table.to_parquet(temporary, index=False)
    return out / TABLE


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError:
        raise ClcaError("the result table needs pandas and pyarrow: pip install 'clca[study]'") from None
    return pandas
