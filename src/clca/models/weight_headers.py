"""The header of a weights file, read and checked before a tensor is made of it.

Files may come from untrusted sources: a header of a few bytes can declare tensors of terabytes. Names, types and shapes
are read from `.safetensors` and `.npz` files, and everything that is not backed by bytes of the file is rejected.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clca.errors import ClcaError
from clca.system.files import MOST_BYTES, parse_json

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MOST_TENSORS = 50_000
MOST_DIMENSIONS = 8
_LONGEST_NAME = 512


@dataclass(frozen=True)
class TensorHeader:
    """A tensor of a file, not read yet."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def regular_file_size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        ValueError: It is none: a folder, a FIFO, a device.
        OSError: There is none.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is no regular file")
    return found.st_size


def read_safetensors_header(path: Path) -> dict[str, TensorHeader]:
    """Names, types and shapes of a `.safetensors` file.

    Args:
        path: The file.

    Raises:
        ValueError: Its header is not sound: too long, no JSON, tensors beyond its end, over one another or with gaps.
        OSError: It cannot be read.
    """
    size = regular_file_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("its header is cut off")
        if length > MOST_BYTES:
            raise ValueError(f"its header is longer than {MOST_BYTES / 2**20:g} MiB")
        content = parse_json(file.read(length))
    if not isinstance(content, dict):
        raise ValueError("its header names no tensors")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text by name")
    if len(content) > MOST_TENSORS:
        raise ValueError(f"it names more than {MOST_TENSORS} tensors")
    found, places = {}, []
    for name, entry in content.items():
        found[name], place = _tensor(name, entry)
        places.append(place)
    places.sort()
    ends = [(0, 0), *places, (size - 8 - length,) * 2]
    if any(here[1] != following[0] for here, following in pairwise(ends)):
        raise ValueError("its tensors do not lie one behind the other as far as its end")
    return found


def _tensor(name: str, entry: Any) -> tuple[TensorHeader, tuple[int, int]]:
    """One entry of the header, and from where to where its bytes lie."""
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"a tensor's name is longer than {_LONGEST_NAME} characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} is not dtype, shape and data_offsets")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name!r} is of type {str(dtype)[:20]!r}: known are {', '.join(_DTYPES)}")
    header = TensorHeader(sound_shape(name, shape), _DTYPES[dtype])
    if not _are_whole(place) or len(place) != 2 or place[1] - place[0] != header.nbytes:
        raise ValueError(f"{name!r} has not as many bytes as its shape asks for")
    return header, (place[0], place[1])


def sound_shape(name: str, shape: Any) -> torch.Size:
    """A shape that a tensor can have.

    Raises:
        ValueError: It is none.
    """
    if not _are_whole(shape) or len(shape) > MOST_DIMENSIONS or math.prod(max(1, side) for side in shape) >= 2**48:
        raise ValueError(f"{name!r} has no shape that a tensor can have")
    return torch.Size(shape)


def _are_whole(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48 for value in values
    )


def check_npz(path: Path) -> None:
    """Refuse an `.npz` file whose arrays are not the bytes that it holds.

    Raises:
        ValueError: It is no such file, or a few bytes of it expand to many.
        OSError: It cannot be read.
    """
    size = regular_file_size(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_members(members, size, stored=False)
        for member in members:
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise ValueError(f"{member.filename[:60]!r} holds Python objects")
                sound_shape(member.filename[:60], shape)
                if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                    raise ValueError(f"{member.filename[:60]!r} has not as many bytes as its shape asks for")


# What is packed may become so many times larger: weights do not shrink to less than half.
_MOST_GROWTH = 4


def check_members(members: list[zipfile.ZipInfo], size: int, *, stored: bool) -> None:
    """Refuse a zip archive that expands to far more than it is, or holds a name twice.

    Args:
        members: What it lists.
        size: Its bytes.
        stored: Whether its members must not be compressed.

    Raises:
        ValueError: It does.
    """
    if len(members) > MOST_TENSORS:
        raise ValueError(f"it has more than {MOST_TENSORS} members")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member's name occurs twice")
    if any(member.flag_bits & 0x1 for member in members):
        raise ValueError("it is encrypted")
    if stored and any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, as no weights of torch are")
    if sum(member.file_size for member in members) > size * (1 if stored else _MOST_GROWTH):
        raise ValueError("it expands to far more than its own size")


def check_memory(headers: Mapping[str, TensorHeader | torch.Tensor], where: str) -> None:
    """Refuse a model that this machine cannot hold, before its memory is taken.

    Raises:
        ClcaError: With what is needed and what there is.
    """
    needed = sum(math.prod(header.shape) * max(4, header.dtype.itemsize) for header in headers.values())
    there = _memory()
    if there is not None and needed > there:
        raise ClcaError(f"{where} needs {needed / 2**30:.1f} GiB of memory, and this machine has {there / 2**30:.1f}")


def _memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
