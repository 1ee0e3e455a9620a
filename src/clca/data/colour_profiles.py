"""Convert pixels from the colour space of an embedded ICC profile to sRGB, as a browser does.

Perceptual intent with black point compensation: this is what browsers do with profiles of a matrix and curves (Display
P3, Adobe RGB, ProPhoto), for which all intents are the same and colours outside sRGB are clipped, and with those of
tables (presses, scanners).

A profile counts as sRGB if the conversion would change no colour by more than two levels; the pixels are then left
exactly as they are. Only ICC profiles count, in all formats but BMP and GIF: the colour chunks of PNG (gAMA, cHRM,
cICP) and the colour codes of AVIF and HEIF (nclx) are ignored, as is the colour space in EXIF data.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from clca.data.image_bounds import MAX_PROFILE_BYTES

_SAME = 2  # levels; profiles that say sRGB differ by up to this, since some round its curve to a short table
_LEAST_SPAN = 64  # levels of each channel between the darkest and the brightest result of a usable profile
_NAME_LENGTH = 60

_HEADER = 132  # bytes
_DEVICES = (b"scnr", b"mntr", b"prtr", b"spac")
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""Pillow's mode of the pixels that a profile applies to, by its colour space."""
_SPACES = {b"RGB ": "RGB", b"GRAY": "grey", b"CMYK": "CMYK", b"Lab ": "Lab"}
_MODE_OF = {
    "1": "L", "L": "L", "LA": "L", "La": "L",
    "P": "RGB", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB", "RGBa": "RGB", "YCbCr": "RGB",
    "CMYK": "CMYK", "LAB": "LAB",
}  # fmt: skip


class Profile(NamedTuple):
    """What is known of an embedded profile.

    Attributes:
        name: Its description; None if it is sRGB, or cannot be used.
        problem: Why it cannot be used, in words that follow "its colour profile".
        convert: Converts pixels of one mode ("RGB", "L" or "CMYK") to RGB; None if they are sRGB or it cannot be used.
    """

    name: str | None = None
    problem: str | None = None
    convert: Callable[[Image.Image], Image.Image] | None = None


def read_profile(icc: object, mode: str) -> Profile:
    """Read the profile of an image.

    Args:
        icc: The content of the profile.
        mode: Pillow's mode of the image.
    """
    if isinstance(icc, bytes) and len(icc) > MAX_PROFILE_BYTES:
        return Profile(problem=f"has more than {MAX_PROFILE_BYTES >> 20} MiB")
    if not isinstance(icc, bytes) or len(icc) < _HEADER or icc[36:40] != b"acsp":
        return Profile(problem="cannot be read")
    if icc[12:16] not in _DEVICES:
        return Profile(problem="is not one of a camera, scanner, monitor, printer or colour space")
    space, pixels = icc[16:20], _MODE_OF.get(mode, mode)
    if space == b"Lab " and pixels == "LAB":
        return Profile()  # Pillow converts these
    if space == b"RGB " and pixels == "L" and _read(icc).convert is None:  # harmless: greys of sRGB
        return Profile(problem=_read(icc).problem)
    if space not in _MODES or _MODES[space] != pixels:
        of = _SPACES.get(space, repr(space.decode("latin1").strip()))
        kind = {"L": "grey", "LAB": "Lab"}.get(pixels, pixels)
        return Profile(problem=f"is for {of} and the pixels are {kind}")
    return _read(icc)


def to_srgb(image: Image.Image, profile: Profile) -> Image.Image:
    """Convert an image with its profile; an alpha channel is kept.

    Args:
        image: In one of the modes that match the profile.
        profile: As from `read_profile`.

    Returns:
        The same image if there is nothing to convert; otherwise RGB, or RGBA if it has transparency.
    """
    if profile.convert is None:
        return image
    if image.mode == "CMYK":
        return profile.convert(image)
    grey = _MODE_OF[image.mode] == "L"
    if not image.has_transparency_data:
        return profile.convert(image.convert("L" if grey else "RGB"))
    layers = image.convert("LA" if grey else "RGBA")
    colours = profile.convert(layers.convert("L") if grey else layers.convert("RGB"))
    colours.putalpha(layers.getchannel("A"))
    return colours


@lru_cache(maxsize=8)
def _read(icc: bytes) -> Profile:
    """The conversion from an RGB, grey or CMYK profile; the images of a set mostly share one."""
    mode = _MODES[icc[16:20]]
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        colours = _sample(mode)
        found = np.asarray(transform.apply(colours)).astype(np.int16)
    except MemoryError:
        raise
    except Exception:  # LittleCMS is missing, or refuses the profile
        return Profile(problem="cannot be read")
    if (np.ptp(found.reshape(-1, 3), axis=0) < _LEAST_SPAN).any():
        return Profile(problem="would make all colours alike")
    if mode != "CMYK" and np.abs(found - np.asarray(colours.convert("RGB"))).max() <= _SAME:
        return Profile()
    return Profile(_description(source), None, transform.apply)


def _sample(mode: str) -> Image.Image:
    """Pixels of all colours, evenly: every grey, or 17 levels of red, green and blue, or 5 of each ink."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    bands, steps = (3, 17) if mode == "RGB" else (4, 5)
    levels = np.round(np.linspace(0, 255, steps)).astype(np.uint8)
    every = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), axis=-1).reshape(1, -1, bands)
    return Image.frombytes(mode, (every.shape[1], 1), every.tobytes())


def _description(profile: ImageCms.ImageCmsProfile) -> str:
    try:
        name = " ".join(ImageCms.getProfileDescription(profile).split())
    except Exception:  # a profile without a description, or with a damaged one
        name = ""
    return name[:_NAME_LENGTH] or "without a name"
