"""Reading an image file: what a scanner, phone or download left becomes 8-bit RGB, or is refused by name."""

import errno
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from clca.errors import ClcaError, reason

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
_OTHERS = {".png", ".webp", ".avif", ".jp2", ".gif", ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"}
EXTENSIONS = frozenset(_JPEG | _OTHERS)
"""File name endings, in lower case, that are taken for images when a folder is listed."""

MAX_PIXELS = 170_000_000
"""Largest width × height that is decoded (about 0.5 GB as RGB): just below the size at which Pillow itself refuses."""

# Only raster formats: Pillow would hand EPS to Ghostscript and WMF to Windows, which no training set needs.
_FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"]
Image.init()
_FORMATS = [name for name in _FORMATS if name in Image.OPEN]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → what makes it upright."""

# Cameras pad to a block of the disk at most. A copy that was interrupted leaves whole ones empty.
_BLOCK = 4096

# Between a half and the whole of MAX_PIXELS Pillow would warn at every read; read_image has its own limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file completely and return it upright as 8-bit RGB.

    EXIF rotation is applied; transparency is laid on white; CMYK and palettes are converted; 16-bit grey is scaled to
    8 bits; of an animation the first frame is taken. The size is read from the header, before anything is decoded.

    Args:
        path: The file.
        max_pixels: Largest width × height in pixels.

    Raises:
        ClcaError: Naming the file and the reason, where it is missing, empty, truncated, too large, or no image.
    """
    path = Path(path)
    image, _ = read_with_format(path, max_pixels)
    return image


def read_with_format(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """As `read_image`, with the format and mode found in the file ("JPEG CMYK")."""
    _refuse_what_is_no_file(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            described = f"{image.format} {image.mode}"
            width, height = image.size
            if width * height > max_pixels:
                raise ClcaError(_too_large(path, f"{width}×{height}", max_pixels))
            image.load()
            if image.format in ("JPEG", "MPO") and _breaks_off_in_zeros(path):
                raise ClcaError(f"{path}: damaged or truncated (ends in zero bytes): copy it again")
            return _upright(_to_rgb(image, path), _orientation(image)), described
    except ClcaError:
        raise
    except UnidentifiedImageError:
        raise ClcaError(f"{path}: {_what_it_is_instead(path)}") from None
    except Image.DecompressionBombError:
        raise ClcaError(_too_large(path, "the image", max_pixels)) from None
    except MemoryError:
        raise ClcaError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # a damaged file raises nearly anything from inside a decoder
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: sought before its begin
            raise ClcaError(_unreachable(path, error)) from None
        raise ClcaError(f"{path}: damaged or truncated ({reason(error)})") from None


def _too_large(path: Path, size: str, max_pixels: int) -> str:
    return f"{path}: {size} is over the limit of {max_pixels / 1e6:g} million pixels: make it smaller"


def _refuse_what_is_no_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise ClcaError(_unreachable(path, error)) from None
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
        raise ClcaError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'a FIFO or a device'}, no image file")


def _unreachable(path: Path, error: Exception) -> str:
    return f"{path}: no such file" if isinstance(error, FileNotFoundError) else f"{path}: {reason(error)}"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none.

    `ImageOps.exif_transpose` would write the EXIF data anew, and leave the picture as it lies if that fails.
    """
    try:
        told = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(told[0] if isinstance(told, bytes) else told)  # some write it as a byte
    except Exception:  # broken EXIF beside sound pixels: the orientation is unknown, the picture is not
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _breaks_off_in_zeros(path: Path) -> bool:
    """Whether zero bytes take the place of the end of a JPEG, which decoders take for grey; not so, if they follow it.

    A copy that was interrupted leaves such a file, where its disk space was reserved before.
    """
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - _BLOCK))
        if length <= _BLOCK or file.read().strip(b"\0"):
            return False
        file.seek(0)
        data = file.read()
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":  # segments, up to the scan
        padding = data[place + 1 : place + 2] == b"\xff"
        place += 1 if padding else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return b"\xff\xd9" not in data[place:]  # the end: no pixels hold these bytes, but an EXIF thumbnail does


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's convert() would clip at 255
        return _sixteen_bit_to_rgb(image, path)
    if image.mode == "F":
        raise ClcaError(f"{path}: floating-point pixels have no agreed range: save it as 8-bit RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image, path: Path) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ClcaError(f"{path}: 32-bit pixels beyond 16 bits: save it as 8-bit RGB")
    scaled = np.rint(pixels / 257).astype(np.uint8)  # 65535 / 257 = 255
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


def _what_it_is_instead(path: Path) -> str:
    """Says what a file that no decoder knows looks like, from its first bytes."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head:
        return "the file is empty (0 bytes)"
    if not head.strip(b"\0"):
        return "holds only zero bytes: download or copy it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not an image: download it again"
    if b"<svg" in text:
        return "is an SVG drawing: convert it to PNG"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "is an HEIC photograph: convert it to JPEG"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the image: run `git lfs pull`"
    if head.startswith(b"%PDF"):
        return "is a PDF, not an image"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "is text, not an image"
    return "is not an image of a known format"
