"""Tables: columns and cells declared once, printed in a terminal or written as Markdown.

CSV is written by `clca.system.files.write_csv`, from numbers rather than from the cells that people read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clca.system.paths import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

_UNLIMITED = 100_000  # columns of a terminal


@dataclass(frozen=True)
class Column:
    """A column as it is shown.

    Attributes:
        title: Its heading, without the unit.
        unit: Such as "%" or "points"; "" for none.
        align: "left" for words, "right" for numbers.
        wrap: Whether a cell may take several lines where the terminal is narrow. No cell is ever cut.
    """

    title: str
    unit: str = ""
    align: Literal["left", "right"] = "right"
    wrap: bool = True

    @property
    def heading(self) -> str:
        """Top-1 (%)."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


def words(title: str, *, wrap: bool = True) -> Column:
    """A column of words."""
    return Column(title, align="left", wrap=wrap)


def numbers(*titles: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(title, wrap=False) for title in titles]


@dataclass(frozen=True)
class Table:
    """A table for people to read.

    Attributes:
        columns: From left to right.
        rows: A cell for each column; plain text, not rich's markup.
        title, caption: Above and below it; "" for none.
        frame: "box" around every cell, or "rule" under the heading only.
        headings: Whether the columns' headings are shown.
        sections: Numbers of rows that are followed by a line.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Text]]
    title: str = ""
    caption: str = ""
    frame: Literal["box", "rule"] = "box"
    headings: bool = True
    sections: Collection[int] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: every row should have {len(self.columns)} cells")

    def render(self, console: Console) -> None:
        """Print the table. Title and caption are not broken to its width, and in a file or pipe nothing is wrapped."""
        if self.title:
            console.print(_plain(self.title, "table.title"), soft_wrap=True)
        _print_whole(console, self.as_rich())
        if self.caption:
            console.print(_plain(self.caption, "table.caption"))

    def fits(self, console: Console) -> bool:
        """Whether the console is wide enough to show it without wrapping a cell."""
        return _width(console, self.as_rich()) <= console.width

    def as_rich(self) -> RichTable:
        """Columns and rows for a rich display, without title and caption."""
        from rich import box
        from rich.table import Table as RichTable

        if self.frame == "box":
            table = RichTable(show_header=self.headings)
        else:
            table = RichTable(
                box=box.SIMPLE_HEAD, show_header=self.headings, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
            )
        for column in self.columns:
            table.add_column(_plain(column.heading), justify=column.align, overflow="fold", no_wrap=not column.wrap)
        for number, row in enumerate(self.rows):
            cells = (_plain(cell) if isinstance(cell, str) else cell for cell in row)
            table.add_row(*cells, end_section=number in self.sections)
        return table

    def markdown(self) -> str:
        """The table without its title, one line a row."""
        lines: list[Sequence[str]] = [[column.heading for column in self.columns], ["---"] * len(self.columns)]
        lines += [[str(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str, style: str = "") -> Text:
    """Text without markup and without control characters but line breaks: names may come from other people's files."""
    from rich.text import Text

    return Text("\n".join(map(shown, text.split("\n"))), style)


def _width(console: Console, table: RichTable) -> int:
    return console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum


def _print_whole(console: Console, table: RichTable) -> None:
    """Print to a terminal as wide as it is, elsewhere as wide as the table: a name that is wrapped cannot be copied."""
    if console.is_terminal:
        console.print(table)
        return
    width = console.width
    console.width = max(width, _width(console, table))
    try:
        console.print(table)
    finally:
        console.width = width
