"""Reading `results.parquet` when it may come from an untrusted source.

The file duplicates what is in the run folders, so any irregularity is a reason to ignore it. A Parquet file can declare
sizes that it does not have, and expand a few bytes into a long text repeated a million times. Only files as this
library writes them are read: the flat columns of the table, compressed with Snappy (which expands a byte to about
twenty at most) or uncompressed, no more rows than the study has runs, and texts through their dictionary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clca.study.results.rows import AXIS, COLUMNS, LONGEST_NAME, MOST_AXES, TEXT, checked_row

MOST_BYTES = 256 << 20
_MOST_UNCOMPRESSED, _UNCOMPRESSED_PER_ROW = 16 << 20, 16 << 10  # bytes that the columns may declare
_FOOTER_LIMITS = {"thrift_string_size_limit": 16 << 20, "thrift_container_size_limit": 1 << 20}
_CODECS = {"SNAPPY", "UNCOMPRESSED"}
_BATCH = 4096


def stored_rows(path: Path, most: int) -> list[dict[str, Any]]:
    """The rows of results.parquet; empty if the file is missing or is not a table as this library writes it.

    Args:
        path: The file.
        most: The largest number of rows to accept.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return []
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False, **_FOOTER_LIMITS) as file:
            names = _columns(file.metadata, most)
        if names is None:
            return []
        texts = [name for name in names if name in TEXT or name.startswith(AXIS)]
        with parquet.ParquetFile(path, read_dictionary=texts, pre_buffer=False, **_FOOTER_LIMITS) as file:
            rows: list[dict[str, Any]] = []
            for batch in file.iter_batches(_BATCH, columns=names, use_threads=False, use_pandas_metadata=False):
                columns = {name: _values(column) for name, column in zip(names, batch.columns, strict=True)}
                rows += [
                    checked_row(dict(zip(columns, values, strict=True)))
                    for values in zip(*columns.values(), strict=True)
                ]
                if len(rows) > most:
                    return []
            return rows
    except (OSError, ValueError, TypeError, LookupError, MemoryError, NotImplementedError, pyarrow.ArrowException):
        return []


def _columns(metadata: Any, most: int) -> list[str] | None:
    """The names of the columns, or None if the metadata differs from what this library writes."""
    if metadata.num_rows > most or metadata.num_columns > len(COLUMNS) + MOST_AXES:
        return None
    names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    known = all(name in COLUMNS or (name.startswith(AXIS) and len(name) <= LONGEST_NAME) for name in names)
    if not known or len(set(names)) < len(names) or not set(COLUMNS) <= set(names):
        return None
    rows = uncompressed = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        if not 0 <= group.num_rows <= most or group.num_columns != metadata.num_columns:
            return None
        for chunk in map(group.column, range(group.num_columns)):
            uncompressed += max(chunk.total_uncompressed_size, chunk.total_compressed_size)
            if chunk.compression not in _CODECS or chunk.num_values != group.num_rows:
                return None
    limit = _MOST_UNCOMPRESSED + most * _UNCOMPRESSED_PER_ROW
    return names if rows == metadata.num_rows and uncompressed <= limit else None


def _values(column: Any) -> list[Any]:
    """A column as Python values; each entry of a dictionary that is used becomes one Python object."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        indices = column.indices.to_pylist()
        texts = {index: column.dictionary[index].as_py() for index in set(indices) if index is not None}
        return [texts.get(index) for index in indices]
    return list(column.to_pylist())
