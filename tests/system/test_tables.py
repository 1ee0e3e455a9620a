"""Tables: what is printed in a terminal and in a pipe, and as Markdown."""

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from clca.system.tables import Column, Table, words

PATH = "runs/" + "a-long-name-" * 12 + "leaf.png"


def printed(table: Table, *, terminal: bool, width: int = 60) -> list[str]:
    file = StringIO()
    table.render(Console(file=file, width=width, force_terminal=terminal, color_system=None, legacy_windows=False))
    return file.getvalue().splitlines()


def a_table(**changes: object) -> Table:
    columns, rows = [words("image"), Column("top-1", "%")], [[PATH, "86.4"], ["[b]x[/b]", "7.0"]]
    return Table(**({"columns": columns, "rows": rows} | changes))  # type: ignore[arg-type]


def test_a_name_is_whole_on_one_line_where_the_output_is_no_terminal() -> None:
    assert sum(PATH in line for line in printed(a_table(), terminal=False)) == 1


def test_in_a_terminal_a_name_is_wrapped_and_not_cut() -> None:
    lines = printed(a_table(), terminal=True)
    assert max(map(len, lines)) <= 60
    assert "…" not in "".join(lines)
    first = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "".join(first).startswith(PATH)


def test_cells_and_titles_are_no_markup_and_a_long_title_stays_on_one_line() -> None:
    title = "photos[old], " * 10
    lines = printed(a_table(title=title, caption="* trained with"), terminal=True)
    assert lines[0] == title
    assert any("[b]x[/b]" in line for line in lines)
    assert lines[-1] == "* trained with"


def test_numbers_end_in_one_column() -> None:
    lines = [line for line in printed(a_table(frame="rule"), terminal=False) if line.rstrip().endswith(("86.4", "7.0"))]
    assert len({len(line.rstrip()) for line in lines}) == 1


def test_the_console_keeps_its_width() -> None:
    console = Console(file=StringIO(), width=60)
    a_table().render(console)
    assert console.width == 60


def test_markdown() -> None:
    table = Table([words("run"), Column("top-1", "%")], [["a|b", Text("86.4")]], title="not in it")
    assert table.markdown() == "| run | top-1 (%) |\n| --- | --- |\n| a\\|b | 86.4 |"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="every row should have 2 cells"):
        a_table(rows=[["alone"]])


def test_whether_it_fits() -> None:
    assert a_table().fits(Console(file=StringIO(), width=400))
    assert not a_table().fits(Console(file=StringIO(), width=60))
