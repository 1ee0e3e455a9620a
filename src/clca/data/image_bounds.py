"""Limits on the structure of an image file, checked before Pillow opens it: header parts, tags, scans and sizes.

Pillow reads headers, PNG chunks, and the tags and tiles of TIFF and EXIF one by one in Python and keeps them; libwebp
allocates the whole canvas when it opens a file; libjpeg processes the whole image for each scan. A crafted file of a
few megabytes could thus take minutes and gigabytes before its size in pixels is known. Photographs are far below all of
these limits.
"""

from __future__ import annotations

import io
import re
import zlib
from itertools import islice
from typing import NamedTuple

from PIL import TiffImagePlugin

from clca.data.image_formats import UnreadableImage
from clca.data.tiff import MOST_TAGS, ORIENTATION, TAG_BYTES, byte_order, tags

MAX_PARTS = 50_000
"""Limit of reads in a header, chunks of a PNG, and tiles or strips of a TIFF. Photographs have hundreds, or thousands
if every few rows are a strip."""

MAX_PROFILE_BYTES = 8 << 20
"""Limit of an embedded colour profile; those of presses, the largest, have one to three megabytes."""

_SCANS = 40  # in a JPEG; cameras and optimizers write up to about twenty
_SCAN = re.compile(rb"\xff\xda\x00[\x06\x08\x0a\x0c][\x01-\x04]")
_JPEG_EXIF = re.compile(rb"\xff\xe1(..)Exif\0\0", re.DOTALL)
_JPEG_MPF = re.compile(rb"\xff\xe2..MPF\0", re.DOTALL)

_BYTE_KINDS = (1, 2, 6, 7)  # types of tags that stay bytes; in others each value becomes a Python object
_MAX_VALUES = 4 * MAX_PARTS
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


class Sanitized(NamedTuple):
    """A file that is safe to pass to Pillow, and what was removed from it.

    Attributes:
        content: The file.
        exif: EXIF data, if any were removed.
        profile: The colour profile, if one was removed and could be read.
        profile_problem: Why the colour profile that was removed cannot be read.
    """

    content: bytes
    exif: bytes | None = None
    profile: bytes | None = None
    profile_problem: str | None = None


def sanitized(data: bytes, kind: str, max_pixels: int) -> Sanitized:
    """Check the structure of a file and return what is safe to pass to Pillow.

    From a JPEG, EXIF data and the index of further images (MPF) are removed, since Pillow would read all of their tags;
    from a PNG, the colour profile, since Pillow refuses the whole image if the profile is damaged or large.

    Args:
        data: The file.
        kind: Pillow's name of its format.
        max_pixels: Largest width × height.

    Raises:
        UnreadableImage: It has more parts than any photograph, or is larger than `max_pixels`.
    """
    if kind == "JPEG":
        return _sanitized_jpeg(data)
    if kind == "PNG":
        if _png_chunks(data) > MAX_PARTS:
            raise _too_many_parts()
        return _png_without_profile(data)
    if kind == "TIFF":
        _check_tags(data, max_pixels)
    if kind in ("AVIF", "HEIF"):  # EXIF data may be anywhere in the file
        for header in islice(_HEADERS.finditer(data), _MOST_HEADERS):
            _check_tags(data[header.start() :], None)
    if kind == "WEBP":
        width, height = _webp_size(data)
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)
    return Sanitized(data)


def too_many_pixels(width: int, height: int, max_pixels: int) -> UnreadableImage:
    """Build the error for an image of more than `max_pixels`."""
    limit = f"over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"
    return UnreadableImage(f"{width}×{height} is {limit}", "too_many_pixels")


def orientation_of(exif: bytes) -> int:
    """The orientation in EXIF data, 0 if there is none.

    No other tag is read, and damaged EXIF data count as having no orientation.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = byte_order(exif)
    for tag in islice(tags(exif), MOST_TAGS):
        if tag.number == ORIENTATION and tag.kind in (1, 3, 4):  # some programs write it as a byte
            return int.from_bytes(tag.field[: TAG_BYTES[tag.kind]], order)
    return 0


def _check_tags(data: bytes, max_pixels: int | None) -> None:
    """Refuse TIFF or EXIF data whose tags claim more than the file can contain, or too many parts.

    Args:
        data: The file from the TIFF header on.
        max_pixels: Limit of a tile; None for EXIF data.
    """
    order = byte_order(data)
    claimed = 0
    sides = {TiffImagePlugin.TILEWIDTH: 1, TiffImagePlugin.TILELENGTH: 1}
    for number, tag in enumerate(tags(data)):
        if number == MOST_TAGS:
            raise _damaged("it has too many tags")
        if tag.kind not in TAG_BYTES:  # Pillow skips it
            continue
        claimed += min(len(data), tag.length * TAG_BYTES[tag.kind])
        if max_pixels is not None and tag.number in _OFFSETS and tag.length > MAX_PARTS:
            raise _too_many_parts()
        if claimed > 4 * len(data) + _SLACK or (tag.kind not in _BYTE_KINDS and tag.length > _MAX_VALUES):
            raise _damaged("its tags claim more data than the file has")
        if tag.number in sides and tag.kind in (3, 4, 16):
            sides[tag.number] = int.from_bytes(tag.field[: TAG_BYTES[tag.kind]], order)
    width, height = sides.values()
    if max_pixels is not None and width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)


def _sanitized_jpeg(data: bytes) -> Sanitized:
    if sum(1 for _ in _SCAN.finditer(data)) > _SCANS:
        raise _damaged(f"it has more than {_SCANS} scans")
    found = _JPEG_EXIF.search(data)
    exif = None
    if found is not None:
        exif = data[found.start() + 10 : found.start() + 2 + int.from_bytes(found[1])]
        data = _JPEG_EXIF.sub(lambda segment: segment[0][:4] + bytes(6), data)
    return Sanitized(_JPEG_MPF.sub(lambda segment: segment[0][:4] + bytes(4), data), exif)


def _png_chunks(data: bytes) -> int:
    """Number of chunks in a PNG, counted up to just beyond `MAX_PARTS`."""
    place, chunks = 8, 0
    while place < len(data) and chunks <= MAX_PARTS and data[place + 4 : place + 8] != b"IEND":
        place += 12 + int.from_bytes(data[place : place + 4])
        chunks += 1
    return chunks


def _png_without_profile(data: bytes) -> Sanitized:
    """Take the colour profile out of a PNG; it is in a chunk iCCP before the pixels."""
    place = 8
    while data[place + 4 : place + 8] not in (b"", b"IDAT", b"IEND"):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] == b"iCCP":
            _, _, packed = data[place + 8 : end - 4].partition(b"\0")  # behind a name: the method, which is 0, and zlib
            profile, problem = _unpacked(packed[1:]) if packed[:1] == b"\0" else (None, "cannot be read")
            return Sanitized(data[:place] + data[end:], None, profile, problem)
        place = end
    return Sanitized(data)


def _unpacked(packed: bytes) -> tuple[bytes | None, str | None]:
    try:
        profile = zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return None, "cannot be read"
    return profile, None  # one that is too long is refused with those of other formats


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
