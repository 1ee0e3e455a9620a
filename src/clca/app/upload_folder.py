"""The one folder of this process in which uploads and drawn pictures lie; gone when the process ends."""

import atexit
import os
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

_PREFIX = "clca-page-"  # then the process, then what makes it the only one
_LEAST = 16 * 1024  # that a file takes, with its folder, however little is in it


class UploadFolder:
    """A private folder, which no other user of this machine can read.

    Attributes:
        path: Where it is, without symbolic links.
    """

    def __init__(self) -> None:
        _delete_orphans()
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()

    def holds(self, path: str) -> bool:
        """Whether this is a file in the folder, wherever links on the way lead."""
        try:
            found = Path(path).resolve()
            return found.is_relative_to(self.path) and found.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
            return False

    def size(self) -> int:
        """Bytes of all that lies in it; of a small file, what it takes on the disk."""
        return sum(size for _, size, _ in self._files())

    def free_space(self, most: int, wanted: int, seconds: float) -> int:
        """Delete the oldest files, but none that is younger than `seconds`, until `wanted` more bytes fit into `most`.

        Returns:
            Bytes that all files take then.
        """
        before = time.time() - seconds
        files = sorted(self._files(), key=lambda file: file[2])
        held = sum(size for _, size, _ in files)
        for path, size, written in files:
            if held + wanted <= most or written >= before:
                break
            Path(path).unlink(missing_ok=True)
            held -= size
        return held

    def delete_older(self, seconds: float) -> None:
        """Delete what is older, and the folders that it leaves empty."""
        before = time.time() - seconds
        for path, _, written in self._files():
            if written < before:
                Path(path).unlink(missing_ok=True)
        for folder in self.path.iterdir():
            with suppress(OSError):  # not empty, or no folder
                if folder.lstat().st_mtime < before:
                    folder.rmdir()

    def delete(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> list[tuple[str, int, float]]:
        found = []
        for parent, _, names in os.walk(self.path):
            for name in names:
                path = os.path.join(parent, name)
                try:
                    status = os.lstat(path)
                except OSError:  # another has deleted it meanwhile
                    continue
                found.append((path, max(status.st_size, _LEAST), status.st_mtime))
        return found


def upload_folder() -> UploadFolder:
    """The folder of this process, which Gradio finds by an environment variable; set again, should it be gone."""
    folder = _folder()
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
    return folder


@cache
def _folder() -> UploadFolder:
    folder = UploadFolder()
    atexit.register(folder.delete)
    return folder


def _delete_orphans() -> None:
    """Delete the folders of processes of ours that were killed before they could do it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, ValueError):
            process = int(folder.name.removeprefix(_PREFIX).partition("-")[0])
            ours = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
            if ours and not folder.is_symlink() and not psutil.pid_exists(process):
                shutil.rmtree(folder, ignore_errors=True)
