"""One description of a table for the console, the page, CSV and LaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from clca.errors import WorkError, reason
from clca.system.files import replacing, write_csv
from clca.system.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import Console

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
        "≈": r"$\approx$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "→": r"$\to$",
        "…": r"\dots{}",
        "–": "--",
        "—": "---",
        "’": "'",
    }
)
_BEYOND_T1 = 0x180  # the first character that the fonts of pdfTeX lack
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
_NUMBER = r"(?:[+−≈-]\s?)?[\d][\d.,]*"
_LONG = 44  # a cell of more characters wraps


@dataclass(frozen=True)
class ReportTable:
    """A table for the page, the console, CSV and LaTeX.

    Attributes:
        title: Heading of the table.
        caption: Explanation of the columns.
        columns: The displayed columns.
        rows: The displayed cells as text, such as `86.4 ± 1.2`; "" for missing values.
        frame: All rows as numbers, for the CSV.
        left_out: Number of rows that are in `frame` only.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    frame: pd.DataFrame
    left_out: int = 0

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: every row should have {len(self.columns)} cells")

    @property
    def note(self) -> str:
        """The caption, with the number of rows that are not shown."""
        left = f"{self.left_out:,} more row{'' if self.left_out == 1 else 's'} in the CSV." if self.left_out else ""
        return " ".join(part for part in (self.caption, left) if part)

    def render(self, console: Console) -> None:
        """Print the table with its note below."""
        Table(self.columns, self.rows, title=self.title, caption=self.note, frame="rule").render(console)

    def latex(self, label: str = "") -> str:
        """A `table`, or a `longtable` if it does not fit a page; needs booktabs (and longtable), and T1.

        `86.4 ± 1.2` becomes `$86.4 \\pm 1.2$`; all other text is escaped. Letters of any script stay: a table that has
        others than Latin ones begins with a comment that it needs XeLaTeX or LuaLaTeX.

        Args:
            label: For `\\ref`, such as "tab:results"; "" for none.
        """
        cells = pd.DataFrame([[tex(cell) for cell in row] for row in self.rows], columns=range(len(self.columns)))
        long = len(self.rows) > 40
        widths = [max((len(row[number]) for row in self.rows), default=0) for number in range(len(self.columns))]
        text = cells.to_latex(
            index=False,
            header=[tex(column.heading) for column in self.columns],
            escape=False,
            caption=(tex(self.note), tex(self.title)),
            label=label or None,
            position=None if long else "htbp",
            longtable=long,
            column_format="".join(
                r"p{0.4\linewidth}" if width > _LONG else column.align[0]
                for column, width in zip(self.columns, widths, strict=True)
            ),
        )
        if not long:
            text = text.replace(r"\begin{tabular}", "\\centering\n\\small\n\\begin{tabular}", 1)
        fonts = r"\usepackage[T1]{fontenc}"
        if any(ord(letter) >= _BEYOND_T1 for letter in text):
            fonts = r"XeLaTeX or LuaLaTeX, \usepackage{fontspec} \setmainfont{a font with these letters}"
        return f"% {fonts} \\usepackage{{booktabs{',longtable' if long else ''}}}\n{text}"


def tex(text: str) -> str:
    """Text as LaTeX: special characters escaped, `a ± b` as mathematics, letters of any script as they are."""
    plain = "".join(char for char in " ".join(text.split()) if not _is_command(char))
    parts = re.split(rf"({_NUMBER} ± {_NUMBER})", plain)
    escaped = "".join(_formula(part) if number % 2 else part.translate(_SPECIAL) for number, part in enumerate(parts))
    return (
        f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped
    )  # after the end of a row, these would be its options


def _is_command(char: str) -> bool:
    """Whether a character is none of a text: a control character, a direction of writing, half of a character."""
    return unicodedata.category(char) in ("Cc", "Cs") or char in _DIRECTIONS


def _formula(text: str) -> str:
    for sign, command in (("±", r"\pm"), ("−", "-"), ("≈", r"\approx ")):
        text = text.replace(sign, command)
    return f"${text}$"


def write_tables(folder: Path, tables: Mapping[str, ReportTable]) -> list[Path]:
    """Write NAME.csv and NAME.tex of each table, each file atomically.

    Args:
        folder: Created if missing.
        tables: By file name, without extension.

    Returns:
        The files written.

    Raises:
        WorkError: One could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{folder} could not be made ({reason(error)}); choose another folder") from error
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        write_frame(path, table.frame)
        latex = path.with_suffix(".tex")
        with replacing(latex) as temporary:
            temporary.write_text(table.latex(f"tab:{name}"), encoding="utf-8", errors="backslashreplace", newline="\n")
        written += [path, latex]
    return written


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write the columns of a data frame as CSV; missing values are empty cells.

    Raises:
        WorkError: It could not be written; what was there before is still there.
    """
    cells = frame.astype(object).where(frame.notna(), None)
    rows = cells.itertuples(index=False, name=None)
    write_csv(path, [str(name) for name in frame.columns], rows, errors="backslashreplace")
