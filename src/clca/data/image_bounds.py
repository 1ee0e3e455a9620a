"""What a file says of itself, looked at before a decoder believes it: pieces, tags, scans and sizes.

Pillow reads headers, the chunks of PNG and the tags and tiles of TIFF and EXIF piece by piece in Python and keeps them;
libwebp takes the memory of the whole canvas as it opens a file; libjpeg passes over the whole picture for each scan. A
few megabytes that are made for it would take minutes and gigabytes, long before a size in pixels is known. Photographs
stay far below all that is refused here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

from PIL import TiffImagePlugin

from clca.data.image_formats import UnreadableImage

PIECES = 50_000
"""Pieces of a header, chunks of a PNG, tiles or strips of a TIFF. Photographs have some hundreds, those of many rows a
piece each some thousands."""

_SCANS = 40  # of a JPEG; cameras and optimizers write up to about twenty
_SCAN = re.compile(rb"\xff\xda\x00[\x06\x08\x0a\x0c][\x01-\x04]")
_JPEG_EXIF = re.compile(rb"\xff\xe1(..)Exif\0\0", re.DOTALL)
_JPEG_MPF = re.compile(rb"\xff\xe2..MPF\0", re.DOTALL)

_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BLOBS = (1, 2, 6, 7)  # kinds of tags that stay bytes; of the others each number becomes an object
_NUMBERS = 4 * PIECES
_TAGS = 4096  # there are some hundreds in all
_SPARE = 1 << 20  # bytes that tags may claim beyond four times the file: some programs let values overlap
_OFFSETS = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS)
_HEADERS = re.compile(rb"II\*\0|MM\0\*")
_MOST_HEADERS = 64


class Counted(io.BytesIO):
    """A file of which only so many pieces are read.

    Attributes:
        limited: Whether that is so; the header is what is read piece by piece.
    """

    limited = True
    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += self.limited
        if self._reads > PIECES:
            raise _damaged("its header has too many pieces")
        return super().read(size)


def bounded_content(data: bytes, kind: str, max_pixels: int) -> tuple[bytes, bytes | None]:
    """What may be given to Pillow.

    Args:
        data: The file.
        kind: Its format, by Pillow's name.
        max_pixels: Largest width × height.

    Returns:
        The file, a JPEG without EXIF and the directory of further pictures, for which Pillow would read all of their
        tags; and the EXIF data that were taken out.

    Raises:
        UnreadableImage: It is made of more pieces than any photograph, or larger than `max_pixels`.
    """
    if kind == "JPEG":
        return _bounded_jpeg(data)
    if kind == "PNG" and _png_chunks(data) > PIECES:
        raise _in_pieces()
    if kind == "TIFF":
        _refuse_tags(data, max_pixels)
    if kind in ("AVIF", "HEIF"):  # its EXIF data may be anywhere
        for header in islice(_HEADERS.finditer(data), _MOST_HEADERS):
            _refuse_tags(data[header.start() :], None)
    if kind == "WEBP":
        width, height = _webp_size(data)
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)
    return data, None


def too_many_pixels(width: int, height: int, max_pixels: int) -> UnreadableImage:
    """The error for an image of more than `max_pixels`."""
    limit = f"over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"
    return UnreadableImage(f"{width}×{height} is {limit}", "too_many_pixels")


def orientation_of(exif: bytes) -> int:
    """The orientation in EXIF data, 0 where there is none.

    Of all that EXIF data may hold nothing else is looked at, and broken ones leave the picture as it lies.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    for tag in islice(_tags(exif), _TAGS):
        if tag.number == 0x0112 and tag.kind in (1, 3, 4):  # some write it as a byte
            return int.from_bytes(tag.field[: _TAG_BYTES[tag.kind]], order)
    return 0


class _Tag(NamedTuple):
    number: int
    kind: int
    numbers: int  # values, or bytes of a blob
    field: bytes  # where a value is, that is short enough


def _tags(data: bytes) -> Iterator[_Tag]:
    """The tags of the first directory of a TIFF, or of EXIF data, which is one."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(place: int, length: int) -> int:
        return int.from_bytes(data[place : place + length], order)

    wide = data.startswith(b"II+\0")  # BigTIFF
    place = number(8, 8) if wide else number(4, 4)
    begin, size, word = (place + 8, 20, 8) if wide else (place + 2, 12, 4)
    end = min(begin + size * number(place, begin - place), len(data))
    for tag in range(begin, end, size):
        yield _Tag(number(tag, 2), number(tag + 2, 2), number(tag + 4, word), data[tag + 4 + word : tag + size])


def _refuse_tags(data: bytes, max_pixels: int | None) -> None:
    """Tags of TIFF or EXIF data that claim more than the file can hold, or pieces without end.

    Args:
        data: From the header on.
        max_pixels: Of a tile; None where the tags are those of EXIF data.
    """
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    claimed = 0
    sides = {TiffImagePlugin.TILEWIDTH: 1, TiffImagePlugin.TILELENGTH: 1}
    for number, tag in enumerate(_tags(data)):
        if number == _TAGS:
            raise _damaged("it has too many tags")
        if tag.kind not in _TAG_BYTES:  # Pillow skips it
            continue
        claimed += min(len(data), tag.numbers * _TAG_BYTES[tag.kind])
        if max_pixels is not None and tag.number in _OFFSETS and tag.numbers > PIECES:
            raise _in_pieces()
        if claimed > 4 * len(data) + _SPARE or (tag.kind not in _BLOBS and tag.numbers > _NUMBERS):
            raise _damaged("its tags claim more than the file holds")
        if tag.number in sides and tag.kind in (3, 4, 16):
            sides[tag.number] = int.from_bytes(tag.field[: _TAG_BYTES[tag.kind]], order)
    width, height = sides.values()
    if max_pixels is not None and width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)


def _bounded_jpeg(data: bytes) -> tuple[bytes, bytes | None]:
    if sum(1 for _ in _SCAN.finditer(data)) > _SCANS:
        raise _damaged(f"it has more than {_SCANS} scans")
    first = _JPEG_EXIF.search(data)
    exif = None
    if first is not None:
        exif = data[first.start() + 10 : first.start() + 2 + int.from_bytes(first[1])]
        data = _JPEG_EXIF.sub(lambda found: found[0][:4] + bytes(6), data)
    return _JPEG_MPF.sub(lambda found: found[0][:4] + bytes(4), data), exif


def _png_chunks(data: bytes) -> int:
    """Chunks of a PNG, counted as far as `PIECES`."""
    place, chunks = 8, 0
    while place < len(data) and chunks <= PIECES and data[place + 4 : place + 8] != b"IEND":
        place += 12 + int.from_bytes(data[place : place + 4])
        chunks += 1
    return chunks


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas; 1 × 1 for what libwebp refuses."""
    first = data[12:16]
    if first == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if first == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if first == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 1, 1


def _in_pieces() -> UnreadableImage:
    return _damaged("its pixels are in too many pieces")


def _damaged(why: str) -> UnreadableImage:
    return UnreadableImage(f"damaged: {why}", "damaged")
