"""The text of CSV files as spreadsheets write them: in UTF-8 or UTF-16, with commas, semicolons or tabs."""

import csv
import re
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from clca.errors import ClcaError

_SEPARATORS = (",", ";", "\t", "|")
_SEP_LINE = re.compile(r'"?sep=(?P<separator>\\t|[^"\w\r\n])"?[,;\t|]*[\r\n]*', re.IGNORECASE)
_UTF32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
SAVE_AS = 'save it as UTF-8 (in Excel: "CSV UTF-8")'


def open_csv(file: Path, errors: str = "strict") -> TextIO:
    """Open a CSV file as text: UTF-8 with or without a byte order mark, or UTF-16 with one, Excel's "Unicode Text".

    Raises:
        ClcaError: It is in another form of Unicode.
        OSError: It cannot be read.
    """
    with file.open("rb") as start:
        head = start.read(64)
    if head.startswith(_UTF32) or (not head.startswith(_UTF16) and _is_mostly_zeros(head)):
        raise ClcaError(f"{file}: is not UTF-8 text but seems to be UTF-16 or UTF-32: {SAVE_AS}")
    encoding = "utf-16" if head.startswith(_UTF16) else "utf-8-sig"
    return file.open(newline="", encoding=encoding, errors=errors)


def read_table(lines: Iterator[str], required: Collection[str]) -> tuple["csv.DictReader[str]", int]:
    """A reader of the lines of a table.

    Args:
        lines: Of the whole file. Excel's first line `sep=;`, which names the separator, belongs to no column.
        required: Columns by whose names the separator is found.

    Returns:
        The reader, and the number of lines before the one with the names of the columns.
    """
    head, skipped = next(lines, ""), 0
    named = _SEP_LINE.fullmatch(head)
    if named is not None:
        head, skipped = next(lines, ""), 1
        separator = named["separator"].replace("\\t", "\t")
    else:
        separator = _separator(head, required)
    return csv.DictReader(chain([head] if head else [], lines), delimiter=separator), skipped


def _separator(head: str, required: Collection[str]) -> str:
    """The separator of the names of columns: one by which the required ones are there, else the most frequent."""
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([head], delimiter=separator), [])
        except csv.Error:
            continue
        if set(required) <= {name.strip() for name in names}:
            return separator
    return max(_SEPARATORS, key=head.count)


def _is_mostly_zeros(head: bytes) -> bool:
    """Whether every second byte is zero, as in Latin text in UTF-16 without a byte order mark."""
    return len(head) > 3 and any(not any(head[start::2]) and any(head[1 - start :: 2]) for start in (0, 1))
