"""Decode the pixels of a TIFF: 10 to 15 bits stored in 16, bands beyond three, and transparency that is none."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from clca.data.image_formats import UnreadableImage
from clca.data.tiff import eight_bit_levels, white_level, why_unsupported

_PLANAR, _SEPARATE = TiffImagePlugin.PLANAR_CONFIGURATION, 2
_EDGE = 0.02  # a pixel whose opacity is within this of 0 or 1 counts as transparent or opaque
_LEAST_OPAQUE = 0.001  # share of opaque pixels in a mask; a sensor has fewer saturated ones
_MOST_PARTIAL = 0.25  # share of half-transparent pixels in a mask: the soft edge of a leaf or grain
_BITS_OF_TWO_BYTES = ";16"


def load_tiff(image: ImageFile.ImageFile, content: bytes) -> tuple[Image.Image, str | None]:
    """Decode the first image of a TIFF.

    Args:
        image: The file, opened and not decoded.
        content: The file.

    Returns:
        The pixels, and what was left out of them, if anything, in words that follow the file's name.
    """
    if image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT) == (2,) and image.mode == "L":  # type: ignore[attr-defined]
        raise UnreadableImage(why_unsupported(content) or "has signed values: convert it to 8 bits", "not_an_image")
    white = white_level(image.tag_v2)  # type: ignore[attr-defined]
    bands = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)  # type: ignore[attr-defined]
    premultiplied = _plain_alpha(image)
    _deep_planes(image)
    if white < 65535 and image.mode in ("RGB", "RGBA") and _has_both_bytes(image):
        pixels = _scaled(image, content, white)
    else:
        image.load()
        pixels = image
    left_out = None
    if pixels.mode in ("RGBA", "LA") and not _is_transparency(np.asarray(pixels.getchannel("A"))):
        if _divided_by_libtiff(image):
            what = "of which one is marked as transparency and is none: convert it to an RGB image of the other three"
            raise UnreadableImage(f"is a TIFF that has {bands} bands, {what}", "not_an_image")
        last, read = ("second", "grey is") if pixels.mode == "LA" else ("fourth", "red, green and blue are")
        left_out = (
            f"has {bands} bands; the {last}, although marked as transparency, is no mask but an image, such as near "
            f"infrared: only {read} read"
        )
        pixels = pixels.convert(pixels.mode[:-1])
    elif bands > len(pixels.getbands()) and pixels.mode in ("RGB", "RGBA"):
        left_out = f"has {bands} bands, of which only red, green and blue are read"
    if premultiplied and pixels.mode == "RGBA":
        pixels = Image.frombytes("RGBa", pixels.size, pixels.tobytes()).convert("RGBA")
    return pixels, left_out


def _plain_alpha(image: ImageFile.ImageFile) -> bool:
    """Keep Pillow from dividing colours by their opacity, and return whether it would: the band may be no opacity."""
    divides = any("a" in _rawmode(tile) for tile in image.tile)  # RGBa, or the plane of a
    if divides:
        image.tile = [_with_rawmode(tile, _rawmode(tile).replace("a", "A")) for tile in image.tile]
    return divides


def _divided_by_libtiff(image: ImageFile.ImageFile) -> bool:
    """Return whether colours in separate planes were divided by the fourth band, which cannot be turned off."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    unassociated = tags.get(TiffImagePlugin.EXTRASAMPLES) == (2,)
    return tags.get(_PLANAR) == _SEPARATE and image.use_load_libtiff and not unassociated  # type: ignore[attr-defined]


def _deep_planes(image: ImageFile.ImageFile) -> None:
    """Have Pillow read uncompressed planes of 16 bits as such; it takes them for 8 bits."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    if tags.get(_PLANAR) == _SEPARATE and len(bits) > 1 and bits[0] == 16 and image.tile[0][0] != "libtiff":
        order = "L" if tags.prefix == b"II" else "B"
        planes = [tile for tile in image.tile if _rawmode(tile) in image.getbands()]
        image.tile = [_with_rawmode(tile, f"{_rawmode(tile)}{_BITS_OF_TWO_BYTES}{order}") for tile in planes]


def _has_both_bytes(image: ImageFile.ImageFile) -> bool:
    """Return whether values have 16 bits of which either byte can be read; libtiff chooses itself for planes."""
    planes = image.tag_v2.get(_PLANAR) == _SEPARATE and image.tile[0][0] == "libtiff"  # type: ignore[attr-defined]
    return not planes and any(_BITS_OF_TWO_BYTES in _rawmode(tile) for tile in image.tile)


def _scaled(image: ImageFile.ImageFile, content: bytes, white: int) -> Image.Image:
    """Colours of 16 bits, of which `white` is the largest used, as 8 bits.

    Pillow keeps one byte of each value, the upper one; told the other byte order, it keeps the lower one.
    """
    with Image.open(io.BytesIO(content), formats=["TIFF"]) as other:
        other.tile = [_with_rawmode(tile, _swapped(_rawmode(tile))) for tile in image.tile]
        other.use_load_libtiff = image.use_load_libtiff  # type: ignore[attr-defined]
        other.load()
        image.load()
        values = np.asarray(image).astype(np.uint16) << 8
        values |= np.asarray(other)
    if values.max() > white:  # so the tag is wrong
        return image
    return Image.fromarray(eight_bit_levels(white)[values], image.mode)


def _swapped(rawmode: str) -> str:
    stem, order = rawmode[:-1], rawmode[-1]
    native = np.dtype("<u2").isnative
    return stem + {"L": "B", "B": "L", "N": "B" if native else "L"}[order]


def _is_transparency(alpha: NDArray[np.uint8]) -> bool:
    """Return whether a band is the opacity of an image, rather than an image of its own.

    A mask is opaque somewhere, and elsewhere transparent or opaque but for soft edges.
    """
    low, high = 255 * _EDGE, 255 * (1 - _EDGE)
    partial = (alpha > low) & (alpha < high)
    return bool(np.mean(alpha >= high) >= _LEAST_OPAQUE and np.mean(partial) <= _MOST_PARTIAL)


def _rawmode(tile: ImageFile._Tile) -> str:
    args = tile[3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(tile: ImageFile._Tile, rawmode: str) -> ImageFile._Tile:
    args = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return ImageFile._Tile(tile[0], tile[1], tile[2], args)
