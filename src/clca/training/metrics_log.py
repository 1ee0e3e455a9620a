"""`metrics.jsonl`: what a run writes as it goes on, and by that the claim to train it."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from clca.errors import ClcaError, WorkError, reason
from clca.training.run_folder import CHECKPOINT, CONFIG, METRICS, WEIGHTS


@contextmanager
def claimed(folder: Path) -> Iterator["MetricsLog"]:
    """Let this process alone train the run in a folder as long as the block lasts.

    If it fails before anything of the run is saved, what describes it goes too, which would refuse a mended one.

    Raises:
        ClcaError: Another process trains it.
    """
    log = MetricsLog(folder / METRICS)
    try:
        yield log
    except BaseException:
        if not any((folder / name).is_file() for name in (CHECKPOINT, WEIGHTS)):
            for name in (CONFIG, METRICS):  # the claim last, and while it is ours: another may wait for it
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
        raise
    finally:
        log.close()


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line. While it is open no other process trains the run.

    Raises:
        ClcaError: Another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (stays open as long as the run)
            if not _lock(self._file):
                self._file.close()
                raise ClcaError(
                    f"--out {path.parent}: another process trains this run now; wait for its end, or choose another "
                    "folder"
                )
            if _is_open_file(path, self._file):
                return
            self._file.close()  # who had it before us has removed it between our opening and our lock

    def cut(self, size: int) -> None:
        """Go on where the last checkpoint saw its end: what was written after it is written again.

        Args:
            size: Bytes to keep.
        """
        self._file.truncate(min(size, self._file.seek(0, os.SEEK_END)))  # no zeros where lines were removed

    def write(self, line: dict[str, Any]) -> None:
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with self._told():
            while content:
                content = content[self._file.write(content) :]

    def sync(self) -> int:
        """Make sure that what was written is on disk; its size in bytes."""
        with self._told():
            os.fsync(self._file.fileno())
            return self._file.seek(0, os.SEEK_END)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkError(f"{self.path} could not be written ({reason(error)})") from error

    def close(self) -> None:
        self._file.close()


def _lock(file: IO[Any]) -> bool:
    """Whether this process alone may write to the file from now on, for as long as it is open.

    A record lock: gone with the process however that ends, and not handed on to processes that read images. Where the
    system or the disk has none, True.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _is_open_file(path: Path, file: IO[Any]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
