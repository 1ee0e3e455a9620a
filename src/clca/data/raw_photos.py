"""Develop raw photographs (DNG, NEF, CR2 …) with LibRaw; requires the extra `photos`.

White balance is that of the camera, output sRGB with 8 bits, upright as the camera noted. Brightness is not adapted to
each photograph, so that photographs with the same exposure stay comparable.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from clca.data.image_formats import RAW, UnreadableImage, has_plugin, missing_plugin

_FULL_SIDE = 1024  # pixels that the shorter side keeps at least
_SRGB_CURVE = (2.4, 12.92)  # exponent, and slope in the shadows


def develop(data: bytes, check_size: Callable[[int, int], None]) -> Image.Image:
    """Develop the content of a raw file.

    Large photographs are developed at half size, one pixel for each red, green, green and blue of the sensor: this
    takes a fraction of the time and leaves more pixels than any model uses.

    Args:
        data: The file.
        check_size: Raises an error if an image of this width and height must not be decoded.

    Raises:
        UnreadableImage: LibRaw is not installed, or does not read the file.
    """
    if not has_plugin(RAW):
        raise missing_plugin(RAW)
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(data)) as photo:
            sizes = photo.sizes
            check_size(sizes.raw_width, sizes.raw_height)
            half = min(sizes.width, sizes.height) >= 2 * _FULL_SIDE
            pixels: Any = photo.postprocess(
                use_camera_wb=True, half_size=half, no_auto_bright=True, adjust_maximum_thr=0.0, gamma=_SRGB_CURVE,
                output_color=rawpy.ColorSpace.sRGB, output_bps=8,
            )  # fmt: skip
    except rawpy.LibRawFileUnsupportedError:
        raise UnreadableImage(
            "is a raw photograph of a kind that LibRaw does not read: convert it to JPEG", "not_an_image"
        ) from None
    except rawpy.LibRawError:
        raise UnreadableImage("is a raw photograph that is damaged or truncated: copy it again", "damaged") from None
    colours = pixels if pixels.shape[2] == 3 else pixels[..., 0]  # of a monochrome sensor
    return Image.fromarray(colours).convert("RGB")
