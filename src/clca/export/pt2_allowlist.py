"""Check an untrusted `.pt2` before torch loads it: only what `export_pt2` would write is accepted.

`torch.export.load` can execute code in an archive: it unpickles objects, loads compiled libraries, evaluates sizes and
guards from text, and calls any registered operator, including those that write files. A list of what is forbidden would
never be complete, so `pt2_schema` and `pt2_operators` list what is allowed. torch then reads a copy that contains only
what was checked, so that two parsers of one archive cannot disagree about its contents.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from clca.errors import ClcaError
from clca.export.metadata import TRUST, check_metadata, one_line
from clca.export.program import METADATA_FILE
from clca.export.pt2_schema import BYTES, Constants, Payload, Program, UnknownOperator, Weights

_PROGRAM = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_METADATA = f"extra/{METADATA_FILE}"
_READ = (_METADATA, _PROGRAM, _WEIGHTS, _CONSTANTS)
_SAMPLE = "data/sample_inputs/model.pt"
_FIXED = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"[0-9]{1,3}"),
    "byteorder": re.compile(rb"little"),
    ".data/version": re.compile(rb"[0-9]{1,3}\n?"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,80}"),
}
_TENSOR = re.compile(r"data/weights/weight_[0-9]{1,6}")

_MOST_MEMBERS = 20_000
_LONGEST_DIRECTORY = 8 * 2**20
_LONGEST_JSON = 16 * 2**20  # 12 blocks with three reductions have 0.6 MiB


class _Refused(Exception):
    """A member of the archive contains something that is not allowed."""

    def __init__(self, member: str, why: str) -> None:
        super().__init__(why)
        self.member = member


class _Reader(io.FileIO):
    """A file with a limit on single reads: `zipfile` reads the directory at once, and needs ten times its size."""

    longest: int | None = _LONGEST_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        if self.longest is not None and size is not None and size > self.longest:
            raise _Refused("the directory", f"it has more than {self.longest} bytes")
        return super().read(-1 if size is None else size)


def checked_archive(path: Path) -> tuple[io.BytesIO, dict[str, Any]]:
    """Check an archive of `export_pt2`, and return it for `torch.export.load` with its metadata.

    Args:
        path: The file, a zip archive.

    Returns:
        A copy of the checked members, with new sample inputs since torch unpickles those, and the metadata.

    Raises:
        ClcaError: The archive cannot be read or may contain code; the message names the member.
    """
    member = "the directory"
    try:
        with _Reader(path) as file, zipfile.ZipFile(file) as archive:
            file.longest = None
            members = _members(archive, path.stat().st_size)
            parsed = {}
            for member in _READ:
                parsed[member] = _json(archive, member, members)
                _check(member, parsed[member], members)
            return _copy(archive, members, parsed), parsed[_METADATA]
    except UnknownOperator as error:
        raise ClcaError(
            f"{path}: {_PROGRAM} in it calls {one_line(str(error))}, which no export of a built-in reduction of "
            f"clca does, and may contain code, so it is not loaded; {TRUST}"
        ) from None
    except Exception as error:  # a damaged archive raises almost any exception
        member = error.member if isinstance(error, _Refused) else member
        raise ClcaError(
            f"{path}: {one_line(member)} in it is not as clca writes it ({_why(error)}) and may contain code, so it is "
            f"not loaded; {TRUST}"
        ) from None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by their names without the top folder; refuses unknown, duplicate and compressed members."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if name not in (*_READ, *_FIXED, _SAMPLE) and not _TENSOR.fullmatch(name):
            raise _Refused(name, "exports have no such part")
        if name in members:
            raise _Refused(name, "it occurs twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _Refused(name, "it is compressed")
        if name in _READ and info.file_size > _LONGEST_JSON:
            raise _Refused(name, f"it has more than {_LONGEST_JSON} bytes")
        members[name] = info
    if len(members) > _MOST_MEMBERS or sum(info.file_size for info in members.values()) > size:
        raise _Refused("the directory", "it lists more than the file can contain")
    if missing := [name for name in (*_READ, *_FIXED) if name not in members]:
        raise _Refused(missing[0], "it is missing")
    return members


def _json(archive: zipfile.ZipFile, member: str, members: dict[str, zipfile.ZipInfo]) -> Any:
    try:
        return json.loads(archive.read(members[member]))
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        raise _Refused(member, "it is not JSON") from None


def _check(member: str, content: Any, members: dict[str, zipfile.ZipInfo]) -> None:
    if member == _METADATA:
        check_metadata(content)
    elif member == _PROGRAM:
        _check_symbols(Program.model_validate(content), content)
    elif member == _WEIGHTS:
        for payload in Weights.model_validate(content).config.values():
            _check_fits(payload, members)
    else:
        Constants.model_validate(content)


def _check_symbols(program: Program, content: Any) -> None:
    """Require that the batch is the only symbolic size."""
    (batch,) = program.range_constraints
    if others := set(re.findall(r"Symbol\('(\w+)'", json.dumps(content["graph_module"]))) - {batch}:
        raise _Refused(_PROGRAM, f"it has another size than {batch}, {min(others)}")


def _check_fits(payload: Payload, members: dict[str, zipfile.ZipInfo]) -> None:
    """Require that a tensor is within the bytes of its file, and that its elements do not overlap."""
    info, meta = members.get(f"data/weights/{payload.path_name}"), payload.tensor_meta
    if info is None:
        raise _Refused(_WEIGHTS, f"there is no {payload.path_name}")
    sizes, strides = [size.as_int for size in meta.sizes], [stride.as_int for stride in meta.strides]
    count = math.prod(sizes)
    end = meta.storage_offset.as_int + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if count == 0 or max(count, end) * BYTES[meta.dtype] > info.file_size:
        raise _Refused(_WEIGHTS, f"{payload.path_name} has {info.file_size} bytes, too few for sizes {sizes}")


def _copy(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], parsed: dict[str, Any]) -> io.BytesIO:
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as target:
        for name, info in members.items():
            if name == _SAMPLE:
                continue
            content = json.dumps(parsed[name]).encode() if name in parsed else archive.read(info)
            if name in _FIXED and not _FIXED[name].fullmatch(content):
                raise _Refused(name, "its content is not as expected")
            target.writestr(f"model/{name}", content)
        target.writestr(f"model/{_SAMPLE}", _sample(parsed[_METADATA]))
    copy.seek(0)
    return copy


def _sample(metadata: dict[str, Any]) -> bytes:
    """Sample inputs in torch's format: images of the right shape that all share one stored number."""
    content = io.BytesIO()
    images = torch.zeros(1).expand(2, *metadata["input"]["shape"][1:])
    torch.save(((images,), {}), content)
    return content.getvalue()


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return one_line(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    return one_line(str(error) if isinstance(error, _Refused | ClcaError) else type(error).__name__)
