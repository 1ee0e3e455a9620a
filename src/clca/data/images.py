"""Read image files as 8-bit RGB, whatever a camera, phone or scanner wrote, with clear errors for unreadable ones."""

import io
import os
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from clca.data.image_bounds import LimitedReader, Sanitized, orientation_of, sanitized, too_many_pixels
from clca.data.image_formats import EXTENSIONS, HEAD, RAW, UnreadableImage, format_of, has_plugin
from clca.data.tiff import ORIENTATION, band_count, eight_bit_levels, is_raw, white_level, why_unsupported
from clca.data.tiff_pixels import load_tiff
from clca.errors import ClcaError, reason

__all__ = ["EXTENSIONS", "MAX_BYTES", "MAX_PIXELS", "decode_image", "read_image", "read_with_format"]

MAX_PIXELS = 170_000_000
"""Largest width × height that is decoded (about 0.5 GB as RGB), just below the limit of Pillow."""

MAX_BYTES = 2 << 30
"""Largest file that is read: `MAX_PIXELS` uncompressed with 16 bits per channel take half of it."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → the operation that makes the image upright."""

# A transform that scales the shorter side would turn a line of pixels into a huge image.
_MAX_ASPECT = 100

# Cameras pad files by at most one disk block. An interrupted copy leaves whole blocks empty.
_BLOCK = 4096

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

_DARK_BITS = 14  # of 16; values of no more bits were probably not scaled

# Pillow warns at every image above MAX_PIXELS / 2; read_image checks its own limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Decoded:
    """A decoded image, and what should be known about it.

    Attributes:
        image: The pixels, upright, as sRGB with 8 bits.
        kind: Format and mode of the file, such as "JPEG CMYK".
        profile: Name of the colour profile that it was converted from; None if the file has none, or sRGB.
        profile_problem: Why its colour profile was ignored, in words that follow "its colour profile".
        left_out: Which bands were left out, in words that follow the file's name.
        dark: Why it is almost black, if its values use few of 16 bits.
    """

    image: Image.Image
    kind: str
    profile: str | None = None
    profile_problem: str | None = None
    left_out: str | None = None
    dark: str | None = None


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file completely and return it upright, as 8-bit sRGB.

    EXIF rotation is applied; colours are converted from an embedded profile to sRGB; transparent pixels are composited
    on white; CMYK and palettes are converted; 16-bit grey is scaled to 8 bits; the first frame of an animation is used.
    The format is detected from the content and must be one of `clca.data.image_formats.FORMATS` or raw. Format, size
    and structure are checked before the pixels are decoded.

    The image is decoded in this process, so a decoder that takes too long cannot be stopped: use `clca.data.decoding`
    for untrusted files. Training reads a data set here, after `clca.data.decoding` has decoded each image once, to
    verify it or to fill the resized-image cache. Evaluation without training also reads images here, with the same
    limits of format, size and structure, but without a time limit.

    Args:
        path: The file.
        max_pixels: Largest width × height in pixels.

    Raises:
        ClcaError: The file is missing, empty, truncated, too large, more than 100 times as long as wide, or not an
            image of a supported format.
    """
    image, _ = read_with_format(Path(path), max_pixels)
    return image


def read_with_format(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """As `read_image`; also returns the format and mode of the file, such as "JPEG CMYK"."""
    data = read_bytes(path)
    try:
        return decode_image(data, max_pixels)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}", error.code) from None


def read_bytes(path: Path) -> bytes:
    """Read the content of an image file; of other files, no more than the first bytes are read.

    Raises:
        ClcaError: The file cannot be read, is a folder or device, is too large, or is not an image.
    """
    try:
        with open_regular(path) as file:
            data = file.read(HEAD)
            format_of(data)
            size = min(os.fstat(file.fileno()).st_size, MAX_BYTES)  # Python allocates what may be read at most
            data += file.read(max(0, size + 1 - len(data)))
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}", error.code) from None
    except ClcaError:
        raise
    except OSError as error:
        raise ClcaError(_access_error(path, error)) from None
    except MemoryError:
        raise UnreadableImage(f"{path}: not enough memory to read it", "too_long") from None
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"{path}: over the limit of {MAX_BYTES >> 20} MiB: make it smaller", "too_long")
    return data


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, without waiting for the other end of a FIFO and without touching a device.

    Raises:
        ClcaError: It cannot be opened, or is a folder, a FIFO or a device.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)
        # The file may have become a FIFO in the meantime; opening one would block without this flag.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ClcaError(_access_error(path, error)) from None
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
    except ClcaError:
        file.close()
        raise
    return file


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ClcaError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a FIFO or a device'}, not an image file")


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Decode the content of a file, as `read_with_format` does.

    Args:
        data: The file.
        max_pixels: Largest width × height in pixels.

    Raises:
        UnreadableImage: With the reason; the message does not contain a path.
    """
    decoded = decode(data, max_pixels)
    return decoded.image, decoded.kind


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Decoded:
    """As `decode_image`; also returns what was ignored, left out or converted."""
    kind = format_of(data[:HEAD])
    if kind == "TIFF" and is_raw(data):
        kind = RAW
    try:
        if kind == RAW:
            return _developed(data, max_pixels)
        safe = sanitized(data, kind, max_pixels)
        if kind == "TIFF" and band_count(data) > TiffImagePlugin.MAX_SAMPLESPERPIXEL:
            raise UnidentifiedImageError  # as Pillow does, which would also write this to stderr
        if kind == "HEIF" and has_plugin(kind):
            return _decoded_heif(safe, max_pixels)
        return _decoded(safe, data, kind, max_pixels)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        unsupported = why_unsupported(data) if kind == "TIFF" else None
        if unsupported is not None:
            raise UnreadableImage(unsupported, "not_an_image") from None
        raise _damaged("its header cannot be read") from None
    except Image.DecompressionBombError:
        limit = f"over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"
        raise UnreadableImage(f"the image is {limit}", "too_many_pixels") from None
    except MemoryError:
        raise UnreadableImage("not enough memory to decode it: make it smaller", "damaged") from None
    except Exception as error:  # decoders raise almost any exception on a damaged file
        raise _damaged(reason(error)) from None


