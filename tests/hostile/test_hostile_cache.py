"""Files of resized images that others have left in a cache folder: read within their bytes, refused or made again."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounded import bounded
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stranger_runs import cut_while_read, read_all

from clca.data.cache.row_file import (
    _FORMAT,
    _MAGIC,
    _TRAILER,
    SUFFIX,
    RowWriter,
    Source,
    read_row_file,
)

pytestmark = pytest.mark.slow

LIMITS: dict[str, Any] = {"memory_mib": 256, "cpu_seconds": 3}
SIDE, COUNT = 4, 3


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A file of three rows, as this version writes it."""
    writer = RowWriter(tmp_path, "a", SIDE, COUNT)
    for row in range(COUNT):
        writer.put(row, np.full((3, SIDE, SIDE), row, np.uint8))
    return writer.finish("/set", {"how": 1}, [Source(f"/set/{row}.png", 1, 2, 3, 4) for row in range(COUNT)])


def _index(file: Path) -> tuple[bytes, dict[str, Any]]:
    """Rows and index of a file."""
    content = file.read_bytes()
    _, length, _ = _TRAILER.unpack(content[-_TRAILER.size :])
    end = len(content) - _TRAILER.size
    return content[: end - length], json.loads(content[end - length : end])


def _write(file: Path, rows: bytes, index: bytes) -> None:
    file.write_bytes(rows + index + _TRAILER.pack(zlib.crc32(index), len(index), _MAGIC))


def test_a_sound_file_is_read(sound: Path) -> None:
    assert bounded(read_all, str(sound), **LIMITS).value == [[0], [1], [2]]


def _image(**fields: Any) -> list[Any]:
    return list(({"path": "/set/0.png", "size": 1, "mtime": 2, "ctime": 3, "inode": 4} | fields).values())


