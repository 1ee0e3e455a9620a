"""The structure of TIFF files, as far as it decides how their pixels are read: directories, bands, bits, raw data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

ORIENTATION = 0x0112
"""The tag, in EXIF data and in TIFF files."""

TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value of each type of tag."""

MOST_TAGS = 4096
"""Limit of the tags in a directory; a few hundred are defined."""

_MOST_DIRECTORIES = 32  # a raw file has up to about ten
_INTEGERS = (1, 3, 4, 13, 16, 18)
_SUB_DIRECTORIES, _DNG_VERSION, _SAMPLE_FORMAT = 330, 50706, TiffImagePlugin.SAMPLEFORMAT
_PHOTOMETRIC, _SAMPLES, _BITS = (
    TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, TiffImagePlugin.SAMPLESPERPIXEL, TiffImagePlugin.BITSPERSAMPLE,
)  # fmt: skip
_SENSOR_DATA = (32803, 34892)  # photometric interpretations of raw files: colour filter array, linear raw
_BANDS = {2: 3, 5: 4, 6: 3, 8: 3}  # by photometric interpretation: RGB, CMYK, YCbCr and Lab; one for all others
_SIGNED, _FLOATING = 2, 3  # sample formats
_LARGEST_VALUES = (341, 281)  # SMaxSampleValue, MaxSampleValue
_DEPTHS = tuple(2**bits - 1 for bits in range(9, 16))


class Tag(NamedTuple):
    """A tag as the file states it.

    Attributes:
        number, kind, length: Which tag, the type of its values, and their number.
        field: The values themselves if they are short enough, otherwise their place in the file.
    """

    number: int
    kind: int
    length: int
    field: bytes


def byte_order(data: bytes) -> Literal["little", "big"]:
    """The byte order of a TIFF file or of EXIF data, which have the same structure."""
    return "little" if data.startswith(b"II") else "big"


def tags(data: bytes, place: int | None = None) -> Iterator[Tag]:
    """The tags in a directory of a TIFF file or of EXIF data.

    Args:
        data: The file from the TIFF header on.
        place: Where the directory begins; None for the first one.
    """
    order = byte_order(data)
    begin, size, word, count = _layout(data, place)
    end = min(begin + size * count, len(data))
    for tag in range(begin, end, size):
        number, kind = int.from_bytes(data[tag : tag + 2], order), int.from_bytes(data[tag + 2 : tag + 4], order)
        length = int.from_bytes(data[tag + 4 : tag + 4 + word], order)
        yield Tag(number, kind, length, data[tag + 4 + word : tag + size])


def _layout(data: bytes, place: int | None) -> tuple[int, int, int, int]:
    """Where the tags of a directory begin, the size of a tag and of its count, and the number of tags."""
    order = byte_order(data)
    wide = data[2:4] in (b"+\0", b"\0+")  # BigTIFF
    word = 8 if wide else 4
    if place is None:
        place = int.from_bytes(data[8:16] if wide else data[4:8], order)
    begin = place + (8 if wide else 2)
    return begin, 20 if wide else 12, word, int.from_bytes(data[place:begin], order)


def _integers(data: bytes, tag: Tag) -> list[int]:
    """The first few values of a tag of integers."""
    if tag.kind not in _INTEGERS:
        return []
    size, order, content = TAG_BYTES[tag.kind], byte_order(data), tag.field
    count = min(tag.length, 16)
    if size * tag.length > len(content):
        place = int.from_bytes(content, order)
        content = data[place : place + size * count]
    return [int.from_bytes(content[at : at + size], order) for at in range(0, min(size * count, len(content)), size)]


def _first_values(data: bytes, wanted: tuple[int, ...], place: int | None = None) -> dict[int, list[int]]:
    found = (tag for tag in islice(tags(data, place), MOST_TAGS) if tag.number in wanted)
    return {tag.number: _integers(data, tag) for tag in found}


def is_raw(data: bytes) -> bool:
    """Return whether a file that starts as a TIFF is a raw photograph, such as DNG, NEF or ARW.

    The first image in such a file is often a small preview, which Pillow would read instead of the photograph.
    """
    waiting: list[int | None] = [None]
    visited: set[int | None] = set()
    while waiting and len(visited) < _MOST_DIRECTORIES:
        place = waiting.pop(0)
        if place in visited:
            continue
        visited.add(place)
        found = _first_values(data, (_PHOTOMETRIC, _SUB_DIRECTORIES, _DNG_VERSION), place)
        if _DNG_VERSION in found or any(value in _SENSOR_DATA for value in found.get(_PHOTOMETRIC, [])):
            return True
        begin, size, word, count = _layout(data, place)
        after = begin + size * count
        following = int.from_bytes(data[after : after + word], byte_order(data))
        waiting += [at for at in (*found.get(_SUB_DIRECTORIES, ()), following) if 0 < at < len(data)]
    return False


def band_count(data: bytes) -> int:
    """The number of bands of a TIFF."""
    found = _first_values(data, (_SAMPLES, _BITS))
    return (found.get(_SAMPLES) or [len(found.get(_BITS) or [1])])[0]


def why_unsupported(data: bytes) -> str | None:
    """Say which bands and values a TIFF has that is not read; None if these are not the reason.

    Args:
        data: A file that Pillow does not read.
    """
    found = _first_values(data, (_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT))
    bits, bands = (found.get(_BITS) or [1])[0], band_count(data)
    form = (found.get(_SAMPLE_FORMAT) or [1])[0]
    colours = (found.get(_PHOTOMETRIC) or [0])[0]
    values = f"{bits}-bit {'signed ' if form == _SIGNED else ''}{'floating-point' if form == _FLOATING else 'integer'}"
    if bands != _BANDS.get(colours, 1):
        why = "and only red, green and blue are read" if bands > 3 else "which are not marked as red, green and blue"
        return f"is a TIFF that has {bands} bands of {values} values, {why}: convert it to an RGB image of these three"
    if form in (_SIGNED, _FLOATING) or bits not in (1, 2, 4, 8, 16):
        counted = f"{bands} bands of {values}" if bands > 1 else values
        return f"is a TIFF that has {counted} values, which are not read: convert it to 8 bits"
    return None


def white_level(tags: Mapping[int, Any]) -> int:
    """The largest value that the pixels of a TIFF can have if they are stored in 16 bits.

    It is less than 65535 if the file says that fewer bits are used: by the number of bits itself, or by a largest value
    that is the largest of 9 to 15 bits (cameras with 10, 12 or 14 bits). Signed values use 15 bits.

    Args:
        tags: Values by number of tag, as in Pillow's `tag_v2`.
    """
    bits = _first(tags.get(_BITS, 16))
    if 8 < bits < 16:
        return 2**bits - 1
    for tag in _LARGEST_VALUES:
        if (value := _first(tags.get(tag, 0))) in _DEPTHS:
            return value
    return 32767 if bits == 16 and _first(tags.get(_SAMPLE_FORMAT, 1)) == _SIGNED else 65535


def eight_bit_levels(white: int) -> NDArray[np.uint8]:
    """The level of 8 bits of each value of 16 bits, rounded; [65536], of which those above `white` mean nothing."""
    return ((np.arange(65536, dtype=np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _first(value: Any) -> int:
    try:
        return int(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, OverflowError, IndexError, ZeroDivisionError):
        return 0
