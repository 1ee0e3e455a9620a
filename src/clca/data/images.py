"""Reading an image file: what a scanner, phone or download left becomes 8-bit RGB, or is refused by name."""

import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from clca.data.image_bounds import Counted, bounded_content, orientation_of, too_many_pixels
from clca.data.image_formats import EXTENSIONS, HEAD, UnreadableImage, format_of
from clca.errors import ClcaError, reason

__all__ = ["EXTENSIONS", "MAX_BYTES", "MAX_PIXELS", "decode_image", "read_image", "read_with_format"]

MAX_PIXELS = 170_000_000
"""Largest width × height that is decoded (about 0.5 GB as RGB): just below the size at which Pillow itself refuses."""

MAX_BYTES = 2 << 30
"""Largest file that is read: as many pixels, uncompressed with 16 bits a channel, take half of it."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → what makes it upright."""

# A transform that scales the shorter side would make a huge picture of a line of pixels.
_NARROWEST = 100

# Cameras pad to a block of the disk at most. A copy that was interrupted leaves whole ones empty.
_BLOCK = 4096

_ORIENTATION = 0x0112  # tag of EXIF and TIFF
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

# Between a half and the whole of MAX_PIXELS Pillow would warn at every read; read_image has its own limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file completely and return it upright as 8-bit RGB.

    EXIF rotation is applied; transparency is laid on white; CMYK and palettes are converted; 16-bit grey is scaled to
    8 bits; of an animation the first frame is taken. The format is found from the content and has to be one of
    `clca.data.image_formats.FORMATS`. Format, size and the number of pieces are read before anything is decoded.

    The image is decoded in this process, where nothing can end a decoder that takes long: use `clca.data.decoding` for
    files from others. Training reads a user's data set here, after `clca.data.decoding` has decoded each image once to
    verify it or to fill the resized-image cache; evaluation on its own reads it here as well, under the same limits of
    format, size and structure, but without a limit of time.

    Args:
        path: The file.
        max_pixels: Largest width × height in pixels.

    Raises:
        ClcaError: Naming the file and the reason, where it is missing, empty, truncated, too large, more than 100 times
            as long as wide, or no image of a format that is read.
    """
    image, _ = read_with_format(Path(path), max_pixels)
    return image


def read_with_format(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """As `read_image`, with the format and mode found in the file ("JPEG CMYK")."""
    data = read_bytes(path)
    try:
        return decode_image(data, max_pixels)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}", error.code) from None


def read_bytes(path: Path) -> bytes:
    """The content of a file that may be an image; of one that is none, its beginning alone.

    Raises:
        ClcaError: Naming the file, where it cannot be read, is a folder or device, or is too long.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
            raise ClcaError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a FIFO or a device'}, no image file")
        with open(path, "rb") as file:
            data = file.read(HEAD)
            format_of(data)
            data += file.read(MAX_BYTES + 1 - len(data))
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}", error.code) from None
    except ClcaError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise ClcaError(_unreachable(path, error)) from None
    except MemoryError:
        raise UnreadableImage(f"{path}: not enough memory to read it", "too_long") from None
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"{path}: over the limit of {MAX_BYTES >> 20} MiB: make it smaller", "too_long")
    return data


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """As `read_with_format`, of a file's content.

    Args:
        data: The file.
        max_pixels: Largest width × height in pixels.

    Raises:
        UnreadableImage: With the reason, which names no file.
    """
    kind = format_of(data[:HEAD])
    try:
        content, exif = bounded_content(data, kind, max_pixels)
        with Counted(content) as file, Image.open(file, formats=[kind]) as image:
            described = f"{image.format} {image.mode}"
            _refuse_size(*image.size, max_pixels)
            _refuse_pixels(image)
            file.limited = False
            _load(image, content)
            if kind == "JPEG" and _breaks_off_in_zeros(data):
                raise _damaged("ends in zero bytes", ": copy it again")
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
    except Exception as error:  # a damaged file raises nearly anything from inside a decoder
        raise _damaged(reason(error)) from None


def _damaged(why: str, remedy: str = "") -> UnreadableImage:
    return UnreadableImage(f"damaged or truncated ({why}){remedy}", "damaged")


def _refuse_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
    if max(width, height) > _NARROWEST * min(width, height):
        raise UnreadableImage(f"{width}×{height}: one side is more than {_NARROWEST} times the other", "too_narrow")


def _refuse_pixels(image: ImageFile.ImageFile) -> None:
    """Pixels that have no range, or that Pillow unpacks number by number in Python, minutes for a few megabytes."""
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no agreed range: save it as 8-bit RGB", "damaged")
    for tile in image.tile:
        if tile[0] in Image.DECODERS and tile[0] != "ppm":  # which are those written in Python
            raise UnreadableImage(
                f"is {image.format} of a compression that is not read ({tile[0]}): convert it to JPEG or PNG",
                "not_an_image",
            )


def _load(image: ImageFile.ImageFile, content: bytes) -> None:
    """Decode the pixels into `image`."""
    if image.tile and image.tile[0][0] == "ppm":
        pixels = _pnm_pixels(image, content)
        image.tile, image.im, image._mode = [], pixels.im, pixels.mode
    image.load()


def _pnm_pixels(image: ImageFile.ImageFile, content: bytes) -> Image.Image:
    """A binary PNM whose white is another number than 255; Pillow's decoder for these is written in Python."""
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


def _unreachable(path: Path, error: Exception) -> str:
    return f"{path}: no such file" if isinstance(error, FileNotFoundError) else f"{path}: {reason(error)}"


def _orientation(image: Image.Image, exif: bytes | None) -> int:
    """The orientation that EXIF data, TIFF tags or XMP name, 1 (upright) where there is none.

    `Image.getexif` would read every tag, and `ImageOps.exif_transpose` write them anew.
    """
    try:
        held = exif or image.info.get("exif")
        if held is None and "Raw profile type exif" in image.info:  # of ImageMagick, in PNG
            held = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        tagged = orientation_of(held) if held else int(getattr(image, "tag_v2", {}).get(_ORIENTATION, 0))
        if tagged:
            return tagged
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        found = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        return int(found[1]) if found else 1
    except Exception:  # broken EXIF beside sound pixels: the orientation is unknown, the picture is not
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _breaks_off_in_zeros(data: bytes) -> bool:
    """Whether zero bytes take the place of the end of a JPEG, which decoders take for grey; not so, if they follow it.

    A copy that was interrupted leaves such a file, where its disk space was reserved before.
    """
    if len(data) <= _BLOCK or data[-_BLOCK:].strip(b"\0"):
        return False
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":  # segments, up to the scan
        padding = data[place + 1 : place + 2] == b"\xff"
        place += 1 if padding else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return b"\xff\xd9" not in data[place:]  # the end: no pixels hold these bytes, but an EXIF thumbnail does


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's convert() would clip at 255
        return _sixteen_bit_to_rgb(image)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UnreadableImage("32-bit pixels beyond 16 bits: save it as 8-bit RGB", "damaged")
    scaled = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded; 65535 / 257 = 255
    if _is_negative(image):
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # of 16-bit PNG: the grey that lets white through
        scaled[pixels == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow heeds at up to 8 bits."""
    tags = getattr(image, "tag_v2", {})  # of TIFF
    return image.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
