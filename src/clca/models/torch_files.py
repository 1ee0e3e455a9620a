"""What a file of `torch.save` holds, found out without making any of it.

`torch.load(weights_only=True)` executes no code, but it takes the file's word for sizes: a few bytes of pickle can ask
for a storage, or a view of one, of any size, and a packed archive can expand to it. Here the pickle is read with
stand-ins that check every storage and every view against the bytes that are there; only then is the file loaded.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from clca.models.weight_headers import TensorHeader, check_members, regular_file_size, sound_shape
from clca.system.files import MOST_BYTES

_ZIP = b"PK\x03\x04"
_END, _LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what files before torch 1.6 begin with
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype).removeprefix("torch.") for dtype in _STORAGES.values()}


def check_torch_file(path: Path) -> None:
    """Refuse a file of `torch.save` that would run code, or take more memory than it has bytes.

    Args:
        path: The file.

    Raises:
        pickle.UnpicklingError: It would run code, or names what weights do not need.
        ValueError: It asks for more than it holds, or is no such file.
        OSError: It cannot be read.
    """
    size = regular_file_size(path)
    try:
        with open(path, "rb") as file:
            if file.read(4) == _ZIP:
                _check_archive(file, size)
            else:
                file.seek(0)
                _check_old_file(file, size)
    except (KeyError, TypeError, AttributeError, IndexError, EOFError, struct.error, RecursionError) as error:
        raise ValueError(f"is damaged, or not written by torch.save ({type(error).__name__})") from None
    except (OverflowError, MemoryError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"is damaged ({type(error).__name__})") from None


def _check_archive(file: BinaryIO, size: int) -> None:
    """What torch writes since 1.6: a zip archive with a pickle, and a member for every storage."""
    _check_ends(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        check_members(members, size, stored=True)
        if not members:
            raise ValueError("holds nothing")
        root = members[0].filename.partition("/")[0]
        sizes = {member.filename: member.file_size for member in members}
        name = f"{root}/data.pkl"
        if sizes[name] > MOST_BYTES:
            raise ValueError(f"its pickle is larger than {MOST_BYTES / 2**20:g} MiB")
        content = archive.read(name)

    def check(storage: _Storage) -> None:
        if sizes.get(f"{root}/data/{storage.key}") != storage.nbytes:
            raise ValueError("a storage has not as many bytes as its pickle asks for")

    _Inspector(io.BytesIO(content), check).load()


def _check_ends(file: BinaryIO, size: int) -> None:
    """Refuse an archive with anything before, behind or between: two readers of zip could see two archives in it."""
    file.seek(max(0, size - _END.size - _LOCATOR.size - _END64.size))
    tail = file.read()
    end = _END.unpack(tail[-_END.size :])
    length, offset, behind = end[5], end[6], size - _END.size
    with suppress(struct.error):
        locator = _LOCATOR.unpack(tail[-_END.size - _LOCATOR.size : -_END.size])
        if locator[0] == b"PK\x06\x07":
            end64 = _END64.unpack(tail[: _END64.size])
            length, offset, behind = end64[8], end64[9], locator[2]
            if end64[0] != b"PK\x06\x06" or behind != size - len(tail):
                raise ValueError("its end is not that of an archive of torch")
    if end[0] != b"PK\x05\x06" or end[7] or offset + length != behind:
        raise ValueError("its end is not that of an archive of torch")


def _check_old_file(file: BinaryIO, size: int) -> None:
    """What torch wrote before 1.6: five pickles, and the bytes of the storages behind them."""
    with suppress(tarfile.TarError, ValueError), tarfile.open(fileobj=file, mode="r:"):
        raise pickle.UnpicklingError("Unsupported: the tar.archive of torch before 0.2")
    file.seek(0)
    bounded = cast(BinaryIO, _Bounded(file))
    storages: dict[str, int] = {}

    def check(storage: _Storage) -> None:
        if storages.setdefault(storage.key, storage.nbytes) != storage.nbytes:
            raise ValueError("a storage has two sizes")

    if _Inspector(bounded, check).load() != _MAGIC or _Inspector(bounded, check).load() != _PROTOCOL:
        raise ValueError("is no file of torch.save")
    for _ in range(2):  # what machine it was, and the content
        _Inspector(bounded, check).load()
    keys = _Inspector(bounded, check).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("its storages are not those that its pickle names")
    # Each has its length before it, eight bytes.
    if file.tell() + sum(storages.values()) + 8 * len(storages) != size:
        raise ValueError("its storages have not as many bytes as its pickle asks for")


class _Bounded:
    """A file of which no more is read than a pickle of weights is long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MOST_BYTES

    def read(self, count: int = -1) -> bytes:
        return self._counted(self._file.read(min(count, self._left) if count >= 0 else self._left))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left))

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left <= 0:
            raise ValueError(f"its pickle is larger than {MOST_BYTES / 2**20:g} MiB")
        return content


