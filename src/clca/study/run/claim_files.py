"""The files of claims in a run's folder: made whole, or not at all, and once; see `clca.study.run.claim`."""

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
NO_CLAIM = (0, 0)
"""A file time that says "nobody": setting it needs no space, also on a full disk."""


@dataclass(frozen=True)
class Owner:
    """What a claim file says."""

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
    """The newest claim in a folder; no owner: it cannot be read."""

    generation: int
    owner: Owner | None
    time_ns: int

    @property
    def seen(self) -> tuple[int, int]:
        """What an observer can tell another one: mounts of one folder may show no fractions of a second."""
        return self.generation, self.time_ns // 10**9

    @property
    def released(self) -> bool:
        return self.time_ns == 0 or (self.owner is not None and self.owner.state == "released")


def newest(folder: Path) -> Found | None:
    """The newest claim in a folder; None where there never was one."""
    generations = [int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    if not generations:
        return None
    path = folder / f"claim.{max(generations)}"
    try:
        # A FIFO in its place would be waited for. Opening makes a network file system's client ask for the time anew.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return Found(max(generations), Owner.parse(os.read(file, 2**16)), os.fstat(file).st_mtime_ns)
        finally:
            os.close(file)
    except OSError:
        return Found(max(generations), None, path.stat().st_mtime_ns)


def create(folder: Path, generation: int, owner: Owner) -> bool:
    """Create the claim with its content whole; False: another process was first."""
    path = folder / f"claim.{generation}"
    temporary = write_aside(folder, owner)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        # A network file system may have made the link, lost the answer and tried again.
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
        _write(file, owner.dump())  # until this is done others see a claim that cannot be read, which is held
    except OSError:
        with suppress(OSError):
            os.utime(path, NO_CLAIM)  # not removed: a name must be made only once
        raise
    return True


def write_aside(folder: Path, owner: Owner) -> Path:
    """A file with the content of a claim, whole, that has not its name yet."""
    temporary = _unused(folder)
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


def _unused(folder: Path) -> Path:
    return folder / f".claim.{uuid.uuid4().hex}.tmp"


def server_time(folder: Path) -> float:
    """The file server's clock, from a file made and removed; a network client's listing of the folder is then fresh."""
    path = _unused(folder)
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)
        os.unlink(path)
