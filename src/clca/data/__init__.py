"""Data sets of images: `clca.data.open` reads folders, CSV files and the Ultra-FGVC sets, or draws synthetic leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader

from clca.data.sources.listing import ALL, SPLITS
from clca.errors import ClcaError

if TYPE_CHECKING:
    from PIL import Image

    from clca.data.cache.fill import use_cache
    from clca.data.datasets import ImageDataset, Leaves
    from clca.data.sources.folder_csv import SOURCES
    from clca.data.sources.listing import Grouping, Listing

__all__ = ["ALL", "SOURCES", "SPLITS", "ImageDataset", "Leaves", "list_images", "open", "open_listing", "use_cache"]

# Listing a data set must not import torch.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache.fill": ["use_cache"],
        "datasets": ["ImageDataset", "Leaves"],
        "sources.folder_csv": ["SOURCES"],
    },
)


def open(
    root: str | Path,
    split: str = "train",
    *,
    source: str | None = None,
    transform: Callable[[Image.Image], Any] | None = None,
    strict: bool = True,
    to_train: bool = True,
    grouping: Grouping | None = None,
) -> ImageDataset | Leaves:
    """Open one split of a data set.

    Args:
        root: A folder, a CSV file, or "leaves" for synthetic leaves drawn in memory, with parameters as in
            "leaves:cultivars=8,images=30,size=96,seed=0,difficulty=0.3".
        split: "train", "val", "train_val" (everything but test) or "test". If a set has no validation images, a fixed
            rule takes them from training (`clca.data.sources.splits`), so train and val never overlap.
        source: "folder", "csv", "leaves", "cotton80", "soylocal", "soyglobal", "soygene", "soyageing" or
            "soyageing-R1" (R3, R4, R5, R6); None detects the source from the layout.
        transform: Called with each RGB PIL image; None returns the image unchanged.
        strict: True raises an error if the set is incomplete (missing files, counts that differ from the published
            ones), and, for a training split, warns about images in the folder that are left out and about class names
            that differ by case alone. False accepts an incomplete set. Images that are in both training and test cause
            a warning either way, if not an error.
        to_train: False for images that a trained model is applied to: a single class is enough, and test may have
            classes that training lacks.
        grouping: Which images stay together, and parts for cross-validation (`clca.data.sources.grouping`).

    Returns:
        A torch Dataset of (transformed image, label) with `classes`, `paths`, `labels` and a settable `transform`.

    Raises:
        ClcaError: If there is nothing to read, or the files do not form a data set.
    """
    if split not in SPLITS:
        raise ClcaError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    from clca.data.datasets import Leaves

    if is_leaves(root, source):
        if grouping:
            raise ClcaError(f"{root}: synthetic leaves have neither groups nor folds: write them to a folder first")
        return Leaves.from_text(str(root), split=split, transform=transform)
    listing = list_images(root, source, to_train=to_train, grouping=grouping)
    return open_listing(listing, split, transform=transform, strict=strict)


def list_images(
    root: str | Path, source: str | None = None, *, to_train: bool = True, grouping: Grouping | None = None
) -> Listing:
    """List the images of a set of files; arguments as of `open`."""
    from clca.data.sources.folder_csv import read_listing

    listing = read_listing(root, source, to_train=to_train)
    if not grouping:
        return listing
    from clca.data.sources.grouping import grouped

    return grouped(listing, grouping)


def open_listing(
    listing: Listing, split: str, *, transform: Callable[[Image.Image], Any] | None = None, strict: bool = True
) -> ImageDataset:
    """Open one split, or "all" images, of a data set that has been listed: as `open`, but walked only once."""
    from clca.data.datasets import ImageDataset
    from clca.data.sources.skipped import describe_unused

    if strict and listing.problems:
        raise ClcaError(listing.problems[0])
    if leaked := listing.leaked():
        names = f"{leaked[0].name} …" if len(leaked) > 1 else leaked[0].name
        line = f"{listing.root}: {len(leaked)} image(s) are in training and in test ({names}): test results are invalid"
        warnings.warn(line, stacklevel=3)
    if strict and split.startswith("train"):
        if listing.unused:
            lines = describe_unused(listing.root, listing.unused)
            warnings.warn(f"{listing.root}: {'; '.join(lines)}", stacklevel=3)
        for line in listing.warnings:
            warnings.warn(line, stacklevel=3)
    images = ImageDataset(listing.classes, listing.samples(split), transform, listing.root)
    if listing.groups is not None:
        images.groups = [listing.groups[path] for path in images.paths]
    return images


def is_leaves(root: str | Path, source: str | None = None) -> bool:
    """Whether `root` and `source`, as passed to `open`, mean synthetic leaves in memory rather than files."""
    if source is not None:
        return source == "leaves"
    text = str(root)
    return text.startswith("leaves:") or (text == "leaves" and not Path(text).exists())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
