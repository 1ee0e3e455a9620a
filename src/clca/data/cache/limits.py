"""Room for resized images: where they are kept, how much they may take, what goes first, and the lock on it all."""

import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from clca.data.cache.row_file import SUFFIX, UNFINISHED, read_row_file
from clca.errors import ClcaError
from clca.system.numbers import decimal_number

_log = logging.getLogger(__name__)

DEFAULT_LIMIT = 20.0
"""Gigabytes (10⁹ bytes) that the cache takes in all."""

_SPARE = 10**9  # bytes of the disk that are left to others


@dataclass(frozen=True)
class CachedSet:
    """One data set at one size: its folder or file, side in pixels, images, bytes, and when it was used (Unix time)."""

    root: str
    side: int
    images: int
    bytes: int
    used: float


class NoRoom(Exception):
    """Why something does not fit, in a line."""


def cache_folder() -> Path:
    """Where the resized images are kept; the folder need not exist yet.

    Raises:
        ClcaError: There is no home folder that it could be in, neither one's own nor the one that `$CLCA_CACHE` names.
    """
    told = os.environ.get("CLCA_CACHE")
    try:
        if told:
            return Path(told).expanduser().absolute() / "resized"
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches).absolute() / "clca" / "resized"
    except RuntimeError:
        where = f"CLCA_CACHE is {told!r}" if told else "CLCA_CACHE is not set"
        raise ClcaError(f"{where} and there is no such home folder: set it to a folder") from None


def beside_cache(name: str) -> Path | None:
    """A file of what else can be worked out again; None where there is no folder for it."""
    try:
        return cache_folder().parent / name
    except ClcaError:
        return None


def cache_limit(gigabytes: float | None = None) -> float:
    """Bytes that the cache may take: as told, else `$CLCA_CACHE_GB`, else 20 GB.

    Raises:
        ClcaError: What is told, or what the variable holds, is no number of gigabytes.
    """
    told = os.environ.get("CLCA_CACHE_GB") or str(DEFAULT_LIMIT)
    try:
        limit = decimal_number(told) if gigabytes is None else float(gigabytes)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < math.inf:
        where = f"CLCA_CACHE_GB is {told!r}" if gigabytes is None else f"cache_gb is {gigabytes:g}"
        raise ClcaError(f"{where}: give a number of gigabytes, such as 50")
    return limit * 1e9


def cached_sets() -> list[CachedSet]:
    """What is in the cache, last used first."""
    sets: dict[str, CachedSet] = {}
    for path in cache_folder().glob(f"*{SUFFIX}"):
        file = read_row_file(path)
        with suppress(OSError):
            found = path.stat()
            name = path.name.partition(".")[0]
            if file is None:
                sets[path.name] = CachedSet("damaged or of another version", 0, 0, found.st_size, found.st_mtime)
                continue
            before = sets.get(name) or CachedSet(file.root, file.side, 0, 0, 0.0)
            count, size = before.images + len(file.row_of), before.bytes + found.st_size
            sets[name] = CachedSet(file.root, file.side, count, size, max(before.used, found.st_mtime))
    return sorted(sets.values(), key=lambda one: -one.used)


def clear_cache() -> int:
    """Remove all resized images but those that are being written; who reads them now can read on.

    Returns:
        Bytes removed.
    """
    folder, removed = cache_folder(), 0
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            removed += size
    sweep(folder)
    return removed


@contextmanager
def locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold a lock file; the system releases it when the process ends in whatever way."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=2)
    except Timeout:
        if progress:
            _log.info("waiting for another process that is reading the same images")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_room(folder: Path, size: int, keep: set[Path], limit: float, name: str = "") -> None:
    """Remove the files used least recently until `size` bytes more fit into the limit and on the disk.

    Args:
        folder: The cache.
        size: Bytes that are to be written.
        keep: Files that stay.
        limit: Bytes that the whole cache may take.
        name: Of the set that is being filled, whose unfinished file is not looked into.

    Raises:
        NoRoom: They do not fit in any case.
    """
    sweep(folder, name)
    found = []
    for path in folder.iterdir():
        if path.suffix in (SUFFIX, UNFINISHED):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(each for _, each, _ in found)
    evictable = sorted(one for one in found if one[2].suffix == SUFFIX and one[2] not in keep)
    to_gain = sum(each for _, each, _ in evictable)
    if total - to_gain + size > limit:
        least = (total - to_gain + size) / 1e9
        raise NoRoom(f"with what is in use they take {least:.3g} GB, and the limit (CLCA_CACHE_GB) is {limit / 1e9:g}")
    too_full = f"they take {size / 1e9:.3g} GB and the disk of {folder} is too full"
    if shutil.disk_usage(folder).free + to_gain < size + _SPARE:
        raise NoRoom(too_full)
    for _, each, path in evictable:
        if total + size <= limit and shutil.disk_usage(folder).free >= size + _SPARE:
            return
        path.unlink(missing_ok=True)
        total -= each
    if shutil.disk_usage(folder).free < size + _SPARE:  # removed files that others still read hold their space
        raise NoRoom(too_full)


def sweep(folder: Path, but: str = "") -> None:
    """Remove unfinished files that nobody is writing."""
    for path in folder.glob(f"*{UNFINISHED}"):
        name = path.name.partition(".")[0]
        if name != but:
            with suppress(OSError, Timeout, NotImplementedError), FileLock(folder / f"{name}.lock", timeout=0):
                path.unlink(missing_ok=True)
