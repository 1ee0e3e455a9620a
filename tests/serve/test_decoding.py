"""Whatever bytes come, they end in a tensor or in a refusal that says nothing of this machine."""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_endpoint import photo

from clca.data.decoding import Decoders
from clca.data.transforms import from_preprocess, preprocess_dict
from clca.serve.decoding import decode, decode_image
from clca.serve.errors import Refusal

TRANSFORM = from_preprocess(preprocess_dict(16), normalize=False)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
FILES = [photo(1, (9, 7), kind) for kind in FORMATS]


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(1, max_pixels=10_000) as found:
        yield found


def outcome(data: bytes, decoders: Decoders) -> int:
    """HTTP status of an image file."""
    refused: Refusal | None = None
    try:
        image = decode(data, TRANSFORM, decoders)
    except Refusal as refusal:
        refused = refusal
    if refused is not None:
        assert refused.message
        assert tempfile.gettempdir() not in refused.message
        return refused.status
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    return 200


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_refused(decoders: Decoders, data: bytes) -> None:
    assert outcome(data, decoders) in (200, 413, 415, 422)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 200), st.binary(min_size=1, max_size=4), st.integers(0, 400))
def test_an_image_with_other_bytes_in_it_or_cut_off_is_read_or_refused(
    decoders: Decoders, data: bytes, at: int, other: bytes, length: int
) -> None:
    assert outcome(data[:at] + other + data[at + len(other) :], decoders) in (200, 413, 415, 422)
    assert outcome(data[:length], decoders) in (200, 415, 422)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_and_leaves_no_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoders: Decoders
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = FILES[FORMATS.index(kind)]
    assert outcome(data, decoders) == 200
    plain = TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
    assert torch.equal(decode(data, TRANSFORM, decoders), plain)
    assert outcome(data[: len(data) // 2], decoders) in (200, 422)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"\xff\xd8\xff" + bytes(1 << 20), b"\xff\xd8" + b"\xff\xec\0\2" * (1 << 18),
     photo(1)[:33] + b"\0\0\0\0prVt\xa6\x87\x8c\x49" * (1 << 17)],
    ids=["JPEG of zeros", "JPEG of segments", "PNG of chunks"],
)  # fmt: skip
def test_a_header_of_too_many_parts_is_not_read_to_its_end(data: bytes, decoders: Decoders) -> None:
    with pytest.raises(Refusal, match="too many parts") as refused:
        decode(data, TRANSFORM, decoders)
    assert refused.value.status == 422


def png(pieces: int) -> bytes:
    """A sound PNG of black pixels, each byte of which is a chunk of its own, and empty ones before them."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    pixels = zlib.compress(bytes(4 * 13))
    parts = [b""] * (pieces - len(pixels)) + [pixels[k : k + 1] for k in range(len(pixels))]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(b"IDAT", part) for part in parts) + chunk(b"IEND", b"")


def tiff(side: int, mark: str = "<", wide: bool = False) -> bytes:
    """A sound TIFF of grey pixels, each of which is a tile of its own."""
    number, head = ("Q", 16) if wide else ("I", 8)
    values = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1, 322: 1, 323: 1}
    count = len(values) + 1
    end = head + (8 if wide else 2) + count * (20 if wide else 12) + (8 if wide else 4)
    magic = struct.pack(f"{mark}HHHQ", 43, 8, 0, head) if wide else struct.pack(f"{mark}HI", 42, head)
    tags = b"".join(struct.pack(f"{mark}HH{number}{number}", tag, 4, 1, value) for tag, value in values.items())
    tags += struct.pack(f"{mark}HH{number}{number}", 324, 4, side * side, end)
    counted = struct.pack(f"{mark}{'Q' if wide else 'H'}", count) + tags + bytes(8 if wide else 4)
    order = b"II" if mark == "<" else b"MM"
    return order + magic + counted + struct.pack(f"{mark}I", head) * side**2


FORMS_OF_TIFF = [
    ("<", False),
    (">", False),
    ("<", True),
]  # Pillow itself reads no BigTIFF whose first byte is the high one


@pytest.mark.parametrize("make", [lambda many: png(60_000 if many else 6_000),
    *(lambda many, mark=mark, wide=wide: tiff(300 if many else 50, mark, wide) for mark, wide in FORMS_OF_TIFF)],
    ids=["PNG", "TIFF", "TIFF MM", "BigTIFF"])  # fmt: skip
def test_pixels_in_too_many_parts_are_refused_and_in_many_are_read(
    make: Callable[[bool], bytes], decoders: Decoders
) -> None:
    assert decode_image(make(False), decoders).mode == "RGB"
    with pytest.raises(Refusal, match="too many parts") as refused:
        decode_image(make(True), decoders)
    assert refused.value.status == 422


@pytest.mark.parametrize("data", [b"x", b"P", b"\x89", b"BM", b"GIF8", b"\xff\xd8", b"II*\0"])
def test_a_few_bytes_are_no_image(data: bytes, decoders: Decoders) -> None:
    assert outcome(data, decoders) in (415, 422)
