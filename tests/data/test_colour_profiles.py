"""Colour profiles: what a browser shows, in every format and mode; a broken profile changes nothing and is reported."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    D50,
    cmyk_profile,
    converted,
    curve,
    description,
    grey_profile,
    linear_to_srgb,
    profile,
    rgb_profile,
    xyz,
)  # fmt: skip
from PIL import Image, ImageCms

from clca.data.cache.fill import reader_settings
from clca.data.colour_profiles import read_profile
from clca.data.images import Decoded, decode, read_image
from clca.data.transforms import SquareResize

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 90}, "AVIF": {}}
OTHERS = ("Display P3", "Adobe RGB (1998)", "ProPhoto RGB")
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", icc: bytes | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=icc, **{**LOSSLESS, **LOSSY}[kind], **options)
    return buffer.getvalue()


def levels(decoded: Decoded) -> np.ndarray:
    return np.asarray(decoded.image).astype(int)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_colours_are_those_of_the_plain_formula(name, kind):
    image = Image.fromarray(PIXELS)
    plain = decode(saved(image, kind))

    found = decode(saved(image, kind, rgb_profile(name)))

    assert (found.profile, found.profile_problem) == (name, None)
    assert np.abs(levels(found) - converted(name, levels(plain))).max() <= 1


def test_a_leaf_in_another_space_looks_the_same(tmp_path):
    """What the user does: the same leaf, exported by a phone in Display P3, and by another program in sRGB."""
    rng = np.random.default_rng(1)
    leaf = rng.integers(40, 200, (24, 24, 3), dtype=np.uint8)
    other = np.round(converted("Display P3", leaf)).astype(np.uint8)
    Image.fromarray(leaf).save(tmp_path / "p3.png", icc_profile=rgb_profile("Display P3"))
    Image.fromarray(other).save(tmp_path / "srgb.png", icc_profile=rgb_profile("sRGB"))

    p3, srgb = (np.asarray(read_image(tmp_path / name)).astype(int) for name in ("p3.png", "srgb.png"))

    assert np.abs(p3 - srgb).max() <= 1
    assert np.abs(p3 - leaf).max() > 8


SRGB = {
    "written by hand": rgb_profile("sRGB"),
    "with another name": rgb_profile("sRGB", "Some monitor"),
    "LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "curve of 1024 values": profile(
        b"RGB ",
        {
            b"desc": description("sRGB IEC61966-2.1"), b"wtpt": xyz(D50),
            b"rXYZ": xyz((0.4361, 0.2225, 0.0139)), b"gXYZ": xyz((0.3851, 0.7169, 0.0971)),
            b"bXYZ": xyz((0.1431, 0.0606, 0.7141)),
            **{
                tag: b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *np.round(
                    65535 * np.where((x := np.linspace(0, 1, 1024)) <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
                ).astype(int)) for tag in (b"rTRC", b"gTRC", b"bTRC")
            },
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("icc", SRGB.values(), ids=SRGB)
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_srgb_changes_no_bit(icc, kind):
    image = Image.fromarray(PIXELS)

    found = decode(saved(image, kind, icc))

    assert np.array_equal(levels(found), levels(decode(saved(image, kind))))
    assert (found.profile, found.profile_problem) == (None, None)


def test_only_the_numbers_of_a_profile_count():
    found = decode(saved(Image.fromarray(PIXELS), "PNG", rgb_profile("Display P3", "sRGB IEC61966-2.1")))

    assert np.abs(levels(found) - converted("Display P3", PIXELS)).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_is_converted_and_stays_grey(depth):
    grey = np.arange(256).reshape(16, 16)
    pixels = grey.astype(np.uint8) if depth == 8 else (grey * 257).astype(np.uint16)

    found = decode(saved(Image.fromarray(pixels), "PNG", grey_profile(1.8)))

    expected = np.round(255 * linear_to_srgb((grey / 255) ** 1.8))
    assert found.profile == "Grey 1.8"
    assert np.abs(levels(found) - expected[..., None]).max() <= 1
    assert np.ptp(levels(found), axis=2).max() == 0


def test_sixteen_bit_colours_are_converted():
    wide = (PIXELS.astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    icc = zlib.compress(rgb_profile("Adobe RGB (1998)"))
    content = png(
        (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)),
        (b"iCCP", b"x\0\0" + icc),
        (b"IDAT", zlib.compress(rows)),
    )

    assert np.abs(levels(decode(content)) - converted("Adobe RGB (1998)", PIXELS)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_colours_are_converted_before_they_are_laid_on_white(kind):
    image = Image.fromarray(PIXELS)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24] = 255
    image.putalpha(Image.fromarray(mask))

    found = decode(saved(image, kind, rgb_profile("Display P3"), **({"exact": True} if kind == "WEBP" else {})))

    expected = np.where(mask[..., None] > 0, converted("Display P3", PIXELS), 255)
    assert np.abs(levels(found) - expected).max() <= 1


@pytest.mark.parametrize("transparent", [None, 3])
def test_palettes_are_converted(transparent):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    palette = np.random.default_rng(2).integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(palette.tobytes())
    options = {} if transparent is None else {"transparency": transparent}

    found = decode(saved(image, "PNG", rgb_profile("ProPhoto RGB"), **options))

    expected = converted("ProPhoto RGB", palette[:16].reshape(4, 4, 3))
    if transparent is not None:
        expected[0, 3] = 255
    assert np.abs(levels(found) - expected).max() <= 1


def press(inks: np.ndarray) -> np.ndarray:
    """A press whose inks are no pure cyan, magenta and yellow, on yellowish paper."""
    paper, taken = np.array([250, 245, 230]), np.array([[230, 60, 10], [20, 220, 110], [5, 30, 200]])
    return np.clip(paper - inks[:, :3] @ taken, 5, 255) * (1 - 0.95 * inks[:, 3:])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_are_converted_with_their_profile(kind):
    inks = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]])
    image = Image.frombytes("CMYK", (5, 1), (inks * 255).astype(np.uint8).tobytes()).resize(
        (80, 16), Image.Resampling.NEAREST
    )
    options = {"subsampling": 0, "quality": 100} if kind == "JPEG" else {}
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=cmyk_profile(press), **options)

    found = decode(buffer.getvalue())

    centres = levels(found)[8, 8::16]
    colours = press(inks) * 255 / press(inks[:1])  # white paper becomes white
    assert found.kind == f"{kind} CMYK"
    assert found.profile == "Press"
    assert (
        np.abs(centres - colours)[:4].max() < 45
    )  # a profile of 16 points is coarse; naive cyan would be (0, 255, 255)
    assert np.abs(centres[1] - (0, 255, 255)).max() > 60
    assert centres[0].min() >= 253


COLOURS, GREY = Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0])
LAB = profile(b"Lab ", {b"desc": description("x")})
MISMATCHED = {
    "grey profile, colours": (COLOURS, grey_profile(1.8), "is for grey and the pixels are RGB"),
    "press, colours": (COLOURS, cmyk_profile(press), "is for CMYK and the pixels are RGB"),
    "colours, grey": (GREY, rgb_profile("Adobe RGB (1998)"), "is for RGB and the pixels are grey"),
    "colours, inks": (COLOURS.convert("CMYK"), rgb_profile("Display P3"), "is for RGB and the pixels are CMYK"),
    "Lab, colours": (COLOURS, LAB, "is for Lab and the pixels are RGB"),
}


@pytest.mark.parametrize(("image", "icc", "problem"), MISMATCHED.values(), ids=MISMATCHED)
def test_a_profile_for_other_pixels_is_ignored_and_reported(image, icc, problem):
    found = decode(saved(image, "TIFF", icc))

    assert (found.profile, found.profile_problem) == (None, problem)
    assert np.array_equal(levels(found), levels(decode(saved(image, "TIFF"))))


def test_srgb_in_a_grey_file_is_harmless():
    found = decode(saved(Image.fromarray(PIXELS[..., 0]), "JPEG", rgb_profile("sRGB")))

    assert (found.profile, found.profile_problem) == (None, None)


def flat_profile() -> bytes:
    columns = {tag: xyz((0, 0, 0)) for tag in (b"rXYZ", b"gXYZ", b"bXYZ")}
    curves = {tag: curve(None) for tag in (b"rTRC", b"gTRC", b"bTRC")}
    return profile(b"RGB ", {b"desc": description("black"), b"wtpt": xyz(D50), **columns, **curves})


P3 = rgb_profile("Display P3")
BROKEN = {
    "text": (b"not a profile at all", "cannot be read"),
    "cut in the header": (P3[:100], "cannot be read"),
    "cut in the tags": (P3[:-150], "cannot be read"),
    "zeros": (bytes(5000), "cannot be read"),
    "only a header": (P3[:128] + bytes(4), "cannot be read"),
    "all black": (flat_profile(), "would make all colours alike"),
    "device link": (P3[:12] + b"link" + P3[16:], "is not one of a camera, scanner, monitor, printer or colour space"),
    "huge": (P3.ljust(9 << 20, b"\0"), "has more than 8 MiB"),
}


@pytest.mark.parametrize(("icc", "problem"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_a_broken_profile_is_ignored_and_reported(kind, icc, problem):
    image = Image.fromarray(PIXELS)

    found = decode(saved(image, kind, icc))

    assert (found.profile, found.profile_problem) == (None, problem)
    assert np.array_equal(levels(found), levels(decode(saved(image, kind))))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    framed = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed) + b"\0\0\0\0IEND\xaeB\x60\x82"


def png_with(name: bytes, body: bytes) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    return png((b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)), (name, body), (b"IDAT", zlib.compress(rows)))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"name", b"name\0", b"name\0\1" + zlib.compress(P3), b"name\0\0garbage",
        b"name\0\0" + zlib.compress(P3)[:60], b"name\0\0" + zlib.compress(bytes(200 << 20), 9),
    ],
    ids=["empty", "no end of the name", "no method", "other method", "no zlib", "cut", "bomb"],
)  # fmt: skip
def test_a_broken_profile_in_a_png_does_not_make_it_unreadable(body):
    found = decode(png_with(b"iCCP", body))

    assert found.profile is None
    assert found.profile_problem in ("cannot be read", "has more than 8 MiB")
    assert np.array_equal(levels(found), PIXELS)


def test_a_profile_of_which_parts_are_missing_is_reported():
    content = saved(Image.fromarray(PIXELS), "JPEG", P3 + bytes(100_000))  # in two parts
    second = content.index(b"ICC_PROFILE\0\2") - 4
    length = int.from_bytes(content[second + 2 : second + 4]) + 2

    found = decode(content[:second] + content[second + length :])

    assert (found.profile, found.profile_problem) == (None, "cannot be read")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
        (b"cICP", bytes((12, 13, 0, 1))),
    ],
)
def test_colour_chunks_of_png_other_than_profiles_are_ignored(name, body):
    found = decode(png_with(name, body))

    assert np.array_equal(levels(found), PIXELS)
    assert (found.profile, found.profile_problem) == (None, None)


@settings(max_examples=80, deadline=None)
@given(
    icc=st.sampled_from([P3, grey_profile(1.8), cmyk_profile(press), SRGB["LittleCMS"]]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_any_damage_to_a_profile_leaves_a_picture(icc, changes, mode):
    damaged = bytearray(icc)
    for place, value in changes:
        damaged[place % len(damaged)] = value

    found = decode(saved(Image.fromarray(PIXELS[:4, :4]).convert(mode), "TIFF", bytes(damaged)))

    assert found.image.size == (4, 4)
    assert found.image.mode == "RGB"
    assert found.profile is None or found.profile_problem is None


def test_a_name_from_a_file_is_short_and_on_one_line():
    name = read_profile(rgb_profile("Display P3", "Very\nlong " + "x" * 500), "RGB").name

    assert name is not None
    assert "\n" not in name
    assert len(name) <= 60
    assert read_profile(rgb_profile("Display P3", " "), "RGB").name == "without a name"


def test_the_cache_is_made_anew_with_another_colour_library(monkeypatch):
    from PIL import features

    before = reader_settings(SquareResize(224))
    assert before["reading"] >= 4
    assert "littlecms2" in before["decoders"]
    version = features.version
    monkeypatch.setattr(features, "version", lambda name: "0.1" if name == "littlecms2" else version(name))
    assert reader_settings(SquareResize(224)) != before
