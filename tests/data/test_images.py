"""Reading images: every kind of pixel becomes RGB, every broken file a one-line error that names it."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from forbidden import forbidden, readable_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clca.data.checks.report import verify_images
from clca.data.images import read_image
from clca.errors import ClcaError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def refused(path: Path, **options) -> str:
    """The error's one line."""
    with pytest.raises(ClcaError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_common_formats_and_modes_become_rgb(tmp_path, kind, mode):
    path = tmp_path / f"image.{kind.lower()}"
    picture = Image.new("RGB", (9, 7), WHITE).convert(mode)
    if kind in ("JPEG", "WEBP", "PPM") and mode == "P":
        picture = picture.convert("RGB")  # these cannot hold a palette
    picture.save(path, kind)

    image = read_image(path)

    assert image.mode == "RGB"
    assert image.size == (9, 7)
    assert np.asarray(image).min() > 250


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(path, quality=95)

    assert np.abs(np.asarray(read_image(path)).astype(int) - RED).max() < 8


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / name)

    grey = np.asarray(read_image(tmp_path / name))[..., 0]

    assert np.array_equal(grey.ravel(), np.arange(256))


def tiff(pixels: np.ndarray, photometric: int) -> bytes:
    """A grey TIFF whose 0 is white (photometric 0) or black (1)."""
    height, width = pixels.shape
    bits, offset = 8 * pixels.itemsize, 8 + 2 + 12 * 8 + 4
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: offset, 278: height, 279: pixels.nbytes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels.tobytes()


