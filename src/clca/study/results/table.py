"""The result table: one row a run that has begun. It follows from the runs' folders, so it can always be made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError
from clca.study.results.folder import (
    DESCRIPTION,
    FAILURE,
    RESULT,
    STUDY,
    TABLE,
    begun_runs,
    of_study,
    read_result,
    run_folder,
)
from clca.study.results.record import by_block
from clca.system.files import as_utf8, part, read_json, replacing

if TYPE_CHECKING:
    import pandas

_TEXT = ("run", "name", "state", "error", "data", "split", "backbone", "reduction", "keep_rates", "locations",
         "arm", "device", "precision", "host", "clca", "torch", "timm", "finished_at")  # fmt: skip
_WHOLE = ("img_size", "num_clr", "cla_width", "seed", "params", "train_images", "epochs", "steps", "threads")
_YES_NO = ("clc_gap", "clc_recover_at_last")
_NUMBER = ("keep_rate", "top1", "top5", "macro", "loss", "train_loss", "train_top1", "gmacs", "computed_gmacs",
           "images_per_second", "train_seconds", "seconds", "grad_max", "grad_median")  # fmt: skip
COLUMNS = (
    "run", "name", "state", "error", "data", "split", "backbone", "reduction", "keep_rate", "keep_rates", "locations",
    "img_size", "arm", "num_clr", "clc_gap", "clc_recover_at_last", "cla_width", "seed", "top1", "top5", "macro",
    "loss", "train_loss", "train_top1", "gmacs", "computed_gmacs", "params", "images_per_second", "train_images",
    "train_seconds", "seconds", "epochs", "steps", "grad_max", "grad_median", "device", "precision", "threads", "host",
    "clca", "torch", "timm", "finished_at",
)  # fmt: skip


def read_table(out: str | Path) -> pandas.DataFrame:
    """The table of a study, from its folders; results.parquet only saves reading those of finished runs again.

    Runs that the folder holds of the study as it was before it was changed are not in it.

    Raises:
        ClcaError: pandas or pyarrow is not installed.
    """
    return make_table(table_rows(Path(out), {}))


def table_rows(out: Path, known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table, whoever made the runs.

    Args:
        out: The study's folder.
        known: Rows of runs by name; those of finished ones are not read again.

    Raises:
        ClcaError: pandas or pyarrow is not installed.
    """
    known = {name: row for name, row in known.items() if row.get("state") == "finished"}
    stored: dict[str, dict[str, Any]] = {}
    written = 0.0
    if (out / TABLE).is_file():
        written = (out / TABLE).stat().st_mtime
        stored = {row["name"]: row for row in _stored(out / TABLE) if row.get("state") == "finished"}
    rows = []
    for name in sorted(begun_runs(out)):
        row = known.get(name) or (stored.get(name) if _still(out, name, written) else None)
        rows.append(row or row_of(out, name))
    return list(filter(of_study(read_json(out / STUDY) or {}), rows))


def _still(out: Path, name: str, written: float) -> bool:
    """Whether the result of a run is the one that was there when the table was written."""
    try:
        return (run_folder(out, name) / RESULT).stat().st_mtime <= written
    except OSError:
        return False


def row_of(out: Path, name: str) -> dict[str, Any]:
    """The row of one run that has begun."""
    folder = run_folder(out, name)
    result = read_result(folder)
    if result is not None and "keep_rates" in result:
        return dict(as_utf8({"name": name, **result}))
    description = read_json(folder / DESCRIPTION) or {}
    if result is not None:  # made before there were these columns
        return dict(as_utf8({"name": name, **result, **_by_block(description)}))
    described = {**_by_block(description), **part(description, "row")}
    failure = read_json(folder / FAILURE)
    state = {"state": "interrupted", "error": None}
    if failure is not None:
        state = {"state": "failed", "error": failure.get("error")}
    return dict(as_utf8({"name": name, **described, **state}))


def _by_block(description: Mapping[str, Any]) -> dict[str, str | None]:
    """The columns of `record.by_block`, from a run.json that lacks them."""
    model = part(part(description, "train"), "model")
    return by_block(model.get("reduction", "none"), model.get("keep_rate", 1.0), model.get("locations"))


def make_table(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """Rows as a table, every column there and of its kind."""
    pandas = _pandas()
    rows = [as_utf8(row) for row in rows]
    axes = sorted({name for row in rows for name in row if name.startswith("axis.")})
    table = pandas.DataFrame(rows, columns=[*COLUMNS, *axes])
    kinds = {name: "string" for name in (*_TEXT, *axes)} | {name: "Int64" for name in _WHOLE}
    kinds |= {name: "boolean" for name in _YES_NO} | {name: "float64" for name in _NUMBER}
    return table.astype(kinds)


def write_table(out: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write results.parquet, whole or not at all.

    Raises:
        ClcaError: pandas or pyarrow is not installed.
        WorkError: It could not be written.
    """
    table = make_table(rows)
    with replacing(out / TABLE) as temporary:
        table.to_parquet(temporary, index=False)
    return out / TABLE


def _stored(path: Path) -> list[dict[str, Any]]:
    """The rows of results.parquet; none where it is not a table of ours, since it is no more than a copy."""
    pandas = _pandas()
    from pyarrow import ArrowException

    try:
        table = pandas.read_parquet(path)
    except (OSError, ValueError, ArrowException):
        return []
    if not set(COLUMNS) <= set(table.columns):
        return []
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError:
        raise ClcaError("the result table needs pandas and pyarrow: pip install 'clca[study]'") from None
    return pandas
