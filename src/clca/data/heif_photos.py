"""Read HEIC photographs, as phones write them, with libheif; requires the extra `photos`.

libheif itself rotates and mirrors the pixels as the file says, so the orientation in EXIF data is not used.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from clca.data.image_formats import UnreadableImage

decoding_threads: int | None = None
"""Number of threads that decode an image; None: as many as `pillow_heif` uses."""


def read_heif(data: bytes, check_size: Callable[[int, int], None]) -> Image.Image:
    """Decode the first image of a file, upright, with its colour profile in `info`.

    Args:
        data: The file.
        check_size: Raises an error if an image of this width and height must not be decoded.

    Raises:
        UnreadableImage: Its header is damaged, or it is not of a kind that libheif reads.
        Exception: Its pixels are damaged.
    """
    import pillow_heif

    if decoding_threads is not None:
        pillow_heif.options.DECODE_THREADS = decoding_threads
    try:
        image = pillow_heif.open_heif(io.BytesIO(data))
        width, height = image.size
    except Exception:  # `ValueError`, `RuntimeError` and others
        raise UnreadableImage(
            "is an HEIC photograph whose header cannot be read: copy it again, or convert it to JPEG", "not_an_image"
        ) from None
    check_size(width, height)
    return image.to_pillow()
