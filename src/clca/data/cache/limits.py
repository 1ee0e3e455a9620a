"""Location, size limit, eviction and locking of the resized-image cache."""

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
"""Size limit of the whole cache in gigabytes (10⁹ bytes)."""

FEATURES = "features"
"""Folder of the features of frozen models, beside the resized images."""

_KEEP_FREE = 10**9  # bytes of the disk that the cache leaves free


@dataclass(frozen=True)
class CachedSet:
    """One data set at one size: its folder or file, side in pixels, images, bytes, and time of last use (Unix time)."""

    root: str
    side: int
    images: int
    bytes: int
    used: float


class CacheFull(Exception):
    """New images do not fit into the cache; the message is the reason, in one line."""


def cache_folder() -> Path:
    """The folder of the resized images, which need not exist yet.

    Raises:
        ClcaError: The home folder, of the user or in `$CLCA_CACHE`, does not exist.
    """
    setting = os.environ.get("CLCA_CACHE")
    try:
        if setting:
            return Path(setting).expanduser().absolute() / "resized"
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(caches).absolute() / "clca" / "resized"
    except RuntimeError:
        where = f"CLCA_CACHE is {setting!r}" if setting else "CLCA_CACHE is not set"
        raise ClcaError(f"{where} and there is no such home folder: set it to a folder") from None


def beside_cache(name: str) -> Path | None:
    """Path of another file that can be recomputed, beside the images; None if there is no folder for it."""
    try:
        return cache_folder().parent / name
    except ClcaError:
        return None


def cache_limit(gigabytes: float | None = None) -> float:
    """Size limit of the cache in bytes: `gigabytes`, else `$CLCA_CACHE_GB`, else 20 GB.

    Raises:
        ClcaError: The argument, or the variable, is not a number of gigabytes.
    """
    setting = os.environ.get("CLCA_CACHE_GB") or str(DEFAULT_LIMIT)
    try:
        given = math.inf if setting == "inf" else decimal_number(setting)
        limit = given if gigabytes is None else float(gigabytes)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        where = f"CLCA_CACHE_GB is {setting!r}" if gigabytes is None else f"cache_gb is {gigabytes:g}"
        raise ClcaError(f"{where}: give a number of gigabytes, such as 50")
    return limit * 1e9


def cached_sets() -> list[CachedSet]:
    """The data sets in the cache, most recently used first."""
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


def feature_folders() -> list[tuple[Path, int, float]]:
    """Folders of stored features of frozen models: path, bytes, time of last use (Unix time); the oldest first."""
    folder = beside_cache(FEATURES)
    found = []
    for path in folder.iterdir() if folder is not None and folder.is_dir() else ():
        with suppress(OSError):
            sizes = [file.stat().st_size for file in path.iterdir()]
            found.append((path, sum(sizes), path.stat().st_mtime))
    return sorted(found, key=lambda each: each[2])


def free_features(size: int, keep: Path) -> None:
    """Remove the least recently used features until `size` more bytes fit into the cache's limit."""
    limit, found = cache_limit(), feature_folders()
    total = size + sum(each for _, each, _ in found)
    for path, each, _ in found:
        if total > limit and path != keep:
            shutil.rmtree(path, ignore_errors=True)
            total -= each


def clear_cache() -> int:
    """Remove all features, and all resized images except those being written; their readers can continue.

    Returns:
        Bytes removed.
    """
    folder, removed = cache_folder(), 0
    for path, size, _ in feature_folders():
        shutil.rmtree(path, ignore_errors=True)
        removed += size
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            removed += size
    remove_unfinished(folder)
    return removed


@contextmanager
def locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold a lock file; the system releases it when the process ends, even if it is killed."""
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


def free_space(folder: Path, size: int, keep: set[Path], limit: float, name: str = "") -> None:
    """Evict the least recently used files until `size` more bytes fit into the limit and on the disk.

    Args:
        folder: The cache folder.
        size: Bytes to be written.
        keep: Files that must not be evicted.
        limit: Size limit of the whole cache in bytes.
        name: Name of the set that is being added, whose unfinished file is kept.

    Raises:
        CacheFull: They do not fit even then.
    """
    remove_unfinished(folder, name)
    found = []
    for path in folder.iterdir():
        if path.suffix in (SUFFIX, UNFINISHED):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(each for _, each, _ in found)
    evictable = sorted(one for one in found if one[2].suffix == SUFFIX and one[2] not in keep)
    evictable_bytes = sum(each for _, each, _ in evictable)
    if total - evictable_bytes + size > limit:
        needed = (total - evictable_bytes + size) / 1e9
        raise CacheFull(
            f"with the files in use they need {needed:.3g} GB, and the limit (CLCA_CACHE_GB) is {limit / 1e9:g} GB"
        )
    too_full = f"they need {size / 1e9:.3g} GB and the disk of {folder} is too full"
    if shutil.disk_usage(folder).free + evictable_bytes < size + _KEEP_FREE:
        raise CacheFull(too_full)
    for _, each, path in evictable:
        if total + size <= limit and shutil.disk_usage(folder).free >= size + _KEEP_FREE:
            return
        path.unlink(missing_ok=True)
        total -= each
    if (
        shutil.disk_usage(folder).free < size + _KEEP_FREE
    ):  # the space of a removed file is not free while a process reads it
        raise CacheFull(too_full)


def remove_unfinished(folder: Path, keep: str = "") -> None:
    """Remove unfinished files that no process is writing, except those of the set named `keep`."""
    for path in folder.glob(f"*{UNFINISHED}"):
        name = path.name.partition(".")[0]
        if name != keep:
            with suppress(OSError, Timeout, NotImplementedError), FileLock(folder / f"{name}.lock", timeout=0):
                path.unlink(missing_ok=True)
