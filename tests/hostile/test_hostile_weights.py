"""A file of weights from a stranger: no more is made of it than it has bytes."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounded import refused
from stranger_models import load, load_published, start_from, with_header

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