@pytest.mark.parametrize("kind", [np.uint8, np.dtype("<u2")])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_whose_zero_is_white_is_no_negative(tmp_path, kind, photometric):
    levels = np.arange(256).reshape(16, 16)
    (tmp_path / "scan.tif").write_bytes(tiff((levels * (np.iinfo(kind).max // 255)).astype(kind), photometric))

    grey = np.asarray(read_image(tmp_path / "scan.tif"))[..., 0]

    assert np.array_equal(grey, levels if photometric else 255 - levels)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_that_is_transparent_is_laid_on_white(tmp_path, kind):
    levels = np.arange(256).reshape(16, 16)
    unit = np.iinfo(kind).max // 255
    Image.fromarray((levels * unit).astype(kind)).save(tmp_path / "cutout.png", transparency=7 * unit)

    grey = np.asarray(read_image(tmp_path / "cutout.png"))[..., 0]

    assert np.array_equal(grey, np.where(levels == 7, 255, levels))


def test_float_and_wide_pixels_are_refused_by_name(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 1_000_000, np.int32)).save(tmp_path / "wide.tif")

    assert "floating-point" in refused(tmp_path / "float.tif")
    assert "32-bit" in refused(tmp_path / "wide.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA-ish palette"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    path = tmp_path / "cutout.png"
    if mode in ("RGBA", "LA"):
        picture = Image.new(mode, (8, 8), (0,) * len(mode))  # black below, but fully transparent
        picture.paste((0,) * (len(mode) - 1) + (255,), (0, 0, 4, 8))
        picture.save(path)
    else:
        picture = Image.new("P", (8, 8), 1)
        picture.putpalette([0, 0, 0, 9, 9, 9])
        picture.paste(0, (0, 0, 4, 8))
        picture.save(path, transparency=1)

    pixels = np.asarray(read_image(path))

    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_half_transparent_mixes_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "glass.png")

    assert np.abs(np.asarray(read_image(tmp_path / "glass.png"))[0, 0].astype(int) - (255, 127, 127)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))  # the corner at the top left
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that the camera made
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)

    assert np.array_equal(np.asarray(read_image(tmp_path / "phone.png")), np.asarray(upright))


def exif_of(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of tags (number, type, count, value of four bytes), as no library would write it."""
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    "tags",
    [
        [(0x0112, 3, 1, b"\6"), (0x011A, 2, 4, b"72")],  # a resolution as text: Pillow cannot write that again
        [(0x0112, 3, 1, b"\6"), (0x0132, 5, 1, b"")],
        [(0x0112, 3, 1, b"\6"), (0x0128, 8, 1, b"\xff\xff")],
        [(0x0112, 3, 1, b"\6"), (0x0213, 2, 4, b"1")],
        [(0x0112, 1, 1, b"\6")],  # a byte, where the standard has two
    ],
)
def test_rotation_does_not_depend_on_the_rest_of_exif(tmp_path, tags):
    upright = noise().resize((32, 16)).resize((64, 32))
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    sideways.save(tmp_path / "odd.jpg", quality=100, subsampling=0, exif=exif_of(*tags))

    found = read_image(tmp_path / "odd.jpg")

    assert found.size == (64, 32)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() < 2


def test_broken_exif_leaves_the_picture(tmp_path):
    noise().save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")

    assert read_image(tmp_path / "odd.jpg").size == (40, 30)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, kind):
    path = tmp_path / f"moving.{kind.lower()}"
    Image.new("RGB", (8, 8), RED).save(path, kind, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])

    assert np.abs(np.asarray(read_image(path))[4, 4].astype(int) - RED).max() < 8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (b"\0" * 5000, "zero bytes"),
        (b"sorry, no picture here\n", "is text"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>404</html>", "HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"%PDF-1.7\n\xff\xfe", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is Encapsulated Postscript, which is not read"),
        (bytes(range(256)) * 9, "not an image"),
    ],
)
def test_what_is_no_image_is_named_for_what_it_is(tmp_path, content, reason):
    path = tmp_path / "leaf.jpg"
    path.write_bytes(content)

    assert reason in refused(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_files_are_refused(tmp_path, kind):
    path = tmp_path / f"cut.{kind.lower()}"
    noise().save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert "damaged or truncated" in refused(path) or "not an image" in refused(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_end_was_never_copied_is_refused(tmp_path, progressive):
    """The disk space was reserved before; decoders take zeros for grey, and say nothing."""
    path = tmp_path / "cut.jpg"
    thumbnail = io.BytesIO()
    noise().save(thumbnail, "JPEG")  # with an end marker of its own
    noise(200, 200).save(path, quality=95, progressive=progressive, exif=b"Exif\0\0" + thumbnail.getvalue())
    whole = path.read_bytes()

    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    assert "damaged or truncated" in refused(path)

    path.write_bytes(whole + bytes(70_000))  # what some cameras do
    assert read_image(path).size == (200, 200)
    if not progressive:  # whose decoder waits for the marker
        path.write_bytes(whole[:-2] + bytes(500))  # and others leave the marker out
        assert read_image(path).size == (200, 200)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]), data=st.data())
def test_any_damage_gives_a_picture_or_a_clear_error(tmp_path, kind, data):
    buffer = io.BytesIO()
    noise(20, 20).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content)

    try:
        mode = read_image(path, max_pixels=10**6).mode
    except ClcaError:
        refused(path, max_pixels=10**6)
    else:
        assert mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with hardly any data: what a decompression bomb looks like from outside."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_100, 60_000])
def test_huge_images_are_refused_before_decoding(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))

    assert "over the limit of 170 million pixels" in refused(path)


def test_the_limit_can_be_set(tmp_path):
    noise(40, 30).save(tmp_path / "a.png")

    assert "40×30" in refused(tmp_path / "a.png", max_pixels=1199)
    assert read_image(tmp_path / "a.png", max_pixels=1200).size == (40, 30)


def test_missing_files_and_folders_are_named(tmp_path):
    assert "no such file" in refused(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "a folder, not an image file" in refused(tmp_path / "folder.jpg")


def test_paths_that_cannot_be_accessed_are_reported_with_the_reason(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    noise().save(tmp_path / "a.png")

    assert "many" in refused(tmp_path / "loop.jpg")  # levels of symbolic links, in the system's words
    assert refused(tmp_path / ("x" * 300 + ".jpg")).endswith(": file name too long")
    assert refused(tmp_path / "a.png" / "b.png").endswith(": not a directory")
    assert "damaged" not in refused(tmp_path / "zero\0byte.jpg")


@pytest.mark.parametrize("locked", ["a.png", "."])
def test_missing_permission_is_reported(locked):
    with readable_folder() as parent:
        (parent / "locked").mkdir()
        noise().save(parent / "locked" / "a.png")
        with forbidden(parent / "locked" / locked):
            assert refused(parent / "locked" / "a.png").endswith("a.png: permission denied")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "photo.png")
    assert "a FIFO or a device, not an image file" in refused(tmp_path / "photo.png")


def test_verify_names_each_bad_file_once_and_in_order(tmp_path):
    good, empty, text = tmp_path / "good.png", tmp_path / "empty.png", tmp_path / "text.png"
    noise().save(good)
    empty.write_bytes(b"")
    text.write_bytes(b"hello")

    bad = verify_images([text, good, empty, text, good], workers=3)

    assert [image.path for image in bad] == [text, empty]
    assert [image.reason for image in bad] == ["is text, not an image", "the file is empty (0 bytes)"]
    assert verify_images([good]) == []
