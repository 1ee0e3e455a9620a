"""One file of resized images: rows of equal shape, and behind them an index of what each was read from.

    rows        [count, 3, side, side] uint8, channels first: a crop is a view, and arithmetic on it runs along lines
    index       JSON: format, root, how the images were read, side, and for every row its source (null: an empty row)
    trailer     CRC-32 and length of the index, and the magic bytes

The trailer is written last and the file then gets its name, so what lacks it is not taken for whole. A file with a name
never changes: to change something, another one is written and this one unlinked, which leaves it to those who read it.
"""

import json
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SUFFIX, UNFINISHED = ".rows", ".unfinished"
_MAGIC = b"CLCAROWS"
_FORMAT = "clca-resized-1"
_TRAILER = struct.Struct("<IQ8s")


class Source(NamedTuple):
    """An image file as it was when it was read; what git compares too to find out whether a file has changed."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> "Source | None":
        """The file as it is now; None where there is none."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(os.path.abspath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True)
class RowFile:
    """A whole file of rows.

    Attributes:
        path: The file.
        root: The data set that the images belong to.
        reading: How they were read and resized.
        side: Height and width of a row in pixels.
        count: Rows, empty ones too.
        row_of: Source of an image → number of its row.
    """

    path: Path
    root: str
    reading: dict[str, Any]
    side: int
    count: int
    row_of: dict[Source, int]

    def rows(self) -> NDArray[np.uint8]:
        """All rows [count, 3, side, side], mapped into memory, read-only.

        Raises:
            OSError: The file is gone.
            ValueError: The file has become shorter.
        """
        return mapped(self.path, self.count, self.side)


def mapped(path: Path, count: int, side: int) -> NDArray[np.uint8]:
    """As `RowFile.rows`."""
    return np.memmap(path, np.uint8, "r", shape=(count, 3, side, side))


def row_bytes(side: int) -> int:
    return 3 * side * side


def read_row_file(path: Path) -> RowFile | None:
    """The index of a file of rows; None for one that is truncated, damaged or no such file."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TRAILER.size))
            checksum, length, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            if magic != _MAGIC or length > end:
                return None
            file.seek(end - _TRAILER.size - length)
            text = file.read(length)
        if zlib.crc32(text) != checksum:
            return None
        index = json.loads(text)
        side, images = index["side"], index["images"]
        if index["format"] != _FORMAT or end != len(images) * row_bytes(side) + length + _TRAILER.size:
            return None
        row_of = {Source(*image): row for row, image in enumerate(images) if image is not None}
        return RowFile(path, index["root"], index["reading"], side, len(images), row_of)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


class RowWriter:
    """Writes a new file of rows, in any order and from several threads; `finish` gives it its name.

    Args:
        folder: Where it is to be.
        name: What its name begins with.
        count: Rows that there is room for; the file has its full size (not its disk space) from the start, so that
            another process that adds sizes up sees what is coming.

    Raises:
        OSError: From every method, where the disk is full or the folder not writable.
    """

    def __init__(self, folder: Path, name: str, side: int, count: int) -> None:
        self.side, self.count = side, count
        self._path = folder / f"{name}.{uuid.uuid4().hex}{UNFINISHED}"
        self._lock = threading.Lock()
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 (closed by finish or discard)
        self._file.truncate(count * row_bytes(side))

    def put(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Write row number `row`, [3, side, side]."""
        with self._lock:
            self._file.seek(row * row_bytes(self.side))
            self._write(np.ascontiguousarray(pixels).tobytes())

    def finish(self, root: str, reading: dict[str, Any], images: Sequence[Source | None]) -> Path:
        """Add the index and give the file its name.

        Args:
            root, reading: As of `RowFile`.
            images: The source of every row; None for one that was not written.
        """
        index = {"format": _FORMAT, "root": root, "reading": reading, "side": self.side, "images": images}
        text = json.dumps(index).encode()
        self._file.seek(self.count * row_bytes(self.side))
        self._write(text + _TRAILER.pack(zlib.crc32(text), len(text), _MAGIC))
        os.fsync(self._file.fileno())
        self._file.close()
        final = self._path.with_suffix(SUFFIX)
        os.replace(self._path, final)
        return final

    def discard(self) -> None:
        """Remove what was written, unless it is finished."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # an unbuffered file may take a part, and refuses only the next when the disk is full
            rest = rest[self._file.write(rest) :]
