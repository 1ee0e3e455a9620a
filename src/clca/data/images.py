"""Read image files as 8-bit RGB, whatever a camera, phone or scanner wrote, with clear errors for unreadable ones."""

import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from clca.data.image_bounds import ORIENTATION, LimitedReader, orientation_of, sanitized, too_many_pixels
from clca.data.image_formats import EXTENSIONS, HEAD, UnreadableImage, format_of
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

# Pillow warns at every image above MAX_PIXELS / 2; read_image checks its own limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file completely and return it upright, as 8-bit RGB.

    EXIF rotation is applied; transparent pixels are composited on white; CMYK and palettes are converted; 16-bit grey
    is scaled to 8 bits; the first frame of an animation is used. The format is detected from the content and must be
    one of `clca.data.image_formats.FORMATS`. Format, size and structure are checked before the pixels are decoded.

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
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would block
            raise ClcaError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a FIFO or a device'}, not an image file")
        with open(path, "rb") as file:
            data = file.read(HEAD)
            format_of(data)
            size = min(os.fstat(file.fileno()).st_size, MAX_BYTES)  # Python allocates what may be read at most
            data += file.read(max(0, size + 1 - len(data)))
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}", error.code) from None
    except ClcaError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ClcaError(_access_error(path, error)) from None
    except MemoryError:
        raise UnreadableImage(f"{path}: not enough memory to read it", "too_long") from None
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"{path}: over the limit of {MAX_BYTES >> 20} MiB: make it smaller", "too_long")
    return data


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Decode the content of a file, as `read_with_format` does.

    Args:
        data: The file.
        max_pixels: Largest width × height in pixels.

    Raises:
        UnreadableImage: With the reason; the message does not contain a path.
    """
    kind = format_of(data[:HEAD])
    try:
        content, exif = sanitized(data, kind, max_pixels)
        with LimitedReader(content) as file, Image.open(file, formats=[kind]) as image:
            described = f"{image.format} {image.mode}"
            _check_size(*image.size, max_pixels)
            _check_pixels(image)
            file.limited = False
            _load(image, content)
            if kind == "JPEG" and _ends_in_zeros(data):
                raise _damaged("it ends in zero bytes", ": copy it again")
            return _upright(_to_rgb(image), _orientation(image, exif)), described
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise _damaged("its header cannot be read") from None
    except Image.DecompressionBombError:
        limit = f"over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"
        raise UnreadableImage(f"the image is {limit}", "too_many_pixels") from None
    except MemoryError:
        raise UnreadableImage("not enough memory to decode it: make it smaller", "damaged") from None
    except Exception as error:  # decoders raise almost any exception on a damaged file
        raise _damaged(reason(error)) from None


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


def _load(image: ImageFile.ImageFile, content: bytes) -> None:
    """Decode the pixels into `image`."""
    if image.tile and image.tile[0][0] == "ppm":
        pixels = _pnm_pixels(image, content)
        image.tile, image.im, image._mode = [], pixels.im, pixels.mode
    image.load()


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
    if image.mode.startswith("I"):  # Pillow's convert() would clip to 255
        return _sixteen_bit_to_rgb(image)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UnreadableImage("32-bit pixels out of the 16-bit range: save it as 8-bit RGB", "damaged")
    scaled = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded; 65535 / 257 = 255
    if _is_white_zero(image):
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # 16-bit PNG: this grey level is transparent
        scaled[pixels == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether 0 is white (TIFF WhiteIsZero), which Pillow handles only up to 8 bits."""
    tags = getattr(image, "tag_v2", {})  # only TIFF has these
    return image.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
