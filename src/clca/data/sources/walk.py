"""Walk a folder without hidden files, leftovers of systems and programs, or cycles of links."""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from clca.data.sources.leftovers import is_leftover, placeholder_for

FolderId = tuple[int, int]
"""Device and inode, which identify a folder whatever its path."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or holds nothing but what macOS knows about files: `__MACOSX`."""
    return name.startswith(".") or name.casefold() == "__macosx"


def visible_files(
    folder: Path,
    *,
    followlinks: bool,
    excluded: Collection[FolderId] = (),
    on_error: Callable[[OSError], None] | None = None,
    leftovers: list[Path] | None = None,
) -> Iterator[Path]:
    """All files below a folder that are not hidden, and the placeholders of those that are in a cloud only.

    Args:
        folder: The top folder.
        followlinks: Enter links to folders too, except to a folder that is above, or is reached without the link or by
            an earlier one: no file comes twice, and links in a circle (`ln -s ..`) end.
        excluded: Folders that are not entered.
        on_error: Called with the error for each folder that cannot be listed.
        leftovers: Folders that are not entered because a system or program made them are appended to it.
    """
    base = with_parents(folder) | set(excluded)
    entered = set(base)
    pending, links, is_linked = [folder], deque[Path](), False
    while pending or links:
        if not pending:
            link = links.popleft()
            if not _add(folder_id(link), entered):
                continue
            pending, is_linked = [link], True
        parent = pending.pop()
        try:
            with os.scandir(parent) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if on_error is not None:
                on_error(error)
            continue
        for entry in entries:
            path = Path(parent, entry.name)
            if not _is_folder(entry):
                if not is_hidden(entry.name) or placeholder_for(entry.name):
                    yield path
            elif is_leftover(path):
                if leftovers is not None:
                    leftovers.append(path)
            elif is_hidden(entry.name):
                continue
            elif entry.is_symlink():
                if followlinks:
                    links.append(path)
            else:
                found = folder_id(path)
                # Some network drives number folders alike: those that are there without a link are entered anyway.
                if _add(found, entered) if is_linked else found not in base:
                    entered |= {found} if found else set()
                    pending.append(path)


def files_in_leftover(folder: Path) -> Iterator[Path]:
    """All files below a leftover that is no link, except what macOS knows about others (`._leaf.jpg`)."""
    if folder.is_symlink():  # it may lead anywhere
        return
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("._"))


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


def _add(found: FolderId | None, entered: set[FolderId]) -> bool:
    """Whether a folder was not entered before; it counts as entered from now on."""
    if found is None or found in entered:
        return False
    entered.add(found)
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
