"""The resized-image cache: an image is decoded and resized to a size once, for all epochs, runs and processes.

What is kept are exactly the pixels that the resize gives, so training with and without the cache is the same bit for
bit. An image is known by path, size, times of change and inode, a set by its folder and by how its images were read;
whatever differs is read again. The files are in `$CLCA_CACHE/resized`, else `~/.cache/clca/resized`; one file
(`clca.data.cache.row_file`) is written by one process under a lock, and the others wait for it and read it.

A cache is never the reason that a run fails: where it cannot be filled, images are read from their own files.
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

from clca.data.cache.limits import NoRoom, cache_folder, cache_limit, locked, make_room
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
from clca.data.decoding import Decoders
from clca.data.transforms import ResizeFirst, SquareResize
from clca.errors import ClcaError, reason

READING = 3
"""Raise it with every change of `read_image` or of the resize that changes a pixel: what was kept is then read anew."""

_TICK = 0.02  # seconds: two changes of a file within one tick of a file system's clock look like one
_MANY_FILES = 8  # so many files of one set are made into one
_INDEX_ENTRY = 300  # bytes, roughly

_open: "WeakSet[ResizedRows]" = WeakSet()  # what this process reads from is not evicted by it


@dataclass
class Outcome:
    """What came of filling the cache.

    Attributes:
        bad: Images that cannot be read, with reasons.
        unread: Images that were not looked at, because the cache could not take them.
        problem: Why it could not, in a line; None where all is well.
    """

    bad: list[BadImage] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    problem: str | None = None


def use_cache(images: Sequence[Any], *, gigabytes: float | None = None, progress: bool = True) -> Outcome:
    """Let data sets read resized images from the cache, and put there what it lacks.

    Data sets whose transform does not begin with a square resize, and those in memory, are left as they are.

    Args:
        images: Data sets as `clca.data.open` gives them, with their transforms.
        gigabytes: Limit of the whole cache; None: `$CLCA_CACHE_GB`, else 20.
        progress: Show a bar on a terminal if it takes longer than two seconds.

    Raises:
        ClcaError: `$CLCA_CACHE_GB` is no number. Whatever else goes wrong is in the outcome.
    """
    limit = cache_limit(gigabytes)
    groups: dict[tuple[Path, SquareResize], list[ImageDataset]] = {}
    for dataset in images:
        resize = served_resize(dataset)
        if resize is not None and (dataset.resized is None or dataset.resized.resize != resize):
            groups.setdefault((dataset.root, resize), []).append(dataset)
    outcome = Outcome()
    if not groups:
        return outcome
    try:
        folder = cache_folder()
    except ClcaError as error:
        unread = dict.fromkeys(path for members in groups.values() for dataset in members for path in dataset.paths)
        return Outcome(unread=list(unread), problem=f"the resized images are not cached: {error}")
    for (root, resize), members in groups.items():
        shelf = _Shelf(folder, root, resize)
        paths = list(dict.fromkeys(path for dataset in members for path in dataset.paths))
        found = _fill(shelf, paths, limit, progress)
        outcome.bad += found.bad
        outcome.unread += found.unread
        outcome.problem = outcome.problem or found.problem
        files = shelf.files()
        for dataset in members:
            rows = ResizedRows(resize, files, dataset.paths)
            for path in rows.files.values():
                with suppress(OSError):  # evicted since, or a cache that is read-only to us
                    os.utime(path)
            dataset.resized = rows
            _open.add(rows)
    return outcome


def served_resize(images: Any) -> SquareResize | None:
    """The resize whose results the cache can keep for a data set; None where there is nothing to keep."""
    if isinstance(images, ImageDataset) and images.root is not None and isinstance(images.transform, ResizeFirst):
        return images.transform.resize
    return None


def _fill(shelf: "_Shelf", paths: list[Path], limit: float, progress: bool) -> Outcome:
    """Put the images into the cache that are not there yet."""
    missing = shelf.missing(paths, shelf.files())
    if not missing:
        return Outcome()
    try:
        shelf.folder.mkdir(parents=True, exist_ok=True)
        with locked(shelf.folder / f"{shelf.name}.lock", progress):
            shelf.remove_remains()
            missing = shelf.missing(paths, shelf.files())  # another process may have been here while we waited
            return shelf.add(missing, paths, limit, progress) if missing else Outcome()
    except NoRoom as error:
        return Outcome(unread=missing, problem=f"the resized images are not cached: {error}")
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        return Outcome(unread=missing, problem=_cannot_write(shelf.folder, error))


def _cannot_write(folder: Path, error: Exception) -> str:
    return f"the resized images are not cached: {folder} cannot be written ({reason(error)})"


class _Shelf:
    """The files of one data set at one size."""

    def __init__(self, folder: Path, root: Path, resize: SquareResize) -> None:
        self.folder, self.resize = folder, resize
        self.root = os.path.abspath(root)
        self.reading = how_images_are_read(resize)
        digest = hashlib.sha256(json.dumps([self.root, self.reading], sort_keys=True).encode()).hexdigest()[:12]
        self.name = f"{re.sub(r'[^0-9A-Za-z_-]+', '_', root.name)[:40]}-{resize.size}-{digest}"
        self.image_bytes = row_bytes(resize.size) + _INDEX_ENTRY

    def files(self) -> list[RowFile]:
        """The whole ones that hold what their name says."""
        found = [read_row_file(path) for path in sorted(self.folder.glob(f"{self.name}.*{SUFFIX}"))]
        return [file for file in found if file is not None and self._is_ours(file)]

    def _is_ours(self, file: RowFile) -> bool:
        return (file.root, file.reading, file.side) == (self.root, self.reading, self.resize.size)

    def missing(self, paths: list[Path], files: list[RowFile]) -> list[Path]:
        """The images that no file holds as they are now."""
        held = {source for file in files for source in file.row_of}
        return [path for path in paths if Source.of(path) not in held]

    def remove_remains(self) -> None:
        """Remove what a killed process left, and damaged files. Only under the lock."""
        good = {file.path for file in self.files()}
        for path in self.folder.glob(f"{self.name}.*"):
            if path.suffix == UNFINISHED or (path.suffix == SUFFIX and path not in good):
                path.unlink(missing_ok=True)

    def add(self, missing: list[Path], wanted: list[Path], limit: float, progress: bool) -> Outcome:
        """Read the missing images into a new file. Only under the lock.

        Raises:
            NoRoom: They do not fit; nothing was read.
            OSError: The folder cannot be written; nothing was read.
        """
        writer, plan = self._reserve(missing, wanted, limit)
        paths = plan.paths
        try:
            description = "reading images" if progress else None
            with Decoders(min(decoding_workers(), len(paths))) as decoders:
                filling = _Filling(writer, self.resize, paths, decoders)
                bad = [one for one in in_parallel(filling.read, range(len(paths)), description=description) if one]
            problem: Exception | None = filling.failed
            try:
                if problem is None:
                    self._finish(filling, plan)
            except (OSError, ValueError) as error:
                problem = error
            return Outcome(bad, problem=_cannot_write(self.folder, problem) if problem else None)
        finally:
            writer.discard()

    def _finish(self, filling: "_Filling", plan: "_Plan") -> None:
        """Copy the rows that move over, give the file its name, and remove those whose place it takes."""
        images = filling.images
        readers = {file.path: file.reader() for file, _ in plan.moved.values()}
        for source, (file, row) in plan.moved.items():
            pixels = readers[file.path].read(row)
            if pixels is not None:
                filling.writer.put(len(images), pixels)
            images.append(source if pixels is not None else None)
        if any(images):
            filling.writer.finish(self.root, self.reading, images)
        for path in plan.replaced:
            path.unlink(missing_ok=True)

    def _reserve(self, missing: list[Path], wanted: list[Path], limit: float) -> tuple[RowWriter, "_Plan"]:
        """Find room for a new file, and decide what goes into it."""
        files = self.files()
        held = {source for source in map(Source.of, wanted) if source is not None}
        needed = {file.path for file in files if held & file.row_of.keys()}
        in_use = {path for rows in _open for path in rows.files.values()}
        plans = [_Plan(missing, keep=needed)]
        rows = self._rows_still_valid(files)
        if len(files) >= _MANY_FILES or 2 * len(rows) < sum(len(file.row_of) for file in files):
            every = {file.path for file in files}
            plans.insert(0, _Plan(missing, rows, keep=every, replaced=every))
        if needed:  # the old files may hold so much else that all is better read anew
            plans.append(_Plan(wanted))
        with FileLock(self.folder / "room.lock"):
            for plan in plans:
                count = len(plan.paths) + len(plan.moved)
                try:
                    make_room(self.folder, count * self.image_bytes, plan.keep | in_use, limit, self.name)
                    return RowWriter(self.folder, self.name, self.resize.size, count), plan
                except NoRoom:
                    if plan is plans[-1]:
                        raise
        raise AssertionError("the last plan is made or refused")

    def _rows_still_valid(self, files: list[RowFile]) -> dict[Source, tuple[RowFile, int]]:
        rows = {source: (file, row) for file in files for source, row in file.row_of.items()}
        return {source: place for source, place in rows.items() if Source.of(source.path) == source}


@dataclass(frozen=True)
class _Plan:
    """What a new file is to hold.

    Attributes:
        paths: Images to read.
        moved: Rows to copy from old files.
        keep: Files that must not make room for it.
        replaced: Files that are of no use once it is there.
    """

    paths: list[Path]
    moved: dict[Source, tuple[RowFile, int]] = field(default_factory=dict)
    keep: set[Path] = field(default_factory=set)
    replaced: set[Path] = field(default_factory=set)


class _Filling:
    """Reads images into a file of rows, from several threads; decoded and resized in processes that can be ended."""

    def __init__(self, writer: RowWriter, resize: SquareResize, paths: list[Path], decoders: Decoders) -> None:
        self.writer, self.resize, self.paths = writer, (resize.size, resize.interpolation), paths
        self.decoders = decoders
        self.images: list[Source | None] = [None] * len(paths)
        self.failed: OSError | None = None

    def read(self, row: int) -> BadImage | None:
        """Read, resize and write one image. Once nothing can be written any more the others are still looked at."""
        path = self.paths[row]
        source = Source.of(path)
        if source is not None and abs(time.time_ns() - max(source.mtime_ns, source.ctime_ns)) < _TICK * 1e9:
            time.sleep(_TICK)  # a change that comes after this one shows in the times
        try:
            image, _ = self.decoders.image(path, self.resize)
        except ClcaError as error:
            return BadImage(path, str(error).removeprefix(f"{path}: "))
        if self.failed is None:
            pixels = np.asarray(image).transpose(2, 0, 1)
            try:
                self.writer.put(row, pixels)
            except OSError as error:
                self.failed = error
            if source is not None and Source.of(path) == source:
                self.images[row] = source
        return None


def how_images_are_read(resize: SquareResize) -> dict[str, Any]:
    """All that the pixels of a resized image depend on but the image."""
    decoders = {name: features.version(name) for name in ("jpg", "libtiff", "webp", "avif") if _has(name)}
    return {
        "reading": READING,
        "resize": [resize.size, resize.size],
        "interpolation": resize.interpolation,
        "antialias": True,
        "pillow": version("pillow"),
        "torchvision": version("torchvision"),
        "decoders": decoders,
    }


def _has(feature: str) -> bool:
    return (feature in features.codecs or feature in features.modules) and bool(features.check(feature))
