"""TIFFs of scientific cameras: bands beyond three, bits between 8 and 16, and transparency that is none."""

import io
import os

import numpy as np
import pytest
from image_files import dng, tiff
from PIL import Image

from clca.data.image_formats import UnreadableImage
from clca.data.images import decode
from clca.data.tiff import is_raw

ROWS, COLUMNS = np.indices((40, 60))
LEAF = ((ROWS - 20) ** 2 / 200 + (COLUMNS - 30) ** 2 / 500 < 1)[..., None]
RGB = np.where(LEAF, [60, 140, 50], [200, 190, 170]) + (ROWS + COLUMNS)[..., None] % 40
RGB = RGB.astype(np.uint8)
GREY = np.arange(2400).reshape(40, 60) * 255 // 2399
NIR = np.where(LEAF, 200, 40) + (ROWS[..., None] * 3) % 50  # leaves are bright in the near infrared
NIR = NIR.astype(np.uint8)
MASK = np.where(LEAF, 255, 0).astype(np.uint8)
FOUR = np.concatenate([RGB, NIR], axis=2)
UNIT = {np.uint8: 1, np.uint16: 257}


def levels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content).image).astype(int)


def refused(content: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("extra", [(2,), (1,), None], ids=["opacity", "premultiplied", "not said"])
@pytest.mark.parametrize("kind", UNIT)
def test_near_infrared_marked_as_transparency_hides_nothing(kind, extra, planar):
    content = tiff(FOUR.astype(kind) * UNIT[kind], extra=extra, planar=planar)

    found = decode(content)

    assert np.array_equal(levels(content), RGB)
    assert found.left_out is not None
    assert found.left_out.startswith("has 4 bands; the fourth, although marked as transparency, is no mask")


BANDS = {
    "dark soil around the leaf": np.where(LEAF, 180, 3).astype(np.uint8) + (ROWS[..., None] % 30).astype(np.uint8),
    "12 of 16 bits": (NIR // 16).astype(np.uint8),
    "empty but for one pixel": np.where((ROWS == 5) & (COLUMNS == 5), 255, 0).astype(np.uint8)[..., None],
    "empty": np.zeros_like(NIR),
    "the same everywhere": np.full_like(NIR, 128),
}


@pytest.mark.parametrize("band", BANDS.values(), ids=BANDS)
def test_what_no_mask_can_be_is_no_transparency(band):
    content = tiff(np.concatenate([RGB, band], axis=2), extra=(2,))

    assert np.array_equal(levels(content), RGB)


def test_a_second_band_beside_grey_hides_nothing_either():
    grey = GREY[..., None].astype(np.uint8)

    found = decode(tiff(np.concatenate([grey, NIR], axis=2), photometric=1, extra=(2,)))
    masked = levels(tiff(np.concatenate([grey, MASK], axis=2), photometric=1, extra=(2,)))

    assert np.array_equal(np.asarray(found.image), np.repeat(grey, 3, axis=2))
    assert str(found.left_out).startswith("has 2 bands; the second, although marked as transparency, is no mask")
    assert np.array_equal(masked, np.where(MASK > 0, np.repeat(grey, 3, axis=2), 255))


def soft(mask: np.ndarray) -> np.ndarray:
    from PIL import ImageFilter

    return np.asarray(Image.fromarray(mask[..., 0]).filter(ImageFilter.GaussianBlur(1)))[..., None]


@pytest.mark.parametrize(
    "mask", [MASK, soft(MASK), 255 - MASK, np.full_like(MASK, 255)], ids=["leaf", "soft", "hole", "full"]
)
@pytest.mark.parametrize("premultiplied", [False, True])
def test_a_mask_stays_one(mask, premultiplied):
    colours = RGB * (mask / 255) if premultiplied else RGB
    content = tiff(
        np.concatenate([np.round(colours).astype(np.uint8), mask], axis=2), extra=(1 if premultiplied else 2,)
    )

    assert np.abs(levels(content) - (RGB * (mask / 255) + 255 - mask)).max() <= (3 if premultiplied else 1)
    assert decode(content).left_out is None


@pytest.mark.parametrize("kind", UNIT)
def test_bands_beyond_the_colours_are_left_out_and_reported(kind):
    content = tiff(FOUR.astype(kind) * UNIT[kind], extra=(0,))

    assert np.array_equal(levels(content), RGB)
    assert decode(content).left_out == "has 4 bands, of which only red, green and blue are read"


@pytest.mark.parametrize("kind", UNIT)
@pytest.mark.parametrize(("bands", "photometric"), [(5, 1), (5, 2), (8, 1), (10, 2), (4, 1), (3, 1), (2, 1)])
def test_other_numbers_of_bands_are_named(bands, photometric, kind, caplog):
    stack = np.concatenate([RGB, NIR, NIR, NIR, NIR, NIR, NIR, NIR], axis=2)[..., :bands].astype(kind)
    content = tiff(stack, photometric=photometric, extra=(0,) * (bands - (3 if photometric == 2 else 1)))
    if (bands, photometric, kind) == (5, 2, np.uint8):  # Pillow reads the colours of these
        assert decode(content).left_out == "has 5 bands, of which only red, green and blue are read"
        return

    message = refused(content)

    assert f"has {bands} bands of {np.dtype(kind).itemsize * 8}-bit integer values" in message
    assert "convert it to an RGB image" in message
    assert caplog.messages == []  # Pillow would write to stderr


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("bands", [1, 3])
def test_unscaled_values_are_reported_not_stretched(bits, bands, order):
    pixels = (RGB if bands == 3 else GREY).astype(np.uint16) << (bits - 8)

    found = decode(tiff(pixels, photometric=2 if bands == 3 else 1, order=order))

    assert np.asarray(found.image).max() <= 256 >> (16 - bits)
    assert found.dark is not None
    assert f"no value is above {2**bits - 1} of 65535, as if {bits} bits were stored in 16" in found.dark
    assert f"multiply the values by {2 ** (16 - bits)}" in found.dark


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tag", [281, 341])
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize(("bands", "planar"), [(1, False), (3, False), (3, True)])
def test_values_are_scaled_by_the_largest_one_that_the_file_states(bands, planar, bits, tag, order):
    pixels = np.round((RGB if bands == 3 else GREY) / 255 * (2**bits - 1)).astype(np.uint16)
    content = tiff(
        pixels, photometric=2 if bands == 3 else 1, planar=planar, order=order, tags={tag: (3, [2**bits - 1] * bands)}
    )

    assert np.array_equal(levels(content), RGB if bands == 3 else np.repeat(GREY[..., None], 3, axis=2))
    assert decode(content).dark is None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("bands", "planar"), [(1, False), (3, False), (3, True)])
def test_compressed_values_are_scaled_too_or_reported(bands, planar, order):
    pixels = np.round((RGB if bands == 3 else GREY) / 255 * 4095).astype(np.uint16)
    options = {"photometric": 2 if bands == 3 else 1, "planar": planar, "order": order, "deflated": True}
    content = tiff(pixels, tags={281: (3, [4095] * bands)}, **options)

    if planar:  # of which only the upper bytes can be read
        assert "as if 12 bits were stored in 16" in str(decode(content).dark)
        assert np.array_equal(levels(content), pixels >> 8)
    else:
        assert np.array_equal(levels(content), RGB if bands == 3 else np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", UNIT)
@pytest.mark.parametrize("extra", [(2,), (1,), (0,), None], ids=["opacity", "premultiplied", "unspecified", "not said"])
def test_compressed_planes_are_read_or_refused_but_never_changed(kind, extra):
    content = tiff(FOUR.astype(kind) * UNIT[kind], extra=extra, planar=True, deflated=True)

    try:
        found = levels(content)
    except UnreadableImage as error:
        assert "has 4 bands" in str(error)  # noqa: PT017 (either is right)
        assert extra not in ((2,), (0,))
    else:
        assert np.array_equal(found, RGB)


def test_a_wrong_largest_value_is_not_used():
    pixels = GREY.astype(np.uint16) * 257

    assert np.array_equal(levels(tiff(pixels, photometric=1, tags={281: (3, [4095])}))[..., 0], GREY)
    wide = RGB.astype(np.uint16) * 257
    assert np.array_equal(levels(tiff(wide, tags={281: (3, [4095] * 3)})), RGB)
    assert np.array_equal(levels(tiff(pixels, photometric=1, tags={281: (3, [40000])}))[..., 0], GREY)


def test_twelve_packed_bits_are_read():
    values = np.round(GREY / 255 * 4095).astype(np.uint16).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], axis=1)
    content = packed.astype(np.uint8).reshape(40, 90)

    assert np.array_equal(levels(tiff(content, photometric=1, bits=12, width=60))[..., 0], GREY)
    assert "has 10-bit integer values, which are not read" in refused(tiff(content, photometric=1, bits=10, width=72))


