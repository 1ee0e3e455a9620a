"""`images.csv` of a run: the images that it was started with, and how those of today differ from them."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clca.system.files import as_utf8, original_cell, write_csv
from clca.system.paths import as_text, shown

_HEADS = ["split", "path", "bytes", "class"]
_MOST_BYTES, _MOST_IMAGES = 1 << 28, 2_000_000
_SHOWN = 3  # names in a message


class ListedImage(NamedTuple):
    """One image of a set: its path below the set's root, size in bytes (0 if it has no file) and class."""

    path: str
    size: int
    label: str


@dataclass(frozen=True)
class ImageChanges:
    """How two lists of the images of one set differ, whatever their splits.

    Attributes:
        new, gone: Paths that are only in the second or the first.
        changed: Paths whose size or class differs.
        new_classes, gone_classes: Classes that are only in the second or the first.
        moved: Number of images that are in another split.
    """

    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    new_classes: list[str] = field(default_factory=list)
    gone_classes: list[str] = field(default_factory=list)
    moved: int = 0

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed or self.moved)

    def counted(self) -> str:
        """In words and numbers: "12 images and the class 'oak' are new; 3 images are gone"."""
        parts = []
        for paths, classes, what in ((self.new, self.new_classes, "new"), (self.gone, self.gone_classes, "gone")):
            if paths:
                listed = f" and the {_classes(classes)}" if classes else ""
                parts.append(f"{_images(len(paths))}{listed} {'are' if len(paths) > 1 or classes else 'is'} {what}")
        if self.changed:
            parts.append(f"{_images(len(self.changed))} {'have' if len(self.changed) > 1 else 'has'} changed")
        if self.moved and not parts:  # a rule that chooses splits moves some whenever images come or go
            parts.append(f"{_images(self.moved)} {'are' if self.moved > 1 else 'is'} in another split")
        return "; ".join(parts)

    def named(self) -> str:
        """The same with the first names: "2 missing (oak/1.jpg, oak/2.jpg); 1 new (oak/3.jpg)"."""
        parts = [
            f"{len(paths)} {what} ({_first(paths)})"
            for paths, what in ((self.gone, "missing"), (self.new, "new"), (self.changed, "changed"))
            if paths
        ]
        if self.moved and not parts:
            parts.append(f"{self.moved} in another split")
        return "; ".join(parts)


def listed(images: Any) -> Iterator[ListedImage]:
    """The images of a data set of `clca.data`, in order; none is opened."""
    root = getattr(images, "root", None)  # None: generated in memory
    below = root if root is None or root.is_dir() else root.parent
    for path, label in zip(images.paths, images.labels, strict=True):
        yield _listed(path, images.classes[label], below)


def _listed(path: Path, label: str, below: Path | None) -> ListedImage:
    name, size = str(path), 0
    if below is not None:
        name = str(path.relative_to(below)) if path.is_relative_to(below) else path.name
        with suppress(OSError):  # a missing image is reported where it is read
            size = os.stat(path).st_size
    return ListedImage(as_text(name), size, label)


def write_images(path: Path, splits: Mapping[str, Iterable[ListedImage]]) -> None:
    """Write the images of every split.

    Raises:
        WorkError: The file could not be written.
    """
    rows = ((name, *as_utf8(list(map(str, image)))) for name, images in splits.items() for image in images)
    write_csv(path, _HEADS, rows)


def read_images(path: Path) -> dict[str, list[ListedImage]] | None:
    """What `write_images` wrote, with the bytes of names that are not UTF-8 as escapes; None if it cannot be read."""
    found: dict[str, list[ListedImage]] = {}
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            if next(rows, None) != _HEADS:
                return None
            for number, (split, name, size, label) in enumerate(map(original_cell, row) for row in rows):
                if number >= _MOST_IMAGES or not (size.isascii() and size.isdigit() and len(size) <= 18):
                    return None
                found.setdefault(split, []).append(ListedImage(name, int(size), label))
    except (OSError, ValueError, csv.Error):  # ValueError: another number of columns, or not UTF-8
        return None
    return found


def changes(then: dict[str, list[ListedImage]], now: dict[str, list[ListedImage]]) -> ImageChanges:
    """How images differ from those of `read_images`; the splits of both have the same names."""
    before = {image.path: (image, split) for split, images in then.items() for image in images}
    after = {
        as_utf8(image.path): (ListedImage(as_utf8(image.path), image.size, as_utf8(image.label)), split)
        for split, images in now.items()
        for image in images
    }
    both = [path for path in after if path in before]
    old, new = ({image.label for image, _ in images.values()} for images in (before, after))
    return ImageChanges(
        new=sorted(path for path in after if path not in before),
        gone=sorted(path for path in before if path not in after),
        changed=sorted(path for path in both if before[path][0] != after[path][0]),
        new_classes=sorted(new - old),
        gone_classes=sorted(old - new),
        moved=sum(before[path][1] != after[path][1] for path in both),
    )


def known_among(trained: Iterable[ListedImage], images: Iterable[ListedImage]) -> list[str]:
    """The paths of images that are also in `trained`: of the same path below the root, size and class."""
    known = set(trained)
    found = []
    for image in images:
        if ListedImage(as_utf8(image.path), image.size, as_utf8(image.label)) in known:
            found.append(image.path)
    return found


def _images(count: int) -> str:
    return f"{count} image{'s' if count > 1 else ''}"


def _classes(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {_first([repr(name) for name in names])}"


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(map(shown, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
