"""The rules that choose validation and test images where a data set does not: stable, from file names alone."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

Samples = list[tuple[Path, int]]
"""Image files with their labels, the labels being indices into the class names."""


def _by_name_hash(paths: Sequence[Path]) -> list[int]:
    """Positions in the order of the SHA-256 of file names: looks random, and is the same on every machine."""
    return sorted(range(len(paths)), key=lambda i: (_digest(paths[i].name), paths[i].as_posix()))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()  # the bytes of one that is not UTF-8


def _per_class(samples: Samples) -> dict[int, list[int]]:
    members = defaultdict(list)
    for position, (_, label) in enumerate(samples):
        members[label].append(position)
    return members


def take_every_fifth(samples: Samples) -> tuple[Samples, Samples]:
    """Set aside about one in five images of every class, the first ones by the hash of their file name.

    At least one image of a class of two or more is taken and none of a class of one, so training keeps every class.

    Returns:
        The images that stay and those set aside, each in the order given.
    """
    aside: set[int] = set()
    for members in _per_class(samples).values():
        if len(members) >= 2:
            order = _by_name_hash([samples[i][0] for i in members])
            aside.update(members[i] for i in order[: max(1, round(len(members) / 5))])
    stay = [sample for i, sample in enumerate(samples) if i not in aside]
    return stay, [sample for i, sample in enumerate(samples) if i in aside]


def split_by_rule(samples: Samples) -> dict[str, Samples]:
    """Train, validation and test parts of a set that comes in one piece.

    Test is one image in five of every class (`take_every_fifth`), validation one in five of the rest.
    """
    rest, test = take_every_fifth(samples)
    train, val = take_every_fifth(rest)
    return {"train": train, "val": val, "test": test}
