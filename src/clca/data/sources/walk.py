"""Walk a folder without hidden files, leftovers of archivers, or cycles of links."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

FolderId = tuple[int, int]
"""Device and inode, which identify a folder whatever its path."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or made by a system: `.thumbs`, `._leaf.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def visible_files(
    folder: Path,
    *,
    followlinks: bool,
    excluded: Collection[FolderId] = (),
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[Path]:
    """All files below a folder that are not hidden, in arbitrary order.

    Args:
        folder: The top folder.
        followlinks: Enter links to folders too, except links to a folder above (`ln -s ..`).
        excluded: Folders that are not entered.
        on_error: Called with the error for each folder that cannot be listed.
    """
    above = {str(folder): with_parents(folder)}
    for parent, folders, files in os.walk(folder, onerror=on_error, followlinks=followlinks):
        ancestors = above.pop(parent)
        entered = []
        for name in folders:
            path = os.path.join(parent, name)
            found = folder_id(path)
            if not is_hidden(name) and found not in ancestors and found not in excluded:
                entered.append(name)
                above[path] = ancestors | ({found} if found else set())
        folders[:] = entered
        yield from (Path(parent, name) for name in files if not is_hidden(name))


def with_parents(folder: Path) -> set[FolderId]:
    """The identities of a folder and of all folders above it."""
    real = folder.resolve()
    return {found for path in (real, *real.parents) if (found := folder_id(path)) is not None}


def folder_id(path: str | Path) -> FolderId | None:
    """Device and inode of a folder; None if they cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
