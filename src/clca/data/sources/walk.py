"""The files in a folder at any depth, without what is hidden or left by archivers, and without going in circles."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode: what is one folder, by whatever name."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's photograph: `.thumbs`, `._leaf.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def visible_files(
    folder: Path,
    *,
    followlinks: bool,
    apart: Collection[Identity] = (),
    failed: Callable[[OSError], None] | None = None,
) -> Iterator[Path]:
    """All files in a folder and below that are not hidden, in any order.

    Args:
        folder: Where to begin.
        followlinks: Enter folders that are links, too. None that lies above, as `ln -s ..` has it, is entered again.
        apart: Folders that are not entered, wherever they are met.
        failed: Is given the error for each folder that cannot be listed.
    """
    above = {str(folder): enclosing(folder)}
    for parent, folders, files in os.walk(folder, onerror=failed, followlinks=followlinks):
        line = above.pop(parent)
        entered = []
        for name in folders:
            path = os.path.join(parent, name)
            found = identity(path)
            if not is_hidden(name) and found not in line and found not in apart:
                entered.append(name)
                above[path] = line | ({found} if found else set())
        folders[:] = entered
        yield from (Path(parent, name) for name in files if not is_hidden(name))


def enclosing(folder: Path) -> set[Identity]:
    """A folder and all that it lies in."""
    real = folder.resolve()
    return {found for path in (real, *real.parents) if (found := identity(path)) is not None}


def identity(path: str | Path) -> Identity | None:
    """Which folder it is; None where the system does not say."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
