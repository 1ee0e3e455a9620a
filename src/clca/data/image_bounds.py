"""Limits on the structure of an image file, checked before Pillow opens it: header parts, tags, scans and sizes.

Pillow reads headers, PNG chunks, and the tags and tiles of TIFF and EXIF one by one in Python and keeps them; libwebp
allocates the whole canvas when it opens a file; libjpeg processes the whole image for each scan. A crafted file of a
few megabytes could thus take minutes and gigabytes before its size in pixels is known. Photographs are far below all of
these limits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

from PIL import TiffImagePlugin

from clca.data.image_formats import UnreadableImage

MAX_PARTS = 50_000
"""Limit of reads in a header, chunks of a PNG, and tiles or strips of a TIFF. Photographs have hundreds, or thousands
if every few rows are a strip."""

ORIENTATION = 0x0112  # the tag, in EXIF and TIFF
_SCANS = 40  # in a JPEG; cameras and optimizers write up to about twenty
_SCAN = re.compile(rb"\xff\xda\x00[\x06\x08\x0a\x0c][\x01-\x04]")
_JPEG_EXIF = re.compile(rb"\xff\xe1(..)Exif\0\0", re.DOTALL)
_JPEG_MPF = re.compile(rb"\xff\xe2..MPF\0", re.DOTALL)

_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTE_KINDS = (1, 2, 6, 7)  # types of tags that stay bytes; in others each value becomes a Python object
_MAX_VALUES = 4 * MAX_PARTS
_TAGS = 4096  # a few hundred tags are defined
_SLACK = 1 << 20  # bytes that tags may claim beyond four times the file size: some programs write overlapping values
_OFFSETS = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS)
_HEADERS = re.compile(rb"II\*\0|MM\0\*")
_MOST_HEADERS = 64


class LimitedReader(io.BytesIO):
    """A file in memory with a limited number of reads.

    Attributes:
        limited: Whether the limit applies; it does while Pillow reads the header.
    """

    limited = True
    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += self.limited
        if self._reads > MAX_PARTS:
            raise _damaged("its header has too many parts")
        return super().read(size)


def sanitized(data: bytes, kind: str, max_pixels: int) -> tuple[bytes, bytes | None]:
    """Check the structure of a file and return what is safe to pass to Pillow.

    Args:
        data: The file.
        kind: Pillow's name of its format.
        max_pixels: Largest width × height.

    Returns:
        The content, and the EXIF data removed from it, if any. From a JPEG, EXIF data and the index of further images
        (MPF) are removed, since Pillow would read all of their tags.

    Raises:
        UnreadableImage: It has more parts than any photograph, or is larger than `max_pixels`.
    """
    if kind == "JPEG":
        return _sanitized_jpeg(data)
    if kind == "PNG" and _png_chunks(data) > MAX_PARTS:
        raise _too_many_parts()
    if kind == "TIFF":
        _check_tags(data, max_pixels)
    if kind in ("AVIF", "HEIF"):  # EXIF data may be anywhere in the file
        for header in islice(_HEADERS.finditer(data), _MOST_HEADERS):
            _check_tags(data[header.start() :], None)
    if kind == "WEBP":
        width, height = _webp_size(data)
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)
    return data, None


def too_many_pixels(width: int, height: int, max_pixels: int) -> UnreadableImage:
    """Build the error for an image of more than `max_pixels`."""
    limit = f"over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"
    return UnreadableImage(f"{width}×{height} is {limit}", "too_many_pixels")


def orientation_of(exif: bytes) -> int:
    """The orientation in EXIF data, 0 if there is none.

    No other tag is read, and damaged EXIF data count as having no orientation.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    for tag in islice(_tags(exif), _TAGS):
        if tag.number == ORIENTATION and tag.kind in (1, 3, 4):  # some programs write it as a byte
            return int.from_bytes(tag.field[: _TAG_BYTES[tag.kind]], order)
    return 0


class _Tag(NamedTuple):
    number: int
    kind: int
    length: int  # number of values
    field: bytes  # the value itself, if short enough


def _tags(data: bytes) -> Iterator[_Tag]:
    """The tags in the first directory of a TIFF or of EXIF data, which have the same structure."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(place: int, length: int) -> int:
        return int.from_bytes(data[place : place + length], order)

    wide = data.startswith(b"II+\0")  # BigTIFF
    place = number(8, 8) if wide else number(4, 4)
    begin, size, word = (place + 8, 20, 8) if wide else (place + 2, 12, 4)
    end = min(begin + size * number(place, begin - place), len(data))
    for tag in range(begin, end, size):
        yield _Tag(number(tag, 2), number(tag + 2, 2), number(tag + 4, word), data[tag + 4 + word : tag + size])


def _check_tags(data: bytes, max_pixels: int | None) -> None:
    """Refuse TIFF or EXIF data whose tags claim more than the file can contain, or too many parts.

    Args:
        data: The file from the TIFF header on.
        max_pixels: Limit of a tile; None for EXIF data.
    """
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    claimed = 0
    sides = {TiffImagePlugin.TILEWIDTH: 1, TiffImagePlugin.TILELENGTH: 1}
    for number, tag in enumerate(_tags(data)):
        if number == _TAGS:
            raise _damaged("it has too many tags")
        if tag.kind not in _TAG_BYTES:  # Pillow skips it
            continue
        claimed += min(len(data), tag.length * _TAG_BYTES[tag.kind])
        if max_pixels is not None and tag.number in _OFFSETS and tag.length > MAX_PARTS:
            raise _too_many_parts()
        if claimed > 4 * len(data) + _SLACK or (tag.kind not in _BYTE_KINDS and tag.length > _MAX_VALUES):
            raise _damaged("its tags claim more data than the file has")
        if tag.number in sides and tag.kind in (3, 4, 16):
            sides[tag.number] = int.from_bytes(tag.field[: _TAG_BYTES[tag.kind]], order)
    width, height = sides.values()
    if max_pixels is not None and width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)


def _sanitized_jpeg(data: bytes) -> tuple[bytes, bytes | None]:
    if sum(1 for _ in _SCAN.finditer(data)) > _SCANS:
        raise _damaged(f"it has more than {_SCANS} scans")
    found = _JPEG_EXIF.search(data)
    exif = None
    if found is not None:
        exif = data[found.start() + 10 : found.start() + 2 + int.from_bytes(found[1])]
        data = _JPEG_EXIF.sub(lambda segment: segment[0][:4] + bytes(6), data)
    return _JPEG_MPF.sub(lambda segment: segment[0][:4] + bytes(4), data), exif


def _png_chunks(data: bytes) -> int:
    """Number of chunks in a PNG, counted up to just beyond `MAX_PARTS`."""
    place, chunks = 8, 0
    while place < len(data) and chunks <= MAX_PARTS and data[place + 4 : place + 8] != b"IEND":
        place += 12 + int.from_bytes(data[place : place + 4])
        chunks += 1
    return chunks


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas of a WebP; 1 × 1 for files that libwebp refuses."""
    first = data[12:16]
    if first == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if first == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if first == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 1, 1


def _too_many_parts() -> UnreadableImage:
    return _damaged("its pixels are stored in too many parts")


def _damaged(why: str) -> UnreadableImage:
    return UnreadableImage(f"damaged: {why}", "damaged")
