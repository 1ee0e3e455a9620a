"""Whatever bytes come, they end in a tensor or in a refusal that says nothing of this machine."""

import io
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_endpoint import photo

from clca.data.transforms import from_preprocess, preprocess_dict
from clca.serve.decoding import decode
from clca.serve.refusal import Refusal

TRANSFORM = from_preprocess(preprocess_dict(16), normalize=False)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
FILES = [photo(1, (9, 7), kind) for kind in FORMATS]


def outcome(data: bytes) -> int:
    """HTTP status of an image file."""
    refused: Refusal | None = None
    try:
        image = decode(data, TRANSFORM, 10_000)
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
def test_any_bytes_are_refused(data: bytes) -> None:
    assert outcome(data) in (200, 413, 415, 422)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 200), st.binary(min_size=1, max_size=4), st.integers(0, 400))
def test_an_image_with_other_bytes_in_it_or_cut_off_is_read_or_refused(
    data: bytes, at: int, other: bytes, length: int
) -> None:
    assert outcome(data[:at] + other + data[at + len(other) :]) in (200, 413, 415, 422)
    assert outcome(data[:length]) in (200, 415, 422)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_and_leaves_no_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = FILES[FORMATS.index(kind)]
    assert outcome(data) == 200
    plain = TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
    assert torch.equal(decode(data, TRANSFORM, 10_000), plain)
    assert outcome(data[: len(data) // 2]) in (200, 422)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"\xff\xd8\xff" + bytes(1 << 20), b"\xff\xd8" + b"\xff\xec\0\2" * (1 << 18),
     photo(1)[:33] + b"\0\0\0\0prVt\xa6\x87\x8c\x49" * (1 << 17)],
    ids=["JPEG of zeros", "JPEG of segments", "PNG of chunks"],
)  # fmt: skip
def test_a_header_of_very_many_pieces_is_not_read_to_its_end(data: bytes) -> None:
    with pytest.raises(Refusal, match="too many pieces") as refused:
        decode(data, TRANSFORM, 10_000)
    assert refused.value.status == 422


@pytest.mark.parametrize("data", [b"x", b"P", b"\x89", b"BM", b"GIF8", b"\xff\xd8", b"II*\0"])
def test_a_few_bytes_are_no_image(data: bytes) -> None:
    assert outcome(data) in (415, 422)
