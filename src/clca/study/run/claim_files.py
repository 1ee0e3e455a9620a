"""The files of claims in a run's folder, each created atomically and once; see `clca.study.run.claim`."""

import errno
import json
import os
import re
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple, Self

from clca.system.files import parse_json

_NAME = re.compile(r"claim\.([1-9][0-9]*)", re.ASCII)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_END_OF_TIME = 1e11  # seconds since 1970
RELEASED_TIME = (0, 0)
"""The file time of a released claim; it can be set even on a full disk."""


@dataclass(frozen=True)
class Owner:
    """The content of a claim file."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    state: str
    time: float

    @classmethod
    def parse(cls, raw: bytes) -> Self | None:
        try:
            owner = cls(**parse_json(raw))
        except (ValueError, TypeError):
            return None
        sound = all(type(getattr(owner, field.name)) is field.type for field in fields(cls))
        return owner if sound and 0 < owner.pid < 2**31 and 0 <= owner.time < _END_OF_TIME else None

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class Found(NamedTuple):
    """The newest claim in a folder; `owner` is None if it cannot be read."""

    generation: int
    owner: Owner | None
    time_ns: int

    @property
    def seen(self) -> tuple[int, int]:
        """Generation and time in whole seconds: other mounts of the folder may show no fractions of a second."""
        return self.generation, self.time_ns // 10**9

    @property
    def released(self) -> bool:
        return self.time_ns == 0 or (self.owner is not None and self.owner.state == "released")


def newest(folder: Path) -> Found | None:
    """The newest claim in a folder; None if there is none."""
    generations = [int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    if not generations:
        return None
    path = folder / f"claim.{max(generations)}"
    try:
        # O_NONBLOCK: the file may be a FIFO. Opening makes the client of a network file system fetch the current time.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return Found(max(generations), Owner.parse(os.read(file, 2**16)), os.fstat(file).st_mtime_ns)
        finally:
            os.close(file)
    except OSError:
        return Found(max(generations), None, path.stat().st_mtime_ns)


def create(folder: Path, generation: int, owner: Owner) -> bool:
    """Create the claim with all its content. Returns False if another process was first."""
    path = folder / f"claim.{generation}"
    temporary = write_temporary(folder, owner)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        # A network file system may have made the link, lost the reply and retried.
        found = newest(folder)
        return bool(found and found.owner and found.owner.token == owner.token)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        _write(file, owner.dump())  # until then, others find a claim that cannot be read, which counts as held
    except OSError:
        with suppress(OSError):
            os.utime(path, RELEASED_TIME)  # not removed: a name must be created only once
        raise
    return True


def write_temporary(folder: Path, owner: Owner) -> Path:
    """Write the content of a claim to a temporary file in the folder."""
    temporary = _temporary_path(folder)
    try:
        _write(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666), owner.dump())
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def _write(file: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(file, content) :]
    finally:
        os.close(file)


def _temporary_path(folder: Path) -> Path:
    return folder / f".claim.{uuid.uuid4().hex}.tmp"


def server_time(folder: Path) -> float:
    """The file server's clock, from a temporary file; this also refreshes a network client's listing of the folder."""
    path = _temporary_path(folder)
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)
        os.unlink(path)