class _Storage:
    def __init__(self, key: str, dtype: torch.dtype, numel: int) -> None:
        self.key, self.dtype, self.numel = key, dtype, numel
        self.nbytes = numel * dtype.itemsize


class _Kind:
    """The class of a storage, by which a pickle names it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Aside:
    """What training scripts keep beside the weights: settings, paths, numbers of numpy."""

    def __new__(cls, *args: Any) -> _Aside:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorHeader:
    """Stands in for `torch._utils._rebuild_tensor_v2`, which enlarges a storage that is too small for its view."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    shape = sound_shape("a tensor", shape)
    steps = sound_shape("a tensor's stride", stride)
    if len(steps) != len(shape) or not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
        raise ValueError("a tensor's stride does not fit its shape")
    last = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
    if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
        raise ValueError("a tensor is larger than its storage")
    return TensorHeader(shape, storage.dtype)


def _parameter(data: Any, *rest: Any) -> TensorHeader:
    if not isinstance(data, TensorHeader):
        raise ValueError("a parameter is no tensor")
    return data


def _ordered(*pairs: Any) -> OrderedDict[Any, Any]:
    if any(pairs) and not (len(pairs) == 1 and isinstance(pairs[0], list)):
        raise ValueError("an ordered dictionary is not made of pairs")
    found: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs[0] if pairs and pairs[0] else ():
        found[_key(key)] = value
    return found


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("bytes are encoded in another way than pickle does")
    return text.encode("latin1")


def _numpy_type(name: Any, *rest: Any) -> _Aside:
    if not isinstance(name, str) or not re.fullmatch(r"[<>=|]?([fiu][1248]|b1|\?)", name):
        raise ValueError("a number of numpy is of another type than numbers have")
    return _Aside()


def _numpy_number(kind: Any, content: Any = None) -> _Aside:
    if not isinstance(kind, _Aside) or not isinstance(content, bytes) or len(content) > 8:
        raise ValueError("a number of numpy is none")
    return _Aside()


def _key(key: Any) -> Any:
    """A key of a dictionary; others than these can be chosen so that a dictionary takes hours to fill."""
    if isinstance(key, str) or (isinstance(key, int) and -(2**31) <= key < 2**31):
        return key
    raise ValueError(f"a dictionary has a {type(key).__name__} for a key")


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda sides=(): sound_shape("a size", sides),
    "torch.device": _Aside,
    "_codecs.encode": _encoded,
    "argparse.Namespace": _Aside,
    **{
        f"{module}.{name}": _Aside
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
    **{f"torch.{name}": _Kind(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.storage.{name}": _Kind(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": _Aside for name in _DTYPES},
}
# What torch.save writes and torch.load(weights_only=True) reads: no instruction that makes much of little.
_OPCODES = (
    pickle.GLOBAL, pickle.NEWOBJ, pickle.REDUCE, pickle.BUILD, pickle.APPEND, pickle.APPENDS, pickle.SETITEM,
    pickle.SETITEMS, pickle.MARK, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.NONE,
    pickle.NEWFALSE, pickle.NEWTRUE, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING,
    pickle.BINPERSID, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.LONG1,
    pickle.PROTO, pickle.STOP,
)  # fmt: skip


# In Python: the unpickler in C keeps a memo of any length. Typeshed has no private names.
_PythonUnpickler: Any = vars(pickle)["_Unpickler"]


class _Inspector(_PythonUnpickler):
    """Reads a pickle with stand-ins for all that it may name."""

    dispatch: dict[int, Any] = {code[0]: _PythonUnpickler.dispatch[code[0]] for code in _OPCODES}  # noqa: RUF012

    def __init__(self, file: BinaryIO, check: Any) -> None:
        super().__init__(file, encoding="latin1")
        self._check = check

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            code = error.args[0]
            if isinstance(code, int) and code not in self.dispatch:
                raise pickle.UnpicklingError(f"Unsupported operand {code}") from None
            raise

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}"[:200])
        return _KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise ValueError("a storage is named in another way than torch does")
        _, kind, key, _, numel = pid[:5]
        if not isinstance(kind, _Kind) or not isinstance(key, str):
            raise ValueError("a storage is of no known type")
        storage = _Storage(key, kind.dtype, sound_shape("a storage", [numel])[0])
        self._check(storage)
        return storage

    def load_setitem(self) -> None:
        _key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _key(key)
        super().load_setitems()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