def _decoded(safe: Sanitized, data: bytes, kind: str, max_pixels: int) -> Decoded:
    """Decode a file with Pillow."""
    with LimitedReader(safe.content) as file, Image.open(file, formats=[kind]) as image:
        described = f"{image.format} {image.mode}"
        _check_size(*image.size, max_pixels)
        _check_pixels(image)
        file.limited = False
        deep = _is_deep(image)
        pixels, left_out = _load(image, safe.content)
        if kind == "JPEG" and _ends_in_zeros(data):
            raise _damaged("it ends in zero bytes", ": copy it again")
        dark = None
        if deep:
            pixels, dark = _deep_pixels(image, pixels)
        pixels, name, problem = _in_srgb(pixels, image, safe)
        upright = _upright(_to_rgb(pixels), _orientation(image, safe.exif))
        return Decoded(upright, described, name, problem, left_out, dark)


def _decoded_heif(safe: Sanitized, max_pixels: int) -> Decoded:
    from clca.data.heif_photos import read_heif

    image = read_heif(safe.content, lambda width, height: _check_size(width, height, max_pixels))
    described, dark = f"HEIF {image.mode}", None
    pixels = image
    if image.mode.startswith("I"):
        pixels, dark = _deep_pixels(image, image)
    pixels, name, problem = _in_srgb(pixels, image, safe)
    return Decoded(_to_rgb(pixels), described, name, problem, None, dark)


def _developed(data: bytes, max_pixels: int) -> Decoded:
    from clca.data.raw_photos import develop

    return Decoded(develop(data, lambda width, height: _check_size(width, height, max_pixels)), f"{RAW} RGB")


def _in_srgb(pixels: Image.Image, image: Image.Image, safe: Sanitized) -> tuple[Image.Image, str | None, str | None]:
    """Convert pixels with the colour profile of their file, if it has one.

    Args:
        pixels: The decoded pixels.
        image: The file.
        safe: What was removed from the file.

    Returns:
        The pixels, the name of the profile unless it is sRGB, and why it is ignored if it cannot be used.
    """
    problem, icc = safe.profile_problem, safe.profile or image.info.get("icc_profile")
    incomplete = "icc_profile" in image.info and icc is None  # parts of it are missing in a JPEG
    if problem is not None or not (icc or incomplete):
        return pixels, None, problem
    from clca.data.colour_profiles import read_profile, to_srgb  # few photographs need LittleCMS

    profile = read_profile(icc, pixels.mode)
    return to_srgb(pixels, profile), profile.name, profile.problem


def _damaged(why: str, remedy: str = "") -> UnreadableImage:
    return UnreadableImage(f"damaged or truncated ({why}){remedy}", "damaged")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise UnreadableImage(f"{width}×{height}: one side is more than {_MAX_ASPECT} times the other", "too_narrow")


def _check_pixels(image: ImageFile.ImageFile) -> None:
    """Refuse pixels without a known range, and those that Pillow decodes in Python (minutes for a few megabytes)."""
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no standard range: save it as 8-bit RGB", "damaged")
    for tile in image.tile:
        if tile[0] in Image.DECODERS and tile[0] != "ppm":  # the decoders written in Python
            raise UnreadableImage(
                f"is {image.format} with a compression that is not read ({tile[0]}): convert it to JPEG or PNG",
                "not_an_image",
            )


def _load(image: ImageFile.ImageFile, content: bytes) -> tuple[Image.Image, str | None]:
    """Decode the pixels; also say which bands were left out."""
    if image.format == "TIFF":
        return load_tiff(image, content)
    if image.tile and image.tile[0][0] == "ppm":
        return _pnm_pixels(image, content), None
    image.load()
    return image, None


