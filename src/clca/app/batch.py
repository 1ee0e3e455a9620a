"""`classify`: many photographs, and zips of them, through the models of the endpoint, a few at a time."""

import asyncio
import logging
import os
import stat
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from clca.app.zip_reader import Archive, ArchiveLimits, beginning, is_archive, is_zip, shown
from clca.errors import ClcaError
from clca.serve.errors import Refusal
from clca.serve.served_model import Rates, ServedModel
from clca.serve.service import Ranked, Service
from clca.serve.settings import MIB, ServeSettings
from clca.serve.upload import Upload

_log = logging.getLogger(__name__)

# A batch takes at most this part of the service's capacity at once; the rest is for requests of one image.
_SHARE = 4

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold.

    Attributes:
        files: Photographs in all, those in zips among them.
        archives: Zips.
        wait_seconds: How long a few photographs wait while the endpoint is busy.
        archive: Of each zip.

    Raises:
        ClcaError: Where a number is not positive.
    """

    files: int = 2000
    archives: int = 20
    wait_seconds: float = 120.0
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)

    def __post_init__(self) -> None:
        for name in ("files", "archives", "wait_seconds"):
            if not getattr(self, name) > 0:
                raise ClcaError(f"{name} = {getattr(self, name)}: has to be above 0")


@dataclass(frozen=True)
class Row:
    """The answer to one file.

    Attributes:
        name: For people to read; with the name of its zip before it where more than one file was sent.
        classes: The most likely ones, best first; none where there is an error.
        probabilities: Theirs, in 0 … 1.
        error: Why there is no answer.
        unfamiliarity: As of `clca.serve.service.Ranked`.
    """

    name: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: Refusal | None = None
    unfamiliarity: float | None = None

    @property
    def is_unfamiliar(self) -> bool:
        """Whether the photograph is taken for none of the classes."""
        return self.unfamiliarity is not None and self.unfamiliarity > 1


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    Attributes:
        done: Rows up to now.
        total: Rows at the end.
        rows: The newest ones, in the order of the files.
        left_out: Folders in zips, and what desktops add to zips; they get no row.
    """

    done: int
    total: int
    rows: tuple[Row, ...]
    left_out: int


async def classify(
    service: Service,
    served: ServedModel,
    rates: Rates,
    files: Sequence[tuple[str, Path]],
    limits: BatchLimits | None = None,
    top_k: int = 3,
) -> AsyncGenerator[Progress, None]:
    """Classify photographs, in the order given; those of a zip in the order of the zip.

    Every file gets one row, with classes or with the reason for none; so does a zip that is refused as a whole. Files
    are read in a separate thread, as many at once as the model takes in one batch, and are computed like the endpoint's
    requests; while the service is full, the batch waits. It ends soon after the iteration is cancelled or closed, and
    takes up none of the service's capacity while its caller is busy.

        async for progress in classify(service, served, served.keep_rate, [("leaves.zip", path)]):
            rows += progress.rows

    Args:
        service: Used in its own event loop.
        served: The model.
        rates: As `served.rates` returned.
        files: Of each the name that the user gave it, which is only shown, and where it lies. Whether it is a zip is
            seen from its content.
        limits: What the batch may hold.
        top_k: Classes of each row.

    Yields:
        One `Progress` before the first photograph, then one after every few.

    Raises:
        Refusal: Before anything is computed: 413 where there are more photographs or zips than allowed, 422 where there
            is nothing, and the refusal of a zip that is the only file.
    """
    limits = limits or BatchLimits()
    loop = asyncio.get_running_loop()
    work = _Work(files, limits, service.settings)
    # One thread, so that what is opened is closed after the last read from it, however the batch ends.
    reader = ThreadPoolExecutor(1, "clca-batch")
    try:
        await loop.run_in_executor(reader, work.open)
        done, total = 0, len(work.images)
        yield Progress(0, total, (), work.left_out)
        stopped: Refusal | None = None
        while done < total:
            if stopped is None:
                found = await loop.run_in_executor(reader, work.read)
                rows, stopped = await _rows(service, served, rates, found, top_k, limits.wait_seconds)
            else:
                rows = [Row(image.name, error=stopped) for image in work.images[done:]]
            done += len(rows)
            yield Progress(done, total, tuple(rows), work.left_out)
    finally:
        work.cancelled.set()
        reader.submit(work.close)
        reader.shutdown(wait=False)


@dataclass(frozen=True)
class _Image:
    name: str
    read: Callable[[], bytearray]


@dataclass(frozen=True)
class _Read:
    name: str
    data: bytearray | Refusal


