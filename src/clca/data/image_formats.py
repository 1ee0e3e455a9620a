"""The image formats: which are read, how a file's first bytes identify them, and names for those that are not read.

HEIC and raw photographs are read if the extra `photos` is installed. Its libraries are loaded when the first of these
files is decoded, not here: a listing of files only asks whether they are there.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from PIL import (
    AvifImagePlugin,  # noqa: F401  (each registers its format; `Image.init` would load about forty)
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from clca.errors import ClcaError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "BMP", "GIF", "PPM")
"""Pillow's names of the formats that are read: those of cameras, phones and scanners. HEIF requires a plug-in. All
other formats that Pillow supports are refused before a decoder sees the file."""

RAW = "RAW"
"""Name of the raw files of all cameras, which LibRaw reads rather than Pillow."""

PLUGINS = {"HEIF": "pillow_heif", RAW: "rawpy"}
"""The formats that need a further library, both of the extra `photos`, and the module that reads them."""

INSTALL = "install the extra photos (pip install 'clca[photos]')"
"""What to do if a library of `PLUGINS` is missing."""

_PILLOW_EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff"),
        *(".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
_RAW = "3fr arw cr2 cr3 crw dng erf iiq kdc mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
PLUGIN_EXTENSIONS = {
    "HEIF": frozenset({".heic", ".heics", ".heif", ".hif"}),
    RAW: frozenset(f".{extension}" for extension in _RAW.split()),
}
"""File name extensions, in lower case, of the formats in `PLUGINS`."""
_OTHER = "raw svg svgz eps psd psb xcf ico icns tga j2k jpx jxl jxr hdp wdp exr hdr pcx sgi"


def has_plugin(name: str) -> bool:
    """Return whether the library for a format in `PLUGINS` is installed, without loading it."""
    try:
        return find_spec(PLUGINS[name]) is not None
    except (ImportError, ValueError):  # ValueError: a module in `sys.modules` without a specification
        return False


def read_extensions() -> frozenset[str]:
    """File name extensions of the formats that are read with the libraries that are installed."""
    return _PILLOW_EXTENSIONS.union(*(found for name, found in PLUGIN_EXTENSIONS.items() if has_plugin(name)))


EXTENSIONS = read_extensions()
"""File name extensions, in lower case, of the formats that are read; a folder listing takes these files as images."""

UNREAD_EXTENSIONS = (
    frozenset(f".{extension}" for extension in _OTHER.split()).union(*PLUGIN_EXTENSIONS.values()) - EXTENSIONS
)
"""File name extensions, in lower case, of image formats that are not read."""

HEAD = 4096
"""Number of bytes at the start of a file that identify its format."""

Code = Literal["not_an_image", "too_many_pixels", "too_long", "too_narrow", "damaged", "too_slow", "busy"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0")  # Pillow accepts three more signatures, which no program writes
_PNM = (b"P4", b"P5", b"P6")
_PLAIN_PNM = {b"P1": "PBM", b"P2": "PGM", b"P3": "PPM"}
_OTHER_PNM = {b"Pf": "PFM", b"PF": "PFM", b"P7": "PAM"}
_BLANKS = b" \t\n\v\f\r#"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_RAW_STARTS = (
    *(b"II*\0\x10\0\0\0CR", b"II\x1a\0\0\0HEAPCCDR", b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"\0MRM"),
    *(b"FOVb", b"II*\0IIII", b"MM\0*IIII"),
)
"""Starts of the raw files of Canon (two), Fujifilm, Panasonic, Olympus (three), Minolta, Sigma and Phase One. The raw
files of most others start as every TIFF does: `clca.data.tiff.is_raw` looks into those."""
_CONVERT = "convert it to JPEG or PNG"


class UnreadableImage(ClcaError):
    """An image file that cannot be read.

    Args:
        message: The reason, and what to do.
        code: The reason in machine-readable form.
    """

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code: Code = code


def format_of(head: bytes) -> str:
    """Identify a file's format: Pillow's name for it, one of `FORMATS`, or `RAW`.

    A raw photograph that starts as every TIFF does is identified as "TIFF", since its tags may be anywhere in the file.

    Args:
        head: The first `HEAD` bytes of the file, or all of a shorter one.

    Raises:
        UnreadableImage: With code `not_an_image`; the message names what the file is instead.
    """
    name = _format_of(head)
    if name in PLUGINS and name not in Image.OPEN and not has_plugin(name):
        raise missing_plugin(name)
    if name is None or name not in (*Image.OPEN, *PLUGINS):
        raise UnreadableImage(_describe_other(head), "not_an_image")
    return name


def missing_plugin(name: str) -> UnreadableImage:
    """Build the error for a photograph whose library is not installed."""
    kind = "an HEIC photograph" if name == "HEIF" else "a raw photograph"
    return UnreadableImage(f"is {kind}: {INSTALL}, or convert it to JPEG", "not_an_image")


def has_photo_signature(head: bytes) -> bool:
    """Return whether a file starts as a JPEG, PNG, WebP or TIFF does, the formats of photographs without an extension.

    The signatures of the other formats are so short that text could start with them.

    Args:
        head: At least the first 12 bytes of the file.
    """
    return _format_of(head) in ("JPEG", "PNG", "WEBP", "TIFF") or head.startswith(_TIFF)


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(_RAW_STARTS) or head[4:12] == b"ftypcrx ":
        return RAW
    if head.startswith(_TIFF):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:2] in _PNM and head[2:3] in tuple(bytes([blank]) for blank in _BLANKS):
        return "PPM"
    brands = _brands(head)
    if {b"avif", b"avis"} & set(brands):
        return "AVIF"
    return "HEIF" if set(brands) & set(_HEIC) else None


def _brands(head: bytes) -> list[bytes]:
    """The brands listed at the start of an ISO media file."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4]), len(head))
    return [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]


def _describe_other(head: bytes) -> str:
    """Describe a file of a format that is not read, from its first bytes."""
    if not head:
        return "the file is empty (0 bytes)"
    if not head.strip(b"\0"):
        return "contains only zero bytes: download or copy it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not an image: download it again"
    if b"<svg" in text:
        return "is an SVG drawing: convert it to PNG"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the image: run `git lfs pull`"
    if head.startswith(b"%PDF"):
        return "is a PDF, not an image"
    if head[:2] in _PLAIN_PNM:
        return f"is {_PLAIN_PNM[head[:2]]} in plain text, which is not read: {_CONVERT}"
    if head[:2] in _OTHER_PNM and head[2:3].isspace():
        return f"is {_OTHER_PNM[head[:2]]}, which is not read: {_CONVERT}"
    name = _pillow_name(head)
    if name is not None:
        return f"is {name}, which is not read: {_CONVERT}"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "is text, not an image"
    return "is not an image of a known format"


def _pillow_name(head: bytes) -> str | None:
    """Pillow's name of a format that is not in `FORMATS`; its plug-ins check the first bytes, nothing is decoded."""
    Image.init()
    prefix = head[:16].ljust(16, b"\0")  # some plug-ins index four bytes without checking the length
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if name in (*FORMATS, "MPO") or accept is None:
            continue
        try:
            accepted = accept(prefix) is True
        except Exception:  # in a third-party plug-in
            continue
        if accepted:
            return str(getattr(factory, "format_description", None) or name)
    return None
