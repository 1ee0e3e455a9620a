"""The rows of a batch as a file for spreadsheets and programs, and in a few numbers."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clca.app.batch import Row
from clca.system.files import replacing

COLUMNS = (
    "name",
    "class",
    "probability",
    "second",
    "second_probability",
    "third",
    "third_probability",
    "error",
)

# Beginnings that a spreadsheet takes for a formula; the wide ones too, which some change into the others.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line a row, under the names in `COLUMNS`; the file is there whole, or not at all.

    UTF-8 with a byte order mark: without one Excel reads the names in the local code page, and pandas, readr and
    LibreOffice skip it (Python's `csv` needs `encoding="utf-8-sig"`). Texts are quoted always, numbers never. A text
    that a spreadsheet would take for a formula gets an apostrophe before it.

    Args:
        rows: With up to three classes each; further ones are left out.
        path: Replaced where it exists.

    Raises:
        WorkError: It could not be written.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(COLUMNS)
        table.writerows(cells(row) for row in rows)


def cells(row: Row) -> list[str | float]:
    """A row as texts and numbers under `COLUMNS`, harmless in a spreadsheet; "" where there is nothing."""
    line: list[str | float] = [_harmless(row.name)]
    for k in range(3):
        if k < len(row.classes):
            line += [_harmless(row.classes[k]), round(row.probabilities[k], 6)]
        else:
            line += ["", ""]
    return [*line, _harmless(row.error.message) if row.error else ""]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """A batch in numbers.

    Returns:
        `images`, `answered`, `refused`; `classes`, how often each came first, the most frequent first; `reasons`, how
        often each code of a refusal.
    """
    classes = Counter(row.classes[0] for row in rows if row.classes)
    reasons = Counter(row.error.code for row in rows if row.error)
    return {
        "images": len(rows),
        "answered": len(rows) - reasons.total(),
        "refused": reasons.total(),
        "classes": dict(classes.most_common()),
        "reasons": dict(reasons.most_common()),
    }


def _harmless(text: str) -> str:
    # Blanks before it do not keep every program from seeing a formula.
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text
