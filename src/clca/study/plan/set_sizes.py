"""How many images and classes a run will see, as far as that can be known before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from clca.errors import ClcaError
from clca.system.paths import expanded
from clca.training.config import DataConfig


@dataclass(frozen=True)
class SetSize:
    """Classes, and images that are learned from and judged on."""

    classes: int
    train: int
    judged: int


def set_size(data: DataConfig, split: str) -> SetSize | None:
    """The size of a set from its files; of a published set that is not here, from the publication; else None."""
    return _size(data.root, data.source, data.train_split, split)


@cache
def _size(root: str, source: str | None, train_split: str, split: str) -> SetSize | None:
    from clca.data import is_leaves
    from clca.data.sources.ultra_fgvc import ULTRA_FGVC

    if is_leaves(root, source):
        from clca.data.synthetic.leaves import DrawnLeaves

        learned, judged = (DrawnLeaves.from_text(root, split=name) for name in (train_split, split))
        return SetSize(len(learned.classes), len(learned), len(judged))
    if expanded(root).exists():
        from clca.data.sources.folder_csv import read_listing

        listing = read_listing(root, source)
        try:
            learned_files, judged_files = listing.samples(train_split), listing.samples(split)
        except ClcaError:
            return None
        return SetSize(len(listing.classes), len(learned_files), len(judged_files))
    published = ULTRA_FGVC.get(source or "")
    if published is None:
        return None
    held_out = 0 if train_split == "train_val" else _held_out(source or "", published.classes, published.train)
    judged_count = published.test if split == "test" else _held_out(source or "", published.classes, published.train)
    return SetSize(published.classes, published.train - held_out, judged_count)


def _held_out(name: str, classes: int, train: int) -> int:
    """Images that our validation rule takes from training; of SoyGene about a fifth, which its files say exactly."""
    return classes if name in ("cotton80", "soylocal", "soyglobal") else train // 5