@pytest.mark.parametrize("order", "<>")
def test_signed_values_use_fifteen_bits(order):
    pixels = np.round(GREY / 255 * 32767).astype(np.int16)

    assert np.array_equal(levels(tiff(pixels, photometric=1, form=2, order=order))[..., 0], GREY)
    assert "negative" in refused(tiff(pixels - 1000, photometric=1, form=2, order=order))
    assert "3 bands of 16-bit signed integer values" in refused(tiff(RGB.astype(np.int16), form=2, order=order))
    assert "8-bit signed integer values" in refused(
        tiff((GREY // 2).astype(np.int8), photometric=1, form=2, order=order)
    )


def test_floating_point_is_named():
    assert "floating-point" in refused(tiff(GREY.astype(np.float32), photometric=1, form=3))
    assert "3 bands of 32-bit floating-point values" in refused(tiff(RGB.astype(np.float32), form=3))
    assert "64-bit floating-point values" in refused(tiff(GREY.astype(np.float64), photometric=1, form=3))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", UNIT)
def test_colours_are_read_in_any_layout(kind, order, planar):
    content = tiff(RGB.astype(kind) * UNIT[kind], order=order, planar=planar)

    assert np.array_equal(levels(content), RGB)
    assert decode(content).dark is None


@pytest.mark.parametrize(
    "options", [{"big_tiff": True}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}]
)
def test_big_and_compressed_files_are_read(options):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "TIFF", **options)

    assert np.array_equal(levels(buffer.getvalue()), RGB)


