"""The one folder of this process in which uploads and drawn pictures lie; gone when the process ends."""

import atexit
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path


class UploadFolder:
    """A folder of its own that nobody else on this machine reads.

    Attributes:
        path: Where it is, without symbolic links.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="clca-page-")).resolve()

    def holds(self, path: str) -> bool:
        """Whether this is a file in the folder, wherever links on the way lead."""
        try:
            found = Path(path).resolve()
            return found.is_relative_to(self.path) and found.is_file()
        except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
            return False

    def size(self) -> int:
        """Bytes of all that lies in it."""
        return sum(size for _, size, _ in self._files())

    def sweep(self, seconds: float) -> None:
        """Delete what is older."""
        before = time.time() - seconds
        for path, _, written in self._files():
            if written < before:
                Path(path).unlink(missing_ok=True)

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
                found.append((path, status.st_size, status.st_mtime))
        return found


@cache
def upload_folder() -> UploadFolder:
    """The folder of this process: Gradio asks an environment variable for it, of which there is one a process."""
    folder = UploadFolder()
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
    atexit.register(folder.delete)
    return folder
