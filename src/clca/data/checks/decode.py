"""Decode all image files in parallel, to verify them or to collect size, format and a thumbnail."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from clca.data.decoder import NOTES, THUMBNAIL
from clca.data.decoding import Decoders
from clca.data.images import open_regular
from clca.errors import ClcaError, reason
from clca.system.forecast import TimeLeftColumn

__all__ = ["THUMBNAIL", "BadImage", "Inspection", "in_parallel", "inspect_images", "track", "verify_images"]

_PROGRESS_AFTER = 2.0  # seconds

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class BadImage:
    """An image file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Inspection:
    """Properties of a readable image file.

    Attributes:
        path: The file.
        size: Width and height in pixels, upright.
        kind: Format and mode, as in "JPEG RGB".
        digest: SHA-256 of the file's bytes.
        thumbnail: Mean colours of 32 × 32 cells, [32, 32, 3] uint8.
        near_empty: Whether almost all pixels have the median colour of the image.
        profile: Name of the colour profile that it was converted from; None for sRGB or none.
        profile_problem: Why its colour profile was ignored, in words that follow "its colour profile".
        left_out: Which bands were left out, in words that follow its name.
        dark: Why it is almost black, if its values use few of 16 bits.
    """

    path: Path
    size: tuple[int, int]
    kind: str
    digest: bytes
    thumbnail: NDArray[np.uint8]
    near_empty: bool
    profile: str | None = None
    profile_problem: str | None = None
    left_out: str | None = None
    dark: str | None = None


@dataclass(frozen=True)
class Verified:
    """What decoding all images found, each in the given order.

    Attributes:
        bad: Files that cannot be read, with reasons.
        near_empty: Files in which almost all pixels are equal.
    """

    bad: list[BadImage]
    near_empty: list[Path]


def verify_images(paths: Sequence[Path], workers: int | None = None, *, progress: bool = True) -> list[BadImage]:
    """Decode all images completely, to find damaged ones before training starts.

    Args:
        paths: The files, in any order; duplicates are read once.
        workers: Number of processes (`clca.data.decoding`); None: one per processor, at most 16.
        progress: Show a progress bar on a terminal if it takes longer than two seconds.

    Returns:
        The files that cannot be read, with reasons, in the given order.
    """
    return decode_all(paths, workers, progress=progress).bad


def decode_all(paths: Sequence[Path], workers: int | None = None, *, progress: bool = True) -> Verified:
    """As `verify_images`; also finds the images that are nearly empty."""
    paths = list(dict.fromkeys(paths))

    def verify(path: Path) -> BadImage | bool:
        try:
            return decoders.verify(path)
        except ClcaError as error:
            return BadImage(path, _without_path(error, path))

    with Decoders(min(decoding_workers(workers), len(paths))) as decoders:
        found = list(in_parallel(verify, paths, workers, "checking images" if progress else None))
    return Verified(
        [bad for bad in found if isinstance(bad, BadImage)],
        [path for path, near_empty in zip(paths, found, strict=True) if near_empty is True],
    )


def inspect_images(
    paths: Sequence[Path], workers: int | None = None, *, progress: bool = True
) -> list[Inspection | BadImage]:
    """Inspect all image files, in the given order; arguments as for `verify_images`."""

    def inspect(path: Path) -> Inspection | BadImage:
        try:
            found, thumbnail = decoders.inspect(path)
            with open_regular(path) as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except ClcaError as error:
            return BadImage(path, _without_path(error, path))
        except OSError as error:
            return BadImage(path, reason(error))
        colours = np.frombuffer(thumbnail, np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3)
        width, height = found["size"]
        notes = {name: found[name] for name in NOTES}
        return Inspection(path, (width, height), found["kind"], digest, colours, found["near_empty"], **notes)

    with Decoders(min(decoding_workers(workers), len(paths))) as decoders:
        return list(in_parallel(inspect, paths, workers, "inspecting images" if progress else None))


def _without_path(error: ClcaError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def in_parallel(
    work: Callable[[T], R], items: Sequence[T], workers: int | None = None, description: str | None = None
) -> Iterator[R]:
    """Map `work` over `items` in threads, in order; show a progress bar if there is a description."""
    executor = ThreadPoolExecutor(decoding_workers(workers))
    try:
        yield from track(executor.map(work, items), len(items), description)
    finally:  # on Ctrl-C, cancel the remaining images
        executor.shutdown(wait=True, cancel_futures=True)


def decoding_workers(workers: int | None = None) -> int:
    """Number of images decoded in parallel: `workers`, or one per processor, at most 16."""
    workers = workers or min(16, os.cpu_count() or 1)
    if workers < 1:
        raise ClcaError(f"workers is {workers}: needs at least 1")
    return workers


def track(items: Iterable[T], total: int, description: str | None) -> Iterator[T]:
    """Yield the items, with a progress bar on stderr after two seconds if stderr is a terminal."""
    console = Console(stderr=True)
    if description is None or not console.is_terminal:
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeLeftColumn(),
    )
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(description, total=total)
    start = time.monotonic()
    try:
        for item in items:
            if not progress.live.is_started and time.monotonic() - start > _PROGRESS_AFTER:
                progress.start()
            progress.advance(task)
            yield item
    finally:
        progress.stop()
