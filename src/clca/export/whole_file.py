"""A file that is there whole or not at all, written by code that takes names of files and leaves others beside them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clca.errors import ClcaError, WorkError, reason


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own, which takes the place of `path` once the block ends well.

    The folder lies beside `path`, and is removed with all that is in it whatever happens.

    Raises:
        ClcaError: Nothing can be written there.
        WorkError: Writing failed half-way (a full disk); what was there before is still there.
    """
    path = Path(os.path.realpath(path))  # a symlink stays, and what it points to is replaced
    if path.is_dir():
        raise ClcaError(f"{path}: is a folder; name a file")
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ClcaError(f"{path}: nothing can be written there ({reason(error)}); choose another place") from None
    with folder:
        temporary = Path(folder.name, path.name)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise WorkError(f"{path} could not be written ({reason(error)}); what was there before is whole") from error
