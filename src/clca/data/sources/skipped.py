"""Which images in a folder are left out of a data set or of a prediction, and why, for people to read."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from clca.data import image_formats
from clca.data.sources.leftovers import is_conflict_copy, is_leftover, leftover_above, placeholder_for
from clca.data.sources.listing import first_few
from clca.data.sources.walk import files_in_leftover
from clca.system.paths import shown

Kind = Literal["unread", "outside", "nameless", "aside", "away", "conflict", "leftover"]

# Of one folder of a system: in snapshots of a whole disk there are millions.
MOST_COUNTED = 10_000
MOST_LOOKED_AT = 100_000

# Files beside photographs and films that are JPEGs inside, of a size that nobody wants classified.
_NO_PHOTO = frozenset((".thm", ".ithmb", ".lrprev", ".cot"))


@dataclass(frozen=True)
class _Why:
    """Why images are left out, and what to do.

    Attributes:
        several, remedy: For a line about all images of a kind.
        single: For one image.
    """

    several: str
    remedy: str
    single: str = ""


_WHY: dict[Kind, _Why] = {
    "unread": _Why(
        "their format is not read",
        "convert them to JPEG or PNG",
        "left out because its format is not read: convert it to JPEG or PNG",
    ),
    "outside": _Why("they are outside the class folders", "move them into the folder of their class"),
    "nameless": _Why(
        "their names have no extension such as .jpg",
        "rename them",
        "left out because its name has no extension such as .jpg: rename it",
    ),
    "aside": _Why("they are in folders whose names begin with _", "rename the folders if they belong to the set"),
    "away": _Why(
        "they are in a cloud only, not on this machine",
        "download them",
        "left out because it is in a cloud only, not on this machine: download it",
    ),
    "conflict": _Why(
        "a cloud client saved them as a second version of a file",
        "rename those that you need",
        "left out because a cloud client saved it as a second version of a file: rename it if you need it",
    ),
    "leftover": _Why("they are in folders that a system or program made", "move those that you need to another folder"),
}


def describe_unused(root: Path, unused: Sequence[Path], *, of_a_set: bool = True) -> list[str]:
    """One line for each reason why images are left out.

    Args:
        root: The folder that they are in.
        unused: The images, as `Listing.unused`.
        of_a_set: Whether they are left out of a data set, for which folders whose names begin with _ do not count.
    """
    kinds: dict[Kind, list[Path]] = {kind: [] for kind in _WHY}
    for path in unused:
        kinds[_kind(path, root, of_a_set)].append(path)
    lines = []
    for kind, paths in kinds.items():
        if paths:
            why = _WHY[kind]
            because, images = why.several, [path for path in paths if not is_leftover(path)]
            if kind == "leftover":
                folders = {leftover_above(path, root) for path in images}
                because += f" ({first_few(sorted({shown(folder.name) for folder in folders if folder}))})"
            count = f"{'at least ' if len(images) < len(paths) else ''}{len(images)}"
            examples = f"{_extensions(images)}, such as {shown(images[0].relative_to(root))}"
            lines.append(f"{count} image(s) are left out because {because}: {examples}; {why.remedy}")
    return lines


def why_left_out(path: Path, folder: Path) -> str | None:
    """Why an image in a folder is not classified; None if it is to be read."""
    return None if is_read(path) else _WHY[_kind(path, folder, of_a_set=False)].single


def is_image(path: Path) -> bool:
    """Return whether a file is an image, by its extension or, if that is none of an image, by its first bytes.

    Formats that are not read, and placeholders of images that are in a cloud only, count too.
    """
    return _is_named_as_image(path) or (_extension(path.name) not in _NO_PHOTO and _is_unnamed_photo(path))


def is_read(path: Path) -> bool:
    """Return whether an image is read, by its name: its folder is not looked at."""
    return _extension(path.name) in image_formats.EXTENSIONS and not is_conflict_copy(path.name)


def images_in_leftovers(folders: Iterable[Path]) -> list[Path]:
    """The images in folders that a system or program made, by their names, sorted within each.

    Of a folder with more files than are looked at, the folder itself follows.
    """
    found: list[Path] = []
    for folder in folders:
        files = files_in_leftover(folder)
        images = list(islice(filter(_is_named_as_image, islice(files, MOST_LOOKED_AT)), MOST_COUNTED))
        is_whole = not images or next(files, None) is None
        found += images if is_whole else [*images, folder]
    return found


def in_underscore_folder(path: Path) -> bool:
    """Return whether a relative path contains a folder whose name begins with _."""
    return any(name.startswith("_") for name in path.parts[:-1])


def _kind(path: Path, root: Path, of_a_set: bool) -> Kind:
    if is_leftover(path) or leftover_above(path, root) is not None:
        return "leftover"
    if of_a_set and in_underscore_folder(path.relative_to(root)):
        return "aside"
    if placeholder_for(path.name) is not None:
        return "away"
    if is_conflict_copy(path.name):
        return "conflict"
    extension = _extension(path.name)
    if extension in image_formats.UNREAD_EXTENSIONS:
        return "unread"
    return "outside" if extension in image_formats.EXTENSIONS else "nameless"


def describe_empty_class(folder: Path, unused: Sequence[Path]) -> str:
    """Describe a class folder without usable images, given those in it that are left out."""
    if all(_kind(path, folder, of_a_set=True) == "unread" for path in unused) and unused:
        found = _extensions(unused)
        return f"{folder}: this class folder has only formats that are not read ({found}): convert them to JPEG or PNG"
    if unused:
        return f"{folder}: no usable images in this class folder: {'; '.join(describe_unused(folder, unused))}"
    return f"{folder}: no images in this class folder: add some or remove the folder"


def _extensions(paths: Sequence[Path]) -> str:
    names = (_extension(placeholder_for(path.name) or path.name) for path in paths)
    counts = Counter(name or "without an extension" for name in names).most_common()
    rest = sum(count for _, count in counts[5:])
    return ", ".join(f"{count} {extension}" for extension, count in counts[:5]) + (f", {rest} others" if rest else "")


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_named_as_image(path: Path) -> bool:
    extension = _extension(placeholder_for(path.name) or path.name)
    return extension in image_formats.EXTENSIONS or extension in image_formats.UNREAD_EXTENSIONS


def _is_unnamed_photo(path: Path) -> bool:
    try:
        if not path.is_file():  # opening a FIFO would block
            return False
        with path.open("rb") as file:
            return image_formats.has_photo_signature(file.read(12))
    except OSError:
        return False
