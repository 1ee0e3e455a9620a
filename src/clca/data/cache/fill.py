"""Fill the resized-image cache: each image is decoded and resized once for all epochs, runs and processes.

The cache stores exactly the pixels that the resize returns, so training with and without it is bit-identical. An image
is identified by path, size, modification times and inode, a data set by its folder and the settings of reading; if any
of these differ, the image is read again. The files are in `$CLCA_CACHE/resized`, else `~/.cache/clca/resized`. Each
file (`clca.data.cache.row_file`) is written by one process under a lock; other processes wait for it and read it.

The cache never makes a run fail: if it cannot be filled, images are read from their own files.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from filelock import FileLock
from PIL import features

from clca.data.cache.limits import CacheFull, cache_folder, cache_limit, free_space, locked
from clca.data.cache.row_file import (
    SUFFIX,
    UNFINISHED,
    RowFile,
    RowWriter,
    Source,
    read_row_file,
    row_bytes,
)
from clca.data.cache.rows import ResizedRows
from clca.data.checks.decode import BadImage, decoding_workers, in_parallel
from clca.data.datasets import ImageDataset
from clca.data.decoder import is_near_empty
from clca.data.decoding import Decoders
from clca.data.image_formats import PLUGINS, has_plugin
from clca.data.transforms import ResizeFirst, SquareResize
from clca.errors import ClcaError, reason

READER_VERSION = 4
"""Increment it with every change of `read_image` or the resize that changes a pixel, to invalidate what is cached."""

_TICK = 0.02  # seconds; two changes of a file within one tick of the file system's clock have the same time
_MANY_FILES = 8  # from this number on, the files of a set are merged into one
_INDEX_ENTRY = 300  # bytes, roughly

_open: "WeakSet[ResizedRows]" = WeakSet()  # this process does not evict the files that it reads


@dataclass
class CacheResult:
    """The result of filling the cache.

    Attributes:
        bad: Images that cannot be read, with reasons.
        unread: Images that were not read, because the cache could not store them.
        near_empty: Images in which almost all pixels are equal, of those that the cache stores.
        problem: The reason, in one line; None if the cache was filled.
    """

    bad: list[BadImage] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    near_empty: list[Path] = field(default_factory=list)
    problem: str | None = None


def use_cache(images: Sequence[Any], *, gigabytes: float | None = None, progress: bool = True) -> CacheResult:
    """Make data sets read resized images from the cache, and add the missing ones to it.

    Data sets in memory, and those whose transform does not begin with a square resize, are not changed.

    Args:
        images: Data sets from `clca.data.open`, with their transforms.
        gigabytes: Size limit of the whole cache; None: `$CLCA_CACHE_GB`, else 20.
        progress: Show a progress bar on a terminal if it takes longer than two seconds.

    Raises:
        ClcaError: `$CLCA_CACHE_GB` is not a number. All other problems are in the result.
    """
    limit = cache_limit(gigabytes)
    groups: dict[tuple[Path, SquareResize], list[ImageDataset]] = {}
    for dataset in images:
        resize = cacheable_resize(dataset)
        if resize is not None and (dataset.resized is None or dataset.resized.resize != resize):
            groups.setdefault((dataset.root, resize), []).append(dataset)
    result = CacheResult()
    if not groups:
        return result
    try:
        folder = cache_folder()
    except ClcaError as error:
        unread = dict.fromkeys(path for members in groups.values() for dataset in members for path in dataset.paths)
        return CacheResult(unread=list(unread), problem=f"the resized images are not cached: {error}")
    for (root, resize), members in groups.items():
        cache = _SetCache(folder, root, resize)
        paths = list(dict.fromkeys(path for dataset in members for path in dataset.paths))
        found = _fill(cache, paths, limit, progress)
        result.bad += found.bad
        result.unread += found.unread
        result.problem = result.problem or found.problem
        files = cache.files()
        empty = {source for file in files for source, row in file.row_of.items() if row in file.near_empty}
        if empty:
            result.near_empty += [path for path in paths if Source.of(path) in empty]
        for dataset in members:
            rows = ResizedRows(resize, files, dataset.paths)
            for path in rows.files.values():
                with suppress(OSError):  # evicted in the meantime, or the cache is read-only
                    os.utime(path)
            dataset.resized = rows
            _open.add(rows)
    return result


def cacheable_resize(images: Any) -> SquareResize | None:
    """The resize whose results can be cached for a data set; None if there is none."""
    if isinstance(images, ImageDataset) and images.root is not None and isinstance(images.transform, ResizeFirst):
        return images.transform.resize
    return None


def _fill(cache: "_SetCache", paths: list[Path], limit: float, progress: bool) -> CacheResult:
    """Add the images to the cache that are not there yet."""
    missing = cache.missing(paths, cache.files())
    if not missing:
        return CacheResult()
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        with locked(cache.folder / f"{cache.name}.lock", progress):
            cache.remove_leftovers()
            missing = cache.missing(paths, cache.files())  # another process may have added them in the meantime
            return cache.add(missing, paths, limit, progress) if missing else CacheResult()
    except CacheFull as error:
        return CacheResult(unread=missing, problem=f"the resized images are not cached: {error}")
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        return CacheResult(unread=missing, problem=_cannot_write(cache.folder, error))


def _cannot_write(folder: Path, error: Exception) -> str:
    return f"the resized images are not cached: {folder} cannot be written ({reason(error)})"


class _SetCache:
    """The cache files of one data set at one size."""

    def __init__(self, folder: Path, root: Path, resize: SquareResize) -> None:
        self.folder, self.resize = folder, resize
        self.root = os.path.abspath(root)
        self.reading = reader_settings(resize)
        digest = hashlib.sha256(json.dumps([self.root, self.reading], sort_keys=True).encode()).hexdigest()[:12]
        self.name = f"{re.sub(r'[^0-9A-Za-z_-]+', '_', root.name)[:40]}-{resize.size}-{digest}"
        self.image_bytes = row_bytes(resize.size) + _INDEX_ENTRY

    def files(self) -> list[RowFile]:
        """The complete files whose index matches the data set and the settings of reading."""
        found = [read_row_file(path) for path in sorted(self.folder.glob(f"{self.name}.*{SUFFIX}"))]
        return [file for file in found if file is not None and self._matches(file)]

    def _matches(self, file: RowFile) -> bool:
        return (file.root, file.reading, file.side) == (self.root, self.reading, self.resize.size)

    def missing(self, paths: list[Path], files: list[RowFile]) -> list[Path]:
        """The images whose current version is in no file."""
        cached = {source for file in files for source in file.row_of}
        return [path for path in paths if Source.of(path) not in cached]

    def remove_leftovers(self) -> None:
        """Remove damaged files, and unfinished ones of killed processes. Requires the lock."""
        good = {file.path for file in self.files()}
        for path in self.folder.glob(f"{self.name}.*"):
            if path.suffix == UNFINISHED or (path.suffix == SUFFIX and path not in good):
                path.unlink(missing_ok=True)

    def add(self, missing: list[Path], wanted: list[Path], limit: float, progress: bool) -> CacheResult:
        """Read the missing images into a new file. Requires the lock.

        Raises:
            CacheFull: The images do not fit; none was read.
            OSError: The folder cannot be written; no image was read.
        """
        writer, plan = self._reserve(missing, wanted, limit)
        paths = plan.paths
        try:
            description = "reading images" if progress else None
            with Decoders(min(decoding_workers(), len(paths))) as decoders:
                filler = _Filler(writer, self.resize, paths, decoders)
                bad = [one for one in in_parallel(filler.read, range(len(paths)), description=description) if one]
            problem: Exception | None = filler.error
            try:
                if problem is None:
                    self._finish(filler, plan)
            except (OSError, ValueError) as error:
                problem = error
            return CacheResult(bad, problem=_cannot_write(self.folder, problem) if problem else None)
        finally:
            writer.discard()

    def _finish(self, filler: "_Filler", plan: "_FilePlan") -> None:
        """Copy the rows of old files, publish the new file, and remove the files that it replaces."""
        images = filler.images
        readers = {file.path: file.reader() for file, _ in plan.moved.values()}
        for source, (file, row) in plan.moved.items():
            pixels = readers[file.path].read(row)
            if pixels is not None:
                filler.writer.put(len(images), pixels)
                if row in file.near_empty:
                    filler.near_empty.add(len(images))
            images.append(source if pixels is not None else None)
        if any(images):
            filler.writer.finish(self.root, self.reading, images, filler.near_empty)
        for path in plan.replaced:
            path.unlink(missing_ok=True)

    def _reserve(self, missing: list[Path], wanted: list[Path], limit: float) -> tuple[RowWriter, "_FilePlan"]:
        """Free space for a new file, and decide what to put into it."""
        files = self.files()
        sources = {source for source in map(Source.of, wanted) if source is not None}
        needed = {file.path for file in files if sources & file.row_of.keys()}
        in_use = {path for rows in _open for path in rows.files.values()}
        plans = [_FilePlan(missing, keep=needed)]
        rows = self._rows_still_valid(files)
        if len(files) >= _MANY_FILES or 2 * len(rows) < sum(len(file.row_of) for file in files):
            every = {file.path for file in files}
            plans.insert(0, _FilePlan(missing, rows, keep=every, replaced=every))
        if needed:  # if the old files contain much else, read everything again instead of keeping them
            plans.append(_FilePlan(wanted))
        with FileLock(self.folder / "room.lock"):  # other versions of clca use this name too
            for plan in plans:
                count = len(plan.paths) + len(plan.moved)
                try:
                    free_space(self.folder, count * self.image_bytes, plan.keep | in_use, limit, self.name)
                    return RowWriter(self.folder, self.name, self.resize.size, count), plan
                except CacheFull:
                    if plan is plans[-1]:
                        raise
        raise AssertionError("the last option either succeeds or raises")

    def _rows_still_valid(self, files: list[RowFile]) -> dict[Source, tuple[RowFile, int]]:
        rows = {source: (file, row) for file in files for source, row in file.row_of.items()}
        return {source: place for source, place in rows.items() if Source.of(source.path) == source}


@dataclass(frozen=True)
class _FilePlan:
    """The planned contents of a new file.

    Attributes:
        paths: Images to read.
        moved: Rows to copy from old files.
        keep: Files that must not be evicted for it.
        replaced: Files that it makes obsolete.
    """

    paths: list[Path]
    moved: dict[Source, tuple[RowFile, int]] = field(default_factory=dict)
    keep: set[Path] = field(default_factory=set)
    replaced: set[Path] = field(default_factory=set)


class _Filler:
    """Reads images into a file of rows, from several threads; decoding and resizing run in other processes."""

    def __init__(self, writer: RowWriter, resize: SquareResize, paths: list[Path], decoders: Decoders) -> None:
        self.writer, self.resize, self.paths = writer, (resize.size, resize.interpolation), paths
        self.decoders = decoders
        self.images: list[Source | None] = [None] * len(paths)
        self.near_empty: set[int] = set()
        self.error: OSError | None = None

    def read(self, row: int) -> BadImage | None:
        """Read, resize and write one image; after a failed write, the remaining images are still verified."""
        path = self.paths[row]
        source = Source.of(path)
        if source is not None and abs(time.time_ns() - max(source.mtime_ns, source.ctime_ns)) < _TICK * 1e9:
            time.sleep(_TICK)  # so that a later change has another time
        try:
            image, _ = self.decoders.image(path, self.resize)
        except ClcaError as error:
            return BadImage(path, str(error).removeprefix(f"{path}: "))
        if is_near_empty(image):
            self.near_empty.add(row)
        if self.error is None:
            pixels = np.asarray(image).transpose(2, 0, 1)
            try:
                self.writer.put(row, pixels)
            except OSError as error:
                self.error = error
            if source is not None and Source.of(path) == source:
                self.images[row] = source
        return None


def reader_settings(resize: SquareResize) -> dict[str, Any]:
    """Everything but the image itself that determines the pixels of a resized image."""
    return {
        **reader_versions(),
        "resize": [resize.size, resize.size],
        "interpolation": resize.interpolation,
        "antialias": True,
        "torchvision": version("torchvision"),
    }


def reader_versions() -> dict[str, Any]:
    """Versions of everything that decodes an image and converts its colours."""
    decoders = {name: features.version(name) for name in ("jpg", "libtiff", "webp", "avif", "littlecms2") if _has(name)}
    decoders |= {module: version(module.replace("_", "-")) for name, module in PLUGINS.items() if has_plugin(name)}
    return {"reading": READER_VERSION, "pillow": version("pillow"), "decoders": decoders}


def _has(feature: str) -> bool:
    return (feature in features.codecs or feature in features.modules) and bool(features.check(feature))
