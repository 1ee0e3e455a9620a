"""Which image formats are read, decided from a file's first bytes, and the names of those that are not."""

from __future__ import annotations

from typing import Literal

from PIL import (
    AvifImagePlugin,  # noqa: F401  (each registers its format; `Image.init` would load forty)
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
"""Pillow's names of the formats that are read: those in which people photograph and scan. HEIF needs a plug-in that has
registered itself with Pillow. Everything else that Pillow knows is refused by name before any decoder sees it."""

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".tif", ".tiff"),
        *(".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""File name endings, in lower case, that are taken for images when a folder is listed."""

HEAD = 4096
"""Bytes of a file from which its format is found and, where it is none, what it is instead."""

Code = Literal["not_an_image", "too_many_pixels", "too_long", "too_narrow", "damaged", "too_slow", "busy"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0")  # Pillow takes three more beginnings, which no program writes
_PNM = (b"P4", b"P5", b"P6")
_PLAIN_PNM = {b"P1": "PBM", b"P2": "PGM", b"P3": "PPM"}
_OTHER_PNM = {b"Pf": "PFM", b"PF": "PFM", b"P7": "PAM"}
_BLANKS = b" \t\n\v\f\r#"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_CONVERT = "convert it to JPEG or PNG"


class UnreadableImage(ClcaError):
    """An image that is refused.

    Args:
        message: The reason, and what to do.
        code: The reason as one word, for programs.
    """

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code: Code = code


def format_of(head: bytes) -> str:
    """Pillow's name of a file's format, one of `FORMATS`.

    Args:
        head: The first `HEAD` bytes of the file, or all where it is shorter.

    Raises:
        UnreadableImage: `not_an_image`, with what the file is instead.
    """
    name = _format_of(head)
    if name is None or name not in Image.OPEN:
        raise UnreadableImage(_what_it_is_instead(head), "not_an_image")
    return name


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
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
    """Brands that an ISO media file names."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4]), len(head))
    return [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]


def _what_it_is_instead(head: bytes) -> str:
    """Names a file of a format that is not read, from its first bytes."""
    if not head:
        return "the file is empty (0 bytes)"
    if not head.strip(b"\0"):
        return "holds only zero bytes: download or copy it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not an image: download it again"
    if b"<svg" in text:
        return "is an SVG drawing: convert it to PNG"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the image: run `git lfs pull`"
    if head.startswith(b"%PDF"):
        return "is a PDF, not an image"
    if set(_brands(head)) & set(_HEIC):
        return "is an HEIC photograph: convert it to JPEG"
    if head[:2] in _PLAIN_PNM:
        return f"is {_PLAIN_PNM[head[:2]]} in plain text, which is not read: {_CONVERT}"
    if head[:2] in _OTHER_PNM and head[2:3].isspace():
        return f"is {_OTHER_PNM[head[:2]]}, which is not read: {_CONVERT}"
    name = _name_of_other(head)
    if name is not None:
        return f"is {name}, which is not read: {_CONVERT}"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "is text, not an image"
    return "is not an image of a known format"


def _name_of_other(head: bytes) -> str | None:
    """What Pillow calls a format that it would read. Its plug-ins look at the first bytes, and nothing is opened."""
    Image.init()
    prefix = head[:16].ljust(16, b"\0")  # some look at four bytes without asking whether there are four
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if name in (*FORMATS, "MPO") or accept is None:
            continue
        try:
            accepted = accept(prefix) is True
        except Exception:  # of a plug-in that someone has installed
            continue
        if accepted:
            return str(getattr(factory, "format_description", None) or name)
    return None
