"""Describe the images in a folder that are left out of the data set."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clca.data.image_formats import UNREAD_EXTENSIONS
from clca.system.paths import shown

_WHY = {
    "unread": ("their format is not read", "convert them to JPEG or PNG"),
    "outside": ("they are outside the class folders", "move them into the folder of their class"),
    "nameless": ("their names have no extension such as .jpg", "rename them"),
    "aside": ("they are in folders whose names begin with _", "rename the folders if they belong to the set"),
}
"""Kinds of images that are left out: the reason, and what to do."""


def describe_unused(root: Path, unused: Sequence[Path]) -> list[str]:
    """One line for each reason why images are left out."""
    kinds: dict[str, list[Path]] = {kind: [] for kind in _WHY}
    for path in unused:
        kinds[_kind(path.relative_to(root))].append(path)
    lines = []
    for (because, remedy), paths in zip(_WHY.values(), kinds.values(), strict=True):
        if paths:
            examples = f"{_extensions(paths)}, such as {shown(paths[0].relative_to(root))}"
            lines.append(f"{len(paths)} image(s) are left out because {because}: {examples}; {remedy}")
    return lines


def in_underscore_folder(path: Path) -> bool:
    """Return whether a relative path contains a folder whose name begins with _."""
    return any(name.startswith("_") for name in path.parts[:-1])


def _kind(path: Path) -> str:
    if in_underscore_folder(path):
        return "aside"
    extension = path.suffix.lower()
    return "unread" if extension in UNREAD_EXTENSIONS else "outside" if extension else "nameless"


def describe_empty_class(folder: Path, unused: Sequence[Path]) -> str:
    """Describe a class folder without usable images, given those in it that are left out."""
    if all(_kind(path.relative_to(folder)) == "unread" for path in unused) and unused:
        found = _extensions(unused)
        return f"{folder}: this class folder has only formats that are not read ({found}): convert them to JPEG or PNG"
    if unused:
        return f"{folder}: no usable images in this class folder: {'; '.join(describe_unused(folder, unused))}"
    return f"{folder}: no images in this class folder: add some or remove the folder"


def _extensions(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or "without an extension" for path in paths).most_common()
    rest = sum(count for _, count in counts[5:])
    return ", ".join(f"{count} {extension}" for extension, count in counts[:5]) + (f", {rest} others" if rest else "")
