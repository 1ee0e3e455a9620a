"""`metrics.jsonl`: the metrics of a run as it progresses, and the lock on the run."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from clca.errors import ClcaError, WorkError, reason
from clca.training.run_folder import CHECKPOINT, CONFIG, IMAGES, METRICS, WEIGHTS


@contextmanager
def locked_log(folder: Path) -> Iterator["MetricsLog"]:
    """Let no other process train the run in a folder while the block lasts.

    If it fails before anything is saved, `config.json` and `images.csv` are removed too:
    they would reject a corrected run.

    Raises:
        ClcaError: Another process is training the run.
    """
    log = MetricsLog(folder / METRICS)
    try:
        yield log
    except BaseException:
        if not any((folder / name).is_file() for name in (CHECKPOINT, WEIGHTS)):
            for name in (CONFIG, IMAGES, METRICS):  # the log last, while it is locked: another process may wait for it
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
        raise
    finally:
        log.close()


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line. While it is open no other process can train the run.

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
                    f"--out {path.parent}: another process is training this run; wait until it ends, or choose another "
                    "folder"
                )
            if _is_open_file(path, self._file):
                return
            self._file.close()  # the previous holder removed the file before this process locked it

    def truncate(self, size: int) -> None:
        """Remove what was written after the last checkpoint, which is written again.

        Args:
            size: Bytes to keep.
        """
        self._file.truncate(min(size, self._file.seek(0, os.SEEK_END)))  # never longer: that would add zeros

    def write(self, line: dict[str, Any]) -> None:
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with self._reporting_errors():
            while content:
                content = content[self._file.write(content) :]

    def sync(self) -> int:
        """Flush to disk; returns the size of the file in bytes."""
        with self._reporting_errors():
            os.fsync(self._file.fileno())
            return self._file.seek(0, os.SEEK_END)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkError(f"{self.path} could not be written ({reason(error)})") from error

    def close(self) -> None:
        self._file.close()


def _lock(file: IO[Any]) -> bool:
    """Lock the file as long as it is open; returns whether that succeeded.

    It is a record lock, which ends with the process in any case and is not inherited by data loader workers. True on
    systems and disks without such locks.
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
