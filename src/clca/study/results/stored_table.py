"""`results.parquet` read back, as a stranger may have written it.

The file is a copy of what the runs' folders say, so whatever is unusual about it is a reason not to use it. Parquet can
declare sizes that are not there, and repeat a long text a million times in a few bytes. So only files as we write them
are read: flat columns of the table, compressed with Snappy (which makes at most about twenty bytes of one) or not at
all, no more rows than there are runs, and texts by way of their dictionary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clca.study.results.rows import AXIS, COLUMNS, LONGEST_NAME, MOST_AXES, TEXT, sound_row

MOST_BYTES = 256 << 20
_MOST_UNPACKED, _UNPACKED_OF_A_RUN = 16 << 20, 16 << 10  # bytes that the columns may say they have
_FOOTER = {"thrift_string_size_limit": 16 << 20, "thrift_container_size_limit": 1 << 20}
_CODECS = {"SNAPPY", "UNCOMPRESSED"}
_BATCH = 4096


def stored_rows(path: Path, most: int) -> list[dict[str, Any]]:
    """The rows of results.parquet; none where it is not a table of ours.

    Args:
        path: The file.
        most: Rows that it may have.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return []
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False, **_FOOTER) as file:
            names = _columns(file.metadata, most)
        if names is None:
            return []
        texts = [name for name in names if name in TEXT or name.startswith(AXIS)]
        with parquet.ParquetFile(path, read_dictionary=texts, pre_buffer=False, **_FOOTER) as file:
            rows: list[dict[str, Any]] = []
            for batch in file.iter_batches(_BATCH, columns=names, use_threads=False, use_pandas_metadata=False):
                columns = {name: _values(column) for name, column in zip(names, batch.columns, strict=True)}
                rows += [
                    sound_row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
                ]
                if len(rows) > most:
                    return []
            return rows
    except (OSError, ValueError, TypeError, KeyError, MemoryError, NotImplementedError, pyarrow.ArrowException):
        return []


def _columns(metadata: Any, most: int) -> list[str] | None:
    """The names of the columns; None where this is no file as we write it, by what it declares."""
    if metadata.num_rows > most or metadata.num_columns > len(COLUMNS) + MOST_AXES:
        return None
    names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    ours = all(name in COLUMNS or (name.startswith(AXIS) and len(name) <= LONGEST_NAME) for name in names)
    if not ours or len(set(names)) < len(names) or not set(COLUMNS) <= set(names):
        return None
    rows = unpacked = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        if not 0 <= group.num_rows <= most or group.num_columns != metadata.num_columns:
            return None
        for part in map(group.column, range(group.num_columns)):
            unpacked += max(part.total_uncompressed_size, part.total_compressed_size)
            if part.compression not in _CODECS or part.num_values != group.num_rows:
                return None
    return names if rows == metadata.num_rows and unpacked <= _MOST_UNPACKED + most * _UNPACKED_OF_A_RUN else None


def _values(column: Any) -> list[Any]:
    """A column as Python values; of one with a dictionary each text that occurs is made once."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        indices = column.indices.to_pylist()
        words = {index: column.dictionary[index].as_py() for index in set(indices) if index is not None}
        return [words.get(index) for index in indices]
    return list(column.to_pylist())
