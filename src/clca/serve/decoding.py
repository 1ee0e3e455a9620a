"""From the bytes that a client sent to the tensor that the model takes; by what they are, whatever they are called."""

import io
import os
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from clca.data.images import _FORMATS, read_image
from clca.data.transforms import Transform
from clca.errors import ClcaError
from clca.serve.errors import Refusal

# A transform that scales the shorter side would make a huge picture of a line of pixels.
_NARROWEST = 100

# Pillow reads headers, and the chunks of PNG, piece by piece in Python, and keeps the pieces, as it does with the tiles
# of TIFF: millions of them, or bytes that are none, would take a decoder minutes and gigabytes. Photographs have some
# hundreds, those of many rows a piece each some thousands.
_PIECES = 50_000
_OFFSETS = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS)


class _Header(io.BytesIO):
    """A file of which only so many pieces are read."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _PIECES:
            raise Refusal(422, "damaged", "damaged: its header has too many pieces")
        return super().read(size)


def decode(data: bytes, transform: Transform, max_pixels: int) -> Tensor:
    """`decode_image`, transformed.

    Args:
        data: The image file.
        transform: RGB image → tensor.
        max_pixels: Largest width × height.

    Raises:
        Refusal: As `decode_image`.
    """
    return transform(decode_image(data, max_pixels))


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode one image with `clca.data.images.read_image`, under its rules.

    Args:
        data: The image file.
        max_pixels: Largest width × height.

    Raises:
        Refusal: 415 where this is no image of a known format, 413 where it is too large, 422 where it is damaged or
            a mere line.
    """
    known = _looks_like_an_image(data)
    if _png_chunks(data) > _PIECES or _tiff_tiles(data) > _PIECES:
        raise Refusal(422, "damaged", "damaged: its pixels are in too many pieces")
    try:
        with Image.open(_Header(data), formats=_FORMATS) as image:  # reads the header only
            width, height = image.size
    except Refusal:
        raise
    except UnidentifiedImageError:
        if known:
            raise Refusal(422, "damaged", "damaged or truncated: its header cannot be read") from None
        raise Refusal(415, "not_an_image", _reason(data, max_pixels)) from None
    except Image.DecompressionBombError:
        raise Refusal(413, "too_many_pixels", _over(max_pixels)) from None
    except Exception:  # a damaged header raises nearly anything
        raise Refusal(422, "damaged", _reason(data, max_pixels)) from None
    if width * height > max_pixels:
        raise Refusal(413, "too_many_pixels", f"{width}×{height}: {_over(max_pixels)}")
    if max(width, height) > _NARROWEST * min(width, height):
        raise Refusal(422, "too_narrow", f"{width}×{height}: one side is more than {_NARROWEST} times the other")
    try:
        return _read(data, max_pixels)
    except ClcaError as error:
        raise Refusal(422, "damaged", str(error)) from None


def _over(max_pixels: int) -> str:
    return f"over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"


def _looks_like_an_image(data: bytes) -> bool:
    """Whether it begins as a format that is read begins."""
    head = data[:16].ljust(16, b"\0")  # some formats look at four bytes without asking whether there are four
    accepts = [Image.OPEN[name][1] for name in _FORMATS]
    return any(accept is not None and accept(head) is True for accept in accepts)


def _png_chunks(data: bytes) -> int:
    """Chunks of a PNG, counted as far as `_PIECES`; 0 for anything else."""
    place, chunks = 8, 0
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        while place < len(data) and chunks <= _PIECES:
            place += 12 + int.from_bytes(data[place : place + 4])
            chunks += 1
    return chunks


def _tiff_tiles(data: bytes) -> int:
    """Tiles or strips that a TIFF says its first picture has; 0 for anything else."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(place: int, length: int) -> int:
        return int.from_bytes(data[place : place + length], order)

    if not data.startswith((b"II", b"MM")) or number(2, 2) not in (42, 43):
        return 0
    wide = number(2, 2) == 43  # BigTIFF
    place = number(8, 8) if wide else number(4, 4)
    begin, size = (place + 8, 20) if wide else (place + 2, 12)
    tags = range(begin, min(begin + size * number(place, begin - place), len(data)), size)
    return max((number(tag + 4, 8 if wide else 4) for tag in tags if number(tag, 2) in _OFFSETS), default=0)


def _reason(data: bytes, max_pixels: int) -> str:
    """What `read_image` says of it."""
    try:
        _read(data, max_pixels)
    except ClcaError as error:
        return str(error)
    return "is not an image of a known format"


def _read(data: bytes, max_pixels: int) -> Image.Image:
    """`read_image` takes a file: a temporary one of our own naming, readable by us alone and gone at once."""
    handle, name = tempfile.mkstemp(prefix="clca-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        return read_image(name, max_pixels)
    except ClcaError as error:
        raise ClcaError(str(error).removeprefix(f"{name}: ").replace(name, "the image")) from None
    finally:
        Path(name).unlink(missing_ok=True)
