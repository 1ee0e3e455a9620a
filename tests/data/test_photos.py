"""HEIC and raw photographs: upright, in sRGB, from their content alone; and one line if the extra is missing."""

import io
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import converted, dng, linear_to_srgb, rgb_profile
from PIL import Image

from clca.data import image_formats
from clca.data.checks.decode import Inspection, inspect_images
from clca.data.checks.report import check
from clca.data.decoding import Decoders
from clca.data.image_formats import UnreadableImage
from clca.data.images import _TRANSPOSES, decode, decode_image, read_image

needs_heif = pytest.mark.skipif(
    find_spec("pillow_heif") is None, reason="the extra photos (pillow-heif) is not installed"
)
needs_raw = pytest.mark.skipif(find_spec("rawpy") is None, reason="the extra photos (rawpy) is not installed")

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def heic(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    written = pillow_heif.from_pillow(image)
    if exif is not None:
        written[0].info["exif"] = exif.tobytes()  # from which it writes the rotation
    written.save(buffer, quality=100, chroma=444)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(1) as started:
        yield started


def levels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content).image).astype(int)


# -- HEIC --------------------------------------------------------------------------------------------------------------


@needs_heif
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_upright_and_in_srgb(orientation):
    image, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[0x0112] = orientation
    upright = image.transpose(_TRANSPOSES[orientation]) if orientation > 1 else image
    image.info["icc_profile"] = rgb_profile("Display P3")

    found = decode(heic(image, exif))

    assert (found.kind, found.profile, found.profile_problem) == ("HEIF RGB", "Display P3", None)
    assert found.image.size == upright.size
    assert np.abs(np.asarray(found.image) - converted("Display P3", np.asarray(upright))).mean() < 2


@needs_heif
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_heic_of_any_mode_becomes_rgb(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.where(np.indices((96, 128))[0] < 48, 255, 0).astype(np.uint8)))

    found = levels(heic(image))

    expected = PIXELS if mode != "L" else np.asarray(image.convert("RGB"))
    assert np.abs(found[:40] - expected[:40]).mean() < 3
    if mode == "RGBA":
        assert found[56:].min() > 250


@needs_heif
def test_heic_has_the_limits_of_other_formats(tmp_path):
    content = heic(Image.fromarray(PIXELS))
    (tmp_path / "a.heic").write_bytes(content)

    with pytest.raises(UnreadableImage, match="128×96 is over the limit"):
        decode(content, max_pixels=128 * 96 - 1)
    for cut in (40, len(content) // 2, len(content) - 200):
        with pytest.raises(UnreadableImage, match=r"HEIC|damaged"):
            decode(content[:cut])
    with pytest.raises(UnreadableImage, match="one side is more than"):
        decode(heic(Image.new("RGB", (7000, 64))))
    assert read_image(tmp_path / "a.heic").size == (128, 96)


# -- raw ---------------------------------------------------------------------------------------------------------------


@needs_raw
@pytest.mark.parametrize("colour", [(8000, 16000, 4000), (50000, 6000, 6000), (2000, 2000, 40000)])
def test_raw_colours_are_those_of_the_plain_formula(colour):
    found = decode(dng(colour))

    assert (found.kind, found.image.size) == ("RAW RGB", (64, 48))
    expected = 255 * linear_to_srgb(np.array(colour) / 65535)
    assert np.abs(np.asarray(found.image)[8:-8, 8:-8].mean(axis=(0, 1)) - expected).max() < 3


@needs_raw
def test_the_photograph_is_read_not_its_preview():
    """The preview is magenta, of 8 × 6 pixels, and what Pillow finds in the file."""
    content = dng((4000, 30000, 4000), dng_tag=True)
    assert Image.open(io.BytesIO(content)).size == (8, 6)

    pixels = levels(content).mean(axis=(0, 1))

    assert pixels[1] > pixels[0] + 50


@needs_raw
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_raw_is_upright(orientation):
    content = dng((4000, 4000, 4000), (64, 48), orientation, corner=(60000, 60000, 60000))

    pixels = levels(content)[..., 1]

    corner = {1: (0, 0), 3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
    assert pixels.shape == ((48, 64) if orientation in (1, 3) else (64, 48))
    assert pixels[corner] > 200
    assert sum(pixels[place] > 200 for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))) == 1


@needs_raw
def test_brightness_is_not_adapted_to_the_photograph():
    dim, bright = (levels(dng((level,) * 3))[24, 32, 1] for level in (3000, 24000))

    assert abs(dim - 255 * linear_to_srgb(np.array(3000 / 65535))) < 3
    assert abs(bright - 255 * linear_to_srgb(np.array(24000 / 65535))) < 3


@needs_raw
def test_large_raw_photographs_are_read_at_half_size():
    assert decode(dng(size=(2560, 2048))).image.size == (1280, 1024)
    assert decode(dng(size=(2560, 2046))).image.size == (2560, 2046)