def _pnm_pixels(image: ImageFile.ImageFile, content: bytes) -> Image.Image:
    """Decode a binary PNM whose maximum value is not 255; Pillow's decoder for these is written in Python."""
    tile: Any = image.tile[0]
    raw, white = tile.args
    kind = np.dtype(np.uint8 if white < 256 else ">u2")
    count = image.width * image.height * (1 if raw == "L" else 3)
    if len(content) - tile.offset < count * kind.itemsize:
        raise _damaged("image file is truncated")
    every = np.arange(256 if white < 256 else 65536)
    levels = np.minimum((2 * 255 * every + white) // (2 * white), 255).astype(np.uint8)  # rounded
    pixels = levels[np.frombuffer(content, kind, count, tile.offset)]
    return Image.frombytes("L" if raw == "L" else "RGB", image.size, pixels.tobytes())


def _access_error(path: Path, error: Exception) -> str:
    return f"{path}: no such file" if isinstance(error, FileNotFoundError) else f"{path}: {reason(error)}"


def _orientation(image: Image.Image, exif: bytes | None) -> int:
    """The orientation given by EXIF data, TIFF tags or XMP; 1 (upright) if there is none.

    `Image.getexif` would read every tag, and `ImageOps.exif_transpose` would also rewrite them.
    """
    try:
        exif = exif or image.info.get("exif")
        if exif is None and "Raw profile type exif" in image.info:  # PNG written by ImageMagick
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        tagged = orientation_of(exif) if exif else int(getattr(image, "tag_v2", {}).get(ORIENTATION, 0))
        if tagged:
            return tagged
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        found = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        return int(found[1]) if found else 1
    except Exception:  # damaged metadata do not make the pixels unreadable
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TRANSPOSES.get(orientation)
    return image if turn is None else image.transpose(turn)


def _ends_in_zeros(data: bytes) -> bool:
    """Return whether zero bytes replace the end of a JPEG (decoders show grey there), rather than follow it.

    An interrupted copy leaves such a file if its disk space was allocated in advance.
    """
    if len(data) <= _BLOCK or data[-_BLOCK:].strip(b"\0"):
        return False
    place = 2
    while (
        data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda"
    ):  # skip the segments before the scan
        padding = data[place + 1 : place + 2] == b"\xff"
        place += 1 if padding else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return b"\xff\xd9" not in data[place:]  # the end marker cannot occur in pixels, but in an EXIF thumbnail


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether a file that was opened, but not yet decoded, has more than 8 bits per value."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8  # type: ignore[attr-defined]
    if image.mode.startswith("I"):
        return True
    args = image.tile[0][3] if image.tile else None
    return isinstance(args, (tuple, str)) and ";16" in str(args[0] if isinstance(args, tuple) else args)


def _deep_pixels(image: Image.Image, pixels: Image.Image) -> tuple[Image.Image, str | None]:
    """Scale grey of 16 bits to 8 (Pillow scales colours), and say whether the values use only some of the 16 bits."""
    if not pixels.mode.startswith("I"):
        extrema: Any = pixels.convert("RGB").getextrema()
        largest = max(high for _, high in extrema)
        return pixels, _why_dark(largest << 8 | 255)
    values = np.asarray(pixels)
    if values.min() < 0:
        raise UnreadableImage("negative or 32-bit pixels have no standard range: save it as 8-bit RGB", "damaged")
    white = white_level(getattr(image, "tag_v2", {}))  # only TIFF has these
    largest = int(values.max())
    if largest > white:
        white = 65535
    if largest > white:
        raise UnreadableImage("32-bit pixels out of the 16-bit range: save it as 8-bit RGB", "damaged")
    scaled = eight_bit_levels(white)[values]
    white_is_zero = _is_white_zero(image, pixels)
    if white_is_zero:
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # 16-bit PNG: this grey level is transparent
        scaled[values == transparent] = 255
    return Image.fromarray(scaled), None if white < 65535 or white_is_zero else _why_dark(largest)


def _why_dark(largest: int) -> str | None:
    """Say that values of 16 bits use only the lower ones, if they do, as those of cameras with 10, 12 or 14 bits."""
    bits = max(8, largest.bit_length())
    if not largest or bits > _DARK_BITS:
        return None
    return (
        f"dark: no value is above {2**bits - 1} of 65535, as if {bits} bits were stored in 16: multiply the values by "
        f"{2 ** (16 - bits)}, or convert it to 8 bits"
    )


def _is_white_zero(image: Image.Image, pixels: Image.Image) -> bool:
    """Return whether 0 is white (TIFF WhiteIsZero), which Pillow handles only up to 8 bits."""
    tags = getattr(image, "tag_v2", {})  # only TIFF has these
    return pixels.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
