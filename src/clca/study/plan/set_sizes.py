"""Numbers of images and classes of a run, as far as they are known before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from clca.errors import ClcaError
from clca.system.paths import expanded
from clca.training.config import DataConfig


@dataclass(frozen=True)
class SetSize:
    """Numbers of classes, training images and evaluation images."""

    classes: int
    train: int
    evaluation: int


def set_size(data: DataConfig, split: str) -> SetSize | None:
    """The size of a data set from its files, or from the publication for a published set that is missing; else None."""
    return _size(data.root, data.source, data.train_split, split)


@cache
def _size(root: str, source: str | None, train_split: str, split: str) -> SetSize | None:
    from clca.data import is_leaves
    from clca.data.sources.ultra_fgvc import ULTRA_FGVC

    if is_leaves(root, source):
        from clca.data.synthetic.leaves import DrawnLeaves

        training, evaluation = (DrawnLeaves.from_text(root, split=name) for name in (train_split, split))
        return SetSize(len(training.classes), len(training), len(evaluation))
    if expanded(root).exists():
        from clca.data.sources.folder_csv import read_listing

        listing = read_listing(root, source)
        try:
            training_files, evaluation_files = listing.samples(train_split), listing.samples(split)
        except ClcaError:
            return None
        return SetSize(len(listing.classes), len(training_files), len(evaluation_files))
    published = ULTRA_FGVC.get(source or "")
    if published is None:
        return None
    held_out = _held_out(source or "", published.classes, published.train)
    training_count = published.train - (0 if train_split == "train_val" else held_out)
    return SetSize(published.classes, training_count, published.test if split == "test" else held_out)


def _held_out(name: str, classes: int, train: int) -> int:
    """Images that the validation rule holds out of training; of SoyGene about a fifth, exactly known from its files."""
    return classes if name in ("cotton80", "soylocal", "soyglobal") else train // 5
