"""Images that lie in a data set's folder and are left out of it, and what to say of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_RAW = "3fr arw cr2 cr3 crw dng erf iiq kdc mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_OTHERS = "heic heics heif hif svg svgz eps psd psb xcf ico icns tga j2k jpx jxl jxr hdp wdp exr hdr pcx sgi"
NOT_READ = frozenset(f".{ending}" for ending in f"{_RAW} {_OTHERS}".split())
"""File name endings, in lower case, of images in formats that `clca.data.images` does not read."""


def describe_unused(root: Path, unused: Sequence[Path]) -> list[str]:
    """A line for images in formats that are not read, and one for images that no class folder holds."""
    unread = [path for path in unused if path.suffix.lower() in NOT_READ]
    outside = [path for path in unused if path.suffix.lower() not in NOT_READ]
    lines = []
    if unread:
        lines.append(
            f"{len(unread)} image(s) are left out because their format is not read: {_kinds(unread)}, "
            f"such as {unread[0].relative_to(root)}; convert them to JPEG or PNG"
        )
    if outside:
        lines.append(
            f"{len(outside)} image(s) are left out because they lie outside the class folders: {_kinds(outside)}, "
            f"such as {outside[0].relative_to(root)}; move them into the folder of their class"
        )
    return lines


def describe_empty_class(folder: Path, unread: Sequence[Path]) -> str:
    """What to say of a class folder without images, with those that it holds in formats that are not read."""
    if unread:
        return f"{folder}: no images that are read in this class folder ({_kinds(unread)}): convert them to JPEG or PNG"
    return f"{folder}: no images in this class folder: add some or remove the folder"


def _kinds(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() for path in paths).most_common()
    rest = sum(count for _, count in counts[5:])
    return ", ".join(f"{count} {ending}" for ending, count in counts[:5]) + (f", {rest} others" if rest else "")
