"""A file of resized images: rows of equal shape, followed by an index of their source files.

    rows        [count, 3, side, side] uint8, channels first: a crop is a view with contiguous lines
    index       JSON: format, root, settings of reading, side, and for each row its source (null: an empty row) and
                its CRC-32; the numbers of rows whose image is nearly empty
    trailer     CRC-32 and length of the index, and the magic bytes

The trailer is written last and the file is then renamed, so a file without it counts as incomplete. A renamed file is
immutable: to change it, another file is written and this one unlinked, so processes that read it are not disturbed.
"""

import json
import mmap
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clca.models.limits import LARGEST_SIDE

SUFFIX, UNFINISHED = ".rows", ".unfinished"
_MAGIC = b"CLCAROWS"
_FORMAT = "clca-resized-2"  # 1 had no checksums of rows
_TRAILER = struct.Struct("<IQ8s")
MOST_INDEX_BYTES = 2**29
"""Largest index that is read: enough for a million images with long paths."""
_MOST_CONTAINERS = 2**22  # lists and objects in the index, one per image; two bytes of JSON take 56 in memory


class Source(NamedTuple):
    """The identity of an image file when it was read; git uses the same fields to detect changes."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> "Source | None":
        """The current identity of a file; None if there is no file."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(os.path.abspath(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True)
class RowFile:
    """The index of a complete file of rows.

    Attributes:
        path: The file.
        root: The data set of the images.
        reading: The settings with which they were read and resized.
        side: Height and width of a row in pixels.
        count: Number of rows, including empty ones.
        row_of: Source of an image → number of its row.
        checksums: CRC-32 of each row.
        near_empty: Numbers of the rows whose image is nearly empty.
    """

    path: Path
    root: str
    reading: dict[str, Any]
    side: int
    count: int
    row_of: dict[Source, int]
    checksums: list[int]
    near_empty: frozenset[int] = frozenset()

    def reader(self) -> "RowReader":
        """Open the file to read its rows.

        Raises:
            OSError: The file no longer exists.
        """
        return RowReader(self.path, self.side, self.checksums)


class RowReader:
    """Reads rows of a memory-mapped file, from several threads; an unlinked file stays readable.

    Args:
        path, side, checksums: As in `RowFile`.

    Raises:
        OSError: The file no longer exists.
        ValueError: It is empty.
    """

    def __init__(self, path: Path, side: int, checksums: Sequence[int]) -> None:
        self._path, self._side, self._checksums = path, side, checksums
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Rows whose checksum was verified once: checking every read would cost a third of the speed.
        self._verified = bytearray(len(checksums))

    def read(self, row: int) -> NDArray[np.uint8] | None:
        """Read a row, [3, side, side]; None if it is damaged.

        A damaged file is unlinked, so that the next run creates it again.
        """
        size = row_bytes(self._side)
        if self._map.size() >= (row + 1) * size:  # reading beyond the end of a truncated file would crash the process
            pixels = np.frombuffer(self._map, np.uint8, size, row * size).copy()
            if self._verified[row] or zlib.crc32(pixels.data) == self._checksums[row]:
                self._verified[row] = True
                return pixels.reshape(3, self._side, self._side)
        with suppress(OSError):
            self._path.unlink()
        return None


def row_bytes(side: int) -> int:
    return 3 * side * side


def read_row_file(path: Path) -> RowFile | None:
    """Read the index of a file of rows; None if the file is truncated, damaged or of another kind."""
    try:
        if not path.is_file():  # opening a FIFO would block
            return None
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TRAILER.size))
            checksum, length, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            if magic != _MAGIC or length > min(end - _TRAILER.size, MOST_INDEX_BYTES):
                return None
            file.seek(end - _TRAILER.size - length)
            text = file.read(length)
        if zlib.crc32(text) != checksum or text.count(b"[") + text.count(b"{") > _MOST_CONTAINERS:
            return None
        return _parse_index(path, json.loads(text), end - _TRAILER.size - length)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return None


def _parse_index(path: Path, index: Any, size: int) -> RowFile | None:
    """Validate an index; None if it has wrong types, or does not match `size` bytes of rows."""
    side, images, checksums = index["side"], index["images"], index["checksums"]
    if index["format"] != _FORMAT or not isinstance(index["root"], str) or not isinstance(index["reading"], dict):
        return None
    if not (_are_uint32([side]) and 1 <= side <= 2 * LARGEST_SIDE and isinstance(images, list)):
        return None
    if not isinstance(checksums, list) or len(checksums) != len(images) or not _are_uint32(checksums):
        return None
    if len(images) * row_bytes(side) != size:
        return None
    row_of: dict[Source, int] = {}
    for row, image in enumerate(images):
        if image is None:
            continue
        source = Source(*image)
        if not isinstance(source.path, str) or not all(type(value) is int for value in source[1:]):
            return None
        row_of[source] = row
    near_empty = index.get("near_empty", [])
    if not isinstance(near_empty, list) or not _are_uint32(near_empty):
        return None
    return RowFile(path, index["root"], index["reading"], side, len(images), row_of, checksums, frozenset(near_empty))


def _are_uint32(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**32 for value in values)


class RowWriter:
    """Writes a new file of rows, in any order and from several threads; `finish` renames it.

    Args:
        folder: The cache folder.
        name: Start of the file name.
        side: Height and width of a row in pixels.
        count: Number of rows. The file is created at its full (sparse) size, so that other processes count it when they
            compute the size of the cache.

    Raises:
        OSError: From every method, if the disk is full or the folder not writable.
    """

    def __init__(self, folder: Path, name: str, side: int, count: int) -> None:
        self.side, self.count = side, count
        self._path = folder / f"{name}.{uuid.uuid4().hex}{UNFINISHED}"
        self._checksums = [0] * count
        self._lock = threading.Lock()
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 (closed by finish or discard)
        self._file.truncate(count * row_bytes(side))

    def put(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Write a row, [3, side, side]."""
        content = np.ascontiguousarray(pixels).tobytes()
        self._checksums[row] = zlib.crc32(content)
        with self._lock:
            self._file.seek(row * row_bytes(self.side))
            self._write(content)

    def finish(
        self, root: str, reading: dict[str, Any], images: Sequence[Source | None], near_empty: Iterable[int] = ()
    ) -> Path:
        """Write the index and rename the file.

        Args:
            root, reading, near_empty: As in `RowFile`.
            images: The source of each row; None for rows that were not written.
        """
        index = {"format": _FORMAT, "root": root, "reading": reading, "side": self.side, "images": images}
        index |= {"checksums": self._checksums, "near_empty": sorted(near_empty)}
        text = json.dumps(index).encode()
        self._file.seek(self.count * row_bytes(self.side))
        self._write(text + _TRAILER.pack(zlib.crc32(text), len(text), _MAGIC))
        os.fsync(self._file.fileno())
        self._file.close()
        final = self._path.with_suffix(SUFFIX)
        os.replace(self._path, final)
        return final

    def discard(self) -> None:
        """Remove the file, unless `finish` renamed it."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # an unbuffered write may be partial; only the next one fails if the disk is full
            rest = rest[self._file.write(rest) :]