def test_eight_bits_stored_in_sixteen_are_reported():
    for pixels, photometric in ((RGB, 2), (GREY, 1)):
        found = decode(tiff(pixels.astype(np.uint16), photometric=photometric))
        assert "as if 8 bits were stored in 16: multiply the values by 256" in str(found.dark)


def test_a_dark_png_is_reported_too():
    buffer = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) << 4).save(buffer, "PNG")

    assert "as if 12 bits were stored in 16" in str(decode(buffer.getvalue()).dark)


def test_raw_photographs_are_told_from_tiffs_by_their_content():
    assert is_raw(dng())
    assert is_raw(dng(dng_tag=False))  # as NEF and ARW: the raw data are in a directory of the first one
    assert not is_raw(tiff(RGB))
    camera = {271: (2, b"NIKON CORPORATION\0"), 272: (2, b"NIKON D750\0")}
    assert not is_raw(tiff(RGB, tags=camera))  # what a program saved from a photograph
    pages = io.BytesIO()
    Image.fromarray(RGB).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)] * 40)
    assert not is_raw(pages.getvalue())


@pytest.mark.parametrize("place", [8, 0, 4, 10_000_000])
def test_directories_that_lead_in_circles_end(place):
    content = bytearray(tiff(RGB, tags={330: (4, [place, 8, 8])}))
    count = int.from_bytes(content[8:10], "little")
    content[10 + 12 * count : 14 + 12 * count] = (8).to_bytes(4, "little")

    assert not is_raw(bytes(content))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_nothing_waits_for_a_fifo_or_device(tmp_path):
    from clca.data.checks.decode import BadImage, inspect_images, verify_images
    from clca.data.images import open_regular, read_image
    from clca.errors import ClcaError

    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    paths = [tmp_path / name for name in ("fifo.jpg", "link.jpg", "zero.jpg")]

    for path in paths:
        for read in (read_image, open_regular):
            with pytest.raises(ClcaError, match="a FIFO or a device, not an image file"):
                read(path)
    for found in (inspect_images(paths), verify_images(paths)):
        assert [(bad.path, bad.reason) for bad in found if isinstance(bad, BadImage)] == [
            (path, "a FIFO or a device, not an image file") for path in paths
        ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_file_that_becomes_a_fifo_after_it_was_looked_at_is_not_waited_for(tmp_path, monkeypatch):
    from clca.data import images
    from clca.errors import ClcaError

    os.mkfifo(tmp_path / "swapped.jpg")
    regular = os.stat(__file__)
    monkeypatch.setattr(images.os, "stat", lambda path: regular)

    with pytest.raises(ClcaError, match="a FIFO or a device, not an image file"):
        images.open_regular(tmp_path / "swapped.jpg")
