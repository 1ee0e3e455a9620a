"""Images that lie in a data set's folder and are left out of it, and what to say of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clca.system.paths import shown

_RAW = "3fr arw cr2 cr3 crw dng erf iiq kdc mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_OTHERS = "heic heics heif hif svg svgz eps psd psb xcf ico icns tga j2k jpx jxl jxr hdp wdp exr hdr pcx sgi"
NOT_READ = frozenset(f".{ending}" for ending in f"{_RAW} {_OTHERS}".split())
"""File name endings, in lower case, of images in formats that `clca.data.images` does not read."""

_WHY = {
    "unread": ("their format is not read", "convert them to JPEG or PNG"),
    "outside": ("they lie outside the class folders", "move them into the folder of their class"),
    "nameless": ("their names do not end in .jpg or the like", "rename them"),
    "aside": ("they lie in folders whose names begin with _", "rename the folders if they belong to the set"),
}
"""Kinds of images that are left out: why, and what to do."""


def describe_unused(root: Path, unused: Sequence[Path]) -> list[str]:
    """A line for each reason that images are left out for."""
    kinds: dict[str, list[Path]] = {kind: [] for kind in _WHY}
    for path in unused:
        kinds[_kind(path.relative_to(root))].append(path)
    lines = []
    for (because, remedy), paths in zip(_WHY.values(), kinds.values(), strict=True):
        if paths:
            such = f"{_endings(paths)}, such as {shown(paths[0].relative_to(root))}"
            lines.append(f"{len(paths)} image(s) are left out because {because}: {such}; {remedy}")
    return lines


def is_set_aside(path: Path) -> bool:
    """Whether a relative path leads through a folder whose name begins with _."""
    return any(name.startswith("_") for name in path.parts[:-1])


def _kind(path: Path) -> str:
    if is_set_aside(path):
        return "aside"
    ending = path.suffix.lower()
    return "unread" if ending in NOT_READ else "outside" if ending else "nameless"


def describe_empty_class(folder: Path, unused: Sequence[Path]) -> str:
    """What to say of a class folder without images, with those in it that are left out."""
    if all(_kind(path.relative_to(folder)) == "unread" for path in unused) and unused:
        return (
            f"{folder}: no images that are read in this class folder ({_endings(unused)}): convert them to JPEG or PNG"
        )
    if unused:
        return f"{folder}: no images to use in this class folder: {'; '.join(describe_unused(folder, unused))}"
    return f"{folder}: no images in this class folder: add some or remove the folder"


def _endings(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() or "without an ending" for path in paths).most_common()
    rest = sum(count for _, count in counts[5:])
    return ", ".join(f"{count} {ending}" for ending, count in counts[:5]) + (f", {rest} others" if rest else "")
