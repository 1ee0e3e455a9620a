"""The rows of a batch as a file for spreadsheets and programs, and in a few numbers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clca.app.batch import Row
from clca.system import files

COLUMNS = (
    "name",
    "class",
    "probability",
    "second",
    "second_probability",
    "third",
    "third_probability",
    "unfamiliarity",
    "none_of_these",
    "error",
)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line a row, under the names in `COLUMNS`; the file is there whole, or not at all.

    Like all tables of the library (`clca.system.files.CsvWriter`): UTF-8 with a byte order mark for Excel, and an
    apostrophe before a text that a spreadsheet would take for a formula.

    Args:
        rows: With up to three classes each; further ones are left out.
        path: Replaced where it exists.

    Raises:
        WorkError: It could not be written.
    """
    files.write_csv(path, COLUMNS, (cells(row) for row in rows))


def cells(row: Row) -> list[str | float]:
    """A row as texts and numbers under `COLUMNS`; "" where there is nothing."""
    line: list[str | float] = [row.name]
    for k in range(3):
        line += [row.classes[k], round(row.probabilities[k], 6)] if k < len(row.classes) else ["", ""]
    known = row.unfamiliarity is not None
    line += [round(row.unfamiliarity or 0.0, 4), "yes" if row.is_unfamiliar else "no"] if known else ["", ""]
    return [*line, row.error.message if row.error else ""]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """A batch in numbers.

    Returns:
        `images`, `answered`, `refused`; `none_of_these`, how many were taken for none of the classes; `classes`, how
        often each of the others came first, the most frequent first; `reasons`, how often each code of a refusal.
    """
    classes = Counter(row.classes[0] for row in rows if row.classes and not row.is_unfamiliar)
    reasons = Counter(row.error.code for row in rows if row.error)
    return {
        "images": len(rows),
        "answered": len(rows) - reasons.total(),
        "refused": reasons.total(),
        "none_of_these": sum(row.is_unfamiliar for row in rows),
        "classes": dict(classes.most_common()),
        "reasons": dict(reasons.most_common()),
    }