class _Work:
    """The files of a batch, opened and read in one thread."""

    def __init__(self, files: Sequence[tuple[str, Path]], limits: BatchLimits, settings: ServeSettings) -> None:
        self.images: list[_Image] = []
        self.left_out = 0
        self.cancelled = threading.Event()
        self._files, self._limits = files, limits
        self._most_images = max(1, min(settings.max_batch, settings.queue // _SHARE))
        self._most_bytes = min(settings.request_bytes, settings.held_bytes // _SHARE)
        # One longer than all that may be held would wait for ever.
        self._file_bytes = min(settings.file_bytes, settings.held_bytes)
        self._archives: list[Archive] = []
        self._next = 0
        self._kept: _Read | None = None

    def open(self) -> None:
        """Find out what there is, without reading any of it."""
        if not self._files:
            raise Refusal(422, "no_image", "choose photographs or a zip of them first")
        if len(self._files) > self._limits.files:
            raise self._too_many(len(self._files))
        for name, path in self._files:
            if self.cancelled.is_set():
                return
            if is_zip(path):
                self._open_zip(shown(name), path)
            else:
                self.images.append(_Image(shown(name), partial(_content, path, self._file_bytes)))
            if len(self.images) > self._limits.files:
                raise self._too_many(len(self.images))

    def _open_zip(self, name: str, path: Path) -> None:
        if len(self._archives) >= self._limits.archives:
            most = self._limits.archives
            raise Refusal(413, "too_many_archives", f"more than {most} zips: send them one after the other")
        limits = replace(
            self._limits.archive,
            files=min(self._limits.archive.files, self._limits.files),
            member_bytes=min(self._limits.archive.member_bytes, self._file_bytes),
        )
        alone = len(self._files) == 1
        try:
            archive = Archive(path, limits)
        except Refusal as refusal:
            if alone:
                raise
            if refusal.code == "too_many_files":
                raise Refusal(refusal.status, refusal.code, f"{name} {refusal.message}") from None
            self.images.append(_Image(name, partial(_refuse, refusal)))
            return
        self._archives.append(archive)
        self.left_out += archive.left_out
        for member in archive.members:
            inside = member.name if alone else f"{name}/{member.name}"
            self.images.append(_Image(inside, partial(archive.read, member)))

    def read(self) -> list[_Read]:
        """The next files, as many as go through the service at once; at least one while there are any."""
        found: list[_Read] = []
        held = 0
        while len(found) < self._most_images and not self.cancelled.is_set():
            one, self._kept = self._kept or self._read_one(), None
            if one is None:
                break
            length = 0 if isinstance(one.data, Refusal) else len(one.data)
            if found and held + length > self._most_bytes:
                self._kept = one
                break
            found.append(one)
            held += length
        return found

    def _read_one(self) -> _Read | None:
        if self._next == len(self.images):
            return None
        image = self.images[self._next]
        self._next += 1
        try:
            return _Read(image.name, image.read())
        except Refusal as refusal:
            return _Read(image.name, refusal)

    def close(self) -> None:
        for archive in self._archives:
            archive.close()

    def _too_many(self, count: int) -> Refusal:
        most = self._limits.files
        return Refusal(413, "too_many_files", f"{count} photographs, over the limit of {most}: send fewer at once")


def _content(path: Path, most: int) -> bytearray:
    too_long = Refusal(413, "file_too_long", f"is over the limit of {most / MIB:g} MiB")
    unreadable = Refusal(422, "unreadable", "cannot be read any more: send it again")
    try:
        if is_archive(beginning(path, 512)):
            raise Refusal(415, "unknown_archive", "is an archive of another kind: pack the photographs as .zip")
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):  # a link, or a pipe that would never end
            raise unreadable
        if status.st_size > most:
            raise too_long
        with open(path, "rb") as file:
            data = bytearray(file.read(most + 1))
    except OSError:
        raise unreadable from None
    if len(data) > most:
        raise too_long
    return data


def _refuse(refusal: Refusal) -> bytearray:
    raise refusal


async def _rows(
    service: Service, served: ServedModel, rates: Rates, found: Sequence[_Read], top_k: int, wait_seconds: float
) -> tuple[list[Row], Refusal | None]:
    """One row for each, and why nothing more will be answered, if that is so."""
    uploads = [Upload(one.name, one.data) for one in found if not isinstance(one.data, Refusal)]
    answers: Sequence[Ranked | Refusal] = ()
    stopped = None
    if uploads:
        try:
            answers = await _answers(service, served, rates, uploads, top_k, wait_seconds)
        except Refusal as refusal:
            stopped = refusal
            answers = [refusal] * len(uploads)
    following = iter(answers)
    rows = []
    for one in found:
        answer = one.data if isinstance(one.data, Refusal) else next(following)
        if isinstance(answer, Refusal):
            rows.append(Row(one.name, error=answer))
        else:
            rows.append(Row(one.name, answer.classes, answer.probabilities, unfamiliarity=answer.unfamiliarity))
    return rows, stopped


async def _answers(
    service: Service, served: ServedModel, rates: Rates, uploads: Sequence[Upload], top_k: int, wait_seconds: float
) -> Sequence[Ranked | Refusal]:
    """The service's answers, as soon as it has capacity.

    Raises:
        Refusal: 429 if it was full for too long, 503 if it is stopping.
    """
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + wait_seconds, _FIRST_PAUSE
    while True:
        try:
            with service.place() as place:
                place.more_images(len(uploads) - 1)
                place.more_bytes(sum(len(upload.data) for upload in uploads))
                return await service.answer(uploads, served, rates, top_k)
        except Refusal as refusal:
            if refusal.status != 429 or loop.time() + pause > end:
                raise
        except Exception:  # of these photographs; the next may go well
            _log.exception("a batch of %d photographs failed", len(uploads))
            return [Refusal(500, "failed", "the server failed: see its log")] * len(uploads)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
