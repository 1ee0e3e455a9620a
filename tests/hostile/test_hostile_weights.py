"""A file of weights from a stranger: no more is made of it than it has bytes."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounded import bounded, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stranger_models import load, load_published, read_each, start_from, with_header, with_pickle

pytestmark = pytest.mark.slow

LIMITS: dict[str, Any] = {"memory_mib": 320, "cpu_seconds": 10}


def _first(header: dict[str, Any], **fields: Any) -> None:
    header[next(name for name in header if name != "__metadata__")].update(fields)


HEADERS: dict[str, Any] = {
    "dtype": lambda h: _first(h, dtype="F4"),
    "huge shape": lambda h: _first(h, shape=[2**40, 2**40]),
    "negative": lambda h: _first(h, shape=[-1, 24]),
    "beyond": lambda h: _first(h, data_offsets=[0, 2**60]),
    "reversed": lambda h: _first(h, data_offsets=[96, 0]),
    "floats": lambda h: _first(h, shape=[1.0, 24.0]),
    "nested": b"[" * 100_000,
    "long": b" " * 5_000_000,
    "empty": b"{}",
    "twice": b'{"a": {}, "a": {}}',
    "metadata": lambda h: h.update(__metadata__={"a": {"b": 1}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    assert "model.safetensors" in refused(load, str(with_header(tmp_path / "m", HEADERS[name])), **LIMITS)


@pytest.mark.parametrize("content", [struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**8), b"\x80\x02}.", b""])
def test_beginnings(content: bytes, tmp_path: Path) -> None:
    folder = with_header(tmp_path / "m", lambda header: None)
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(load, str(folder), **LIMITS)


class _Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.made = function, args

    def __reduce__(self) -> Any:
        return self.made


def _view(shape: Any, stride: Any) -> Any:
    """A tensor of four numbers that a pickle says is another."""
    return _Call(torch._utils._rebuild_tensor_v2, torch.zeros(4).storage(), 0, shape, stride, False, {})


def _packed(file: Path) -> None:
    plain = file.with_suffix(".plain")
    torch.save({"a": torch.zeros(5_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    plain.unlink()


def _npz(file: Path) -> None:
    np.savez_compressed(file, a=np.zeros(100_000_000, np.int8))


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "enlarged": ("a.pth", lambda f: torch.save({"a": _view((2**40,), (1,))}, f)),
    "repeated": ("a.pth", lambda f: torch.save({"a": _view((2**40,), (0,))}, f)),
    "bytes": ("a.pth", lambda f: torch.save({"a": _Call(bytearray, 2**40)}, f)),
    "tensor": ("a.pth", lambda f: torch.save({"a": _Call(torch.Tensor, 2**40)}, f)),
    "keys": ("a.pth", lambda f: torch.save({(2**61 - 1) * n: 0 for n in range(1000)}, f)),
    "packed": ("a.pth", _packed),
    "arrays": ("a.npz", _npz),
    "memo": ("a.pth", lambda f: f.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")),
    "pickle": ("a.pth", lambda f: f.write_bytes(pickle.dumps(_Call(print, 1)))),
    "old enlarged": (
        "a.pth",
        lambda f: torch.save({"a": _view((2**40,), (1,))}, f, _use_new_zipfile_serialization=False),
    ),
}


@pytest.mark.parametrize("use", [start_from, load_published], ids=lambda use: use.__name__)
@pytest.mark.parametrize("name", FILES)
def test_files_that_ask_for_more_than_they_hold(name: str, use: Any, tmp_path: Path) -> None:
    suffix, write = FILES[name]
    write(tmp_path / suffix)
    message = refused(use, str(tmp_path / suffix), **LIMITS)
    assert suffix in message
    assert message.isprintable()


# -- anything at all: many files a child, each read or refused in a line --------------------------------------------


def _each_is_read_or_refused(contents: list[bytes], suffix: str) -> list[str]:
    outcome = bounded(read_each, contents, suffix, memory_mib=256, cpu_seconds=20)
    assert not outcome.error, outcome.trace
    for message in outcome.value:
        assert "\n" not in message
        assert len(message) < 700
    return outcome.value


def _safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


_WHOLE = st.sampled_from([0, 1, 2, 4, 8, 16, -1, 2**31, 2**48, 2**63, 10**30]) | st.integers(0, 40)
_ANY = st.none() | st.booleans() | _WHOLE | st.floats() | st.text(max_size=4)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BOOL", "F8_E4M3", "", "I64"]) | _ANY,
        "shape": st.lists(_WHOLE, max_size=3) | st.lists(_ANY, max_size=10) | _ANY,
        "data_offsets": st.lists(_WHOLE, min_size=2, max_size=2) | st.lists(_ANY, max_size=3) | _ANY,
    },
    optional={"more": _ANY},
)
_HEADER = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), _ENTRY | _ANY, max_size=3)
_SAFETENSORS = st.builds(
    _safetensors,
    _HEADER.map(lambda header: json.dumps(header).encode()) | st.binary(max_size=60),
    st.none() | st.sampled_from([0, 1, 7, 8, 2**31, 2**63]),
    st.integers(0, 64).map(bytes),
)


@settings(max_examples=12, deadline=None)
@given(contents=st.lists(_SAFETENSORS | st.binary(max_size=40), min_size=30, max_size=60))
@example(
    contents=[
        _safetensors(json.dumps({"a": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}).encode()),
        _safetensors(
            json.dumps({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}).encode(), None, bytes(4)
        ),
        _safetensors(b'{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', None, bytes(4)),
    ]
)
def test_any_header_is_read_or_refused(contents: list[bytes]) -> None:
    _each_is_read_or_refused(contents, ".safetensors")


def _torch_file(new: bool) -> bytes:
    file = io.BytesIO()
    content = {
        "model": {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.int64)},
        "epoch": 3,
        "names": ["x", None],
    }
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


_OPERATIONS = st.sampled_from([bytes([code]) for code in range(256)]) | st.binary(min_size=1, max_size=6)
_CHANGES = st.lists(st.tuples(st.integers(0, 2000), _OPERATIONS), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None)
@given(changes=st.lists(_CHANGES, min_size=30, max_size=60))
def test_any_pickle_of_a_checkpoint_is_read_or_refused(changes: list[list[tuple[int, bytes]]]) -> None:
    sound = _torch_file(True)
    assert _each_is_read_or_refused([with_pickle(sound, [])], ".pth") == [""]
    _each_is_read_or_refused([with_pickle(sound, change) for change in changes], ".pth")


@settings(max_examples=12, deadline=None)
@given(changes=st.lists(_CHANGES, min_size=30, max_size=60))
def test_any_older_file_of_torch_is_read_or_refused(changes: list[list[tuple[int, bytes]]]) -> None:
    files = []
    for change in changes:
        content = bytearray(_torch_file(False))
        for place, found in change:
            place %= len(content)
            content[place : place + len(found)] = found
        files.append(bytes(content))
    _each_is_read_or_refused([_torch_file(False), *files], ".pth")