@needs_raw
def test_raw_has_the_limits_of_other_formats():
    with pytest.raises(UnreadableImage, match="64×48 is over the limit"):
        decode(dng(), max_pixels=64 * 48 - 1)
    with pytest.raises(UnreadableImage, match="one side is more than"):
        decode(dng(size=(6600, 64)))


@needs_raw
@pytest.mark.parametrize(
    "content", [b"FUJIFILMCCD-RAW " + bytes(4000), dng()[:300], b"II*\0\x10\0\0\0CR\2\0" + bytes(500)]
)
def test_raw_that_libraw_does_not_read_is_one_line(content):
    with pytest.raises(UnreadableImage) as caught:
        decode(content)
    assert "\n" not in str(caught.value)
    assert "raw photograph" in str(caught.value) or "damaged" in str(caught.value)


@needs_raw
def test_a_truncated_raw_photograph_is_refused():
    content = dng()
    for cut in (1000, 3000, 6000):
        with pytest.raises(UnreadableImage, match="is a raw photograph that is damaged or truncated"):
            decode(content[:-cut])


@needs_raw
def test_a_raw_header_cannot_claim_much():
    content = dng()
    for size, message in (
        ((60000, 60000), "over the limit of 170 million pixels"),
        ((9000, 9000), "damaged or truncated"),
    ):
        claimed = content
        for tag, true, false in ((256, 64, size[0]), (257, 48, size[1])):
            claimed = claimed.replace(struct.pack("<HHII", tag, 4, 1, true), struct.pack("<HHII", tag, 4, 1, false))
        with Decoders(1) as decoders, pytest.raises(UnreadableImage, match=message):
            decoders.image(claimed)


@needs_raw
@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=5))
def test_any_damage_to_a_raw_header_gives_a_picture_or_one_line(decoders, changes):
    damaged = bytearray(dng())
    for place, value in changes:
        damaged[place] = value
    try:
        image, _ = decoders.image(bytes(damaged))  # LibRaw is written in C
    except UnreadableImage as error:
        assert "\n" not in str(error)  # noqa: PT017 (either is right)
    else:
        assert image.mode == "RGB"


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_heif
@needs_raw
def test_folders_uploads_and_checks_take_them(tmp_path):
    names = ["phone.HEIC", "camera.dng", "plain.png"]
    for number, split in enumerate(("train", "test")):
        for name in "ab":
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            image = Image.fromarray(np.roll(PIXELS, 30 * (number + 2 * (name == "b")), axis=0))
            (folder / names[0]).write_bytes(heic(image))
            (folder / names[1]).write_bytes(
                dng((9000, 9000, 9000), corner=(60000, 9000 * (1 + number), 900 if name == "a" else 60000))
            )
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / names[2])

    report = check(tmp_path)

    assert report.kinds == {"RAW RGB": 4, "HEIF RGB": 4, "PNG RGB": 4}
    assert report.errors == []
    assert not any("left out" in line for line in report.warnings)
    with Decoders(1) as decoders:
        for name in names[:2]:
            image, _ = decoders.image((tmp_path / "train" / "a" / name).read_bytes())  # an upload has no name
            assert np.array_equal(np.asarray(image), np.asarray(read_image(tmp_path / "train" / "a" / name)))
    (found,) = inspect_images([tmp_path / "train" / "a" / "camera.dng"])
    assert isinstance(found, Inspection)
    assert found.size == (64, 48)


MISSING = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is an HEIC photograph"),
    "DNG": (dng(), "is a raw photograph"),
    "NEF": (dng(dng_tag=False), "is a raw photograph"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "is a raw photograph"),
    "CR3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100), "is a raw photograph"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(100), "is a raw photograph"),
    "ORF": (b"IIRO\x08\0\0\0" + bytes(100), "is a raw photograph"),
    "RW2": (b"IIU\0\x18\0\0\0" + bytes(100), "is a raw photograph"),
}


@pytest.mark.parametrize(("content", "what"), MISSING.values(), ids=MISSING)
def test_without_the_extra_one_line_names_it(content, what, monkeypatch):
    monkeypatch.setattr(image_formats, "find_spec", lambda name: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)

    with pytest.raises(UnreadableImage) as caught:
        decode_image(content)

    message = f"{what}: install the extra photos (pip install 'clca[photos]'), or convert it to JPEG"
    assert (str(caught.value), caught.value.code) == (message, "not_an_image")


def test_extensions_are_those_of_what_is_installed(monkeypatch):
    for installed, expected in (((), set()), (("rawpy",), {".nef"}), (("rawpy", "pillow_heif"), {".nef", ".heic"})):
        monkeypatch.setattr(image_formats, "find_spec", lambda name, among=installed: name if name in among else None)
        assert image_formats.read_extensions() & {".nef", ".heic", ".svg"} == expected


def test_listing_loads_neither_library(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.nef").touch()
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
    program = (
        "import sys; from clca.data.sources.folder_csv import read_folder; from pathlib import Path\n"
        "listing = read_folder(Path(sys.argv[1]))\n"
        "assert listing.splits\n"
        "print([name for name in ('rawpy', 'pillow_heif', 'torch', 'PIL.ImageCms') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
