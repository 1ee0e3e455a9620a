"""Files and folders that may not be read, for who is root too."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def readable_folder() -> Iterator[Path]:
    """A temporary folder that other users can look into: pytest's own they cannot."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Nobody may read a path in a `readable_folder` meanwhile; who is root becomes someone else for that long."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    if root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)