CHANGES: dict[str, dict[str, Any]] = {
    "a negative side, whose square fits": {"side": -SIDE},
    "a side of zero": {"side": 0},
    "a side that is a float": {"side": float(SIDE)},
    "a side that is a text": {"side": str(SIDE)},
    "a side that is true": {"side": True},
    "an absurd side": {"side": 2**40},
    "a side beyond floats": {"side": 10**300},
    "a larger side": {"side": SIDE + 1},
    "a smaller side": {"side": SIDE - 1},
    "images by name": {"images": {str(row): _image() for row in range(COUNT)}},
    "images as a text": {"images": "abc"},
    "images as a number": {"images": COUNT},
    "no images": {"images": []},
    "more images": {"images": [_image()] * (COUNT + 1)},
    "an image of four values": {"images": [_image()[:4]] * COUNT},
    "an image of six values": {"images": [[*_image(), 5]] * COUNT},
    "an image that is a text": {"images": ["abcde"] * COUNT},
    "an image that is a number": {"images": [7] * COUNT},
    "a path that is a list": {"images": [_image(path=["/set"])] * COUNT},
    "a path that is a number": {"images": [_image(path=3)] * COUNT},
    "a size that is a text": {"images": [_image(size="1")] * COUNT},
    "a time that is a float": {"images": [_image(mtime=2.5)] * COUNT},
    "fewer checksums": {"checksums": [0]},
    "more checksums": {"checksums": [0] * (COUNT + 1)},
    "checksums as a text": {"checksums": "abc"},
    "checksums by name": {"checksums": {"0": 1, "1": 2, "2": 3}},
    "a negative checksum": {"checksums": [-1] * COUNT},
    "a checksum that is a list": {"checksums": [[0]] * COUNT},
    "a huge checksum": {"checksums": [2**70] * COUNT},
    "a root that is a list": {"root": ["/set"]},
    "no root": {"root": None},
    "a reading that is a list": {"reading": ["how"]},
    "another format": {"format": "clca-resized-1"},
    "a format that is a list": {"format": [_FORMAT]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_with_other_values_is_refused(change: str, sound: Path) -> None:
    rows, index = _index(sound)
    _write(sound, rows, json.dumps(index | CHANGES[change]).encode())
    assert read_row_file(sound) is None


@pytest.mark.parametrize("name", ["format", "root", "reading", "side", "images", "checksums"])
def test_an_index_without_an_entry_is_refused(name: str, sound: Path) -> None:
    rows, index = _index(sound)
    del index[name]
    _write(sound, rows, json.dumps(index).encode())
    assert read_row_file(sound) is None


TEXTS: dict[str, bytes] = {
    "nested": b"[" * 1_000_000,
    "many lists": b"[" + b"[]," * 5_000_000 + b"[]]",
    "many digits": b'{"side": ' + b"9" * 5_000_000 + b"}",
    "NaN": b'{"side": NaN, "images": [], "checksums": []}',
    "a list": b"[1, 2]",
    "null": b"null",
    "a number": b"1",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
}


@pytest.mark.parametrize("text", TEXTS)
def test_an_index_that_is_another_text_is_refused(text: str, sound: Path) -> None:
    rows, _ = _index(sound)
    _write(sound, rows, TEXTS[text])
    assert bounded(read_all, str(sound), **LIMITS).value is None


@pytest.mark.parametrize("length", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_a_trailer_with_another_length_is_refused(length: int, sound: Path) -> None:
    content = sound.read_bytes()
    checksum, _, magic = _TRAILER.unpack(content[-_TRAILER.size :])
    sound.write_bytes(content[: -_TRAILER.size] + _TRAILER.pack(checksum, length, magic))
    assert bounded(read_all, str(sound), **LIMITS).value is None


def _as_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _as_link(target: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return change


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "change",
    [_as_fifo, _as_link("/dev/zero"), _as_link("/no/such"), _as_folder, lambda file: file.write_bytes(b"")],
    ids=["FIFO", "device", "dangling", "folder", "empty"],
)
def test_what_is_no_file_is_refused(change: Callable[[Path], None], sound: Path) -> None:
    change(sound)
    assert bounded(read_all, str(sound), **LIMITS).value is None


@pytest.mark.parametrize("kept", range(0, COUNT * 3 * SIDE**2 + 400, 37))
def test_a_file_that_is_cut_short_is_refused(kept: int, sound: Path) -> None:
    content = sound.read_bytes()
    if kept < len(content):
        sound.write_bytes(content[:kept])
        assert read_row_file(sound) is None


def test_a_row_that_was_changed_is_not_read_and_the_file_loses_its_name(sound: Path) -> None:
    rows, index = _index(sound)
    _write(sound, b"\x09" + rows[1:], json.dumps(index).encode())
    found = read_row_file(sound)
    assert found is not None
    reader = found.reader()
    assert reader.read(1) is not None
    assert reader.read(0) is None
    assert not sound.exists()


def test_a_file_that_is_cut_while_it_is_read_is_not_read_beyond_its_end(sound: Path) -> None:
    assert bounded(cut_while_read, str(sound), **LIMITS).value == [False, True, True]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(place=10**6, found=b"", checksum=True)
@given(place=st.integers(0, 10**6), found=st.binary(min_size=1, max_size=6), checksum=st.booleans())
def test_any_change_of_bytes_gives_rows_of_the_right_shape_or_none(
    place: int, found: bytes, checksum: bool, sound: Path
) -> None:
    """With the checksum of the index made to fit, as somebody who means it would."""
    copy = sound.with_name(f"b{SUFFIX}")
    shutil.copy(sound, copy)
    content = bytearray(copy.read_bytes())
    place %= len(content)
    content[place : place + len(found)] = found
    if checksum and len(content) > _TRAILER.size:
        _, length, magic = _TRAILER.unpack(content[-_TRAILER.size :])
        if length <= len(content) - _TRAILER.size:
            text = bytes(content[len(content) - _TRAILER.size - length : -_TRAILER.size])
            content[-_TRAILER.size :] = _TRAILER.pack(zlib.crc32(text), length, magic)
    copy.write_bytes(content)
    file = read_row_file(copy)
    if file is None:
        return
    reader = file.reader()
    for row in range(file.count):
        pixels = reader.read(row)
        assert pixels is None or pixels.shape == (3, file.side, file.side)
