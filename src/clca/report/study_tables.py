"""A study's tables: on the console, in the page, as CSV and as LaTeX, all from one description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from clca.report.study_gradients import Gradients

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Column:
    """A column as it is shown.

    Attributes:
        title: Its heading, without the unit.
        unit: Such as "%" or "points"; "" for none.
        align: "left" for words, "right" for numbers.
    """

    title: str
    unit: str = ""
    align: str = "right"

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Table:
    """A table that the page, the console and LaTeX show alike.

    Attributes:
        title: A few words.
        caption: What the reader must know to read it.
        columns: What is shown.
        rows: The cells as text, `86.4 ± 1.2`; "" where there is nothing. Perhaps not all: see `left_out`.
        frame: Everything as numbers; this is the CSV.
        left_out: Rows that are only in `frame`.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    frame: pd.DataFrame
    left_out: int = 0

    def render(self, console: Console) -> None:
        """Print it."""
        raise NotImplementedError

    def latex(self, label: str = "") -> str:
        """A `table` for booktabs, escaped, with caption; `86.4 ± 1.2` becomes `$86.4 \\pm 1.2$`."""
        raise NotImplementedError


def study_tables(
    study: Mapping[str, Any], table: pd.DataFrame, gradients: Gradients | None = None, *, limit: int = 60
) -> dict[str, Table]:
    """All tables of a study by file name, those with nothing in them left out: results, gains, frontier, published,
    gradients, progress, failures.

    Args:
        study: The content of study.json.
        table: The results table.
        gradients: Of `clca.report.study_gradients.gradients`; None leaves that table out.
        limit: Rows shown of a long table; the CSV has them all.
    """
    raise NotImplementedError


def write_tables(folder: Path, tables: Mapping[str, Table]) -> list[Path]:
    """Write NAME.csv and NAME.tex of each table, each whole or not at all; the files written.

    Raises:
        WorkError: A file could not be written.
    """
    raise NotImplementedError
