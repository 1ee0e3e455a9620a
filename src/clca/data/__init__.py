"""Images to learn from: `clca.data.open` reads folders, CSV files, the Ultra-FGVC sets, or draws synthetic leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader

from clca.data.sources.listing import SPLITS
from clca.errors import ClcaError

if TYPE_CHECKING:
    from PIL import Image

    from clca.data.cache.fill import use_cache
    from clca.data.datasets import ImageDataset, Leaves
    from clca.data.sources.folder_csv import SOURCES

__all__ = ["SOURCES", "SPLITS", "ImageDataset", "Leaves", "open", "use_cache"]

# Listing images needs no torch.
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
) -> ImageDataset | Leaves:
    """Open one split of a data set.

    Args:
        root: A folder, a CSV file, or "leaves" for synthetic leaves drawn in memory, with parameters as in
            "leaves:cultivars=8,images=30,size=96,seed=0,difficulty=0.3".
        split: "train", "val", "train_val" (all that is not test) or "test". Where a set has no validation images, they
            are taken from training by rule (`clca.data.sources.splits`), so train and val never overlap.
        source: "folder", "csv", "leaves", "cotton80", "soylocal", "soyglobal", "soygene", "soyageing" or
            "soyageing-R1" (R3, R4, R5, R6); None finds out by the layout.
        transform: Called with each RGB PIL image; None leaves the image as it is.
        strict: False accepts an incomplete set (files missing, counts that differ from the published ones), and warns
            of images that are in training and in test. Otherwise
            a warning tells of images in the folder that are left out, where it is opened to learn from.

    Returns:
        A torch Dataset of (transformed image, label) with `classes`, `paths`, `labels` and a settable `transform`.

    Raises:
        ClcaError: In one line, where there is nothing to read, or what is there does not make a data set.
    """
    if split not in SPLITS:
        raise ClcaError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    from clca.data.datasets import ImageDataset, Leaves
    from clca.data.sources.folder_csv import read_listing
    from clca.data.sources.skipped import describe_unused

    if is_leaves(root, source):
        return Leaves.from_text(str(root), split=split, transform=transform)
    listing = read_listing(root, source)
    if strict and listing.problems:
        raise ClcaError(listing.problems[0])
    if leaked := listing.leaked():
        names = f"{leaked[0].name} …" if len(leaked) > 1 else leaked[0].name
        line = f"{listing.root}: {len(leaked)} image(s) are in training and in test too ({names}): test results mislead"
        warnings.warn(line, stacklevel=2)
    if strict and listing.unused and split.startswith("train"):
        lines = describe_unused(listing.root, listing.unused)
        warnings.warn(f"{listing.root}: {'; '.join(lines)}", stacklevel=2)
    return ImageDataset(listing.classes, listing.samples(split), transform, listing.root)


def is_leaves(root: str | Path, source: str | None = None) -> bool:
    """Whether a set, by its root and source as `open` takes them, is synthetic leaves in memory rather than files."""
    if source is not None:
        return source == "leaves"
    text = str(root)
    return text.startswith("leaves:") or (text == "leaves" and not Path(text).exists())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
