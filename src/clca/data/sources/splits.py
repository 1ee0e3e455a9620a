"""Rules that choose validation and test images for data sets without them; they depend only on file names."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from clca.system.paths import as_text

Samples = list[tuple[Path, int]]
"""Image files with labels, which are indices into the class names."""


def _by_name_hash(paths: Sequence[Path]) -> list[int]:
    """Positions ordered by the SHA-256 of file names: pseudo-random, and the same on every machine."""
    return sorted(range(len(paths)), key=lambda i: (_digest(paths[i].name), paths[i].as_posix()))


def _digest(name: str) -> bytes:
    # The bytes of the name, in every locale, and of names that are not UTF-8 too.
    return hashlib.sha256(as_text(name).encode(errors="surrogateescape")).digest()


def _per_class(samples: Samples) -> dict[int, list[int]]:
    members = defaultdict(list)
    for position, (_, label) in enumerate(samples):
        members[label].append(position)
    return members


def take_every_fifth(samples: Samples) -> tuple[Samples, Samples]:
    """Hold out about one in five images of each class: the first ones by the hash of their file name.

    At least one image of a class with two or more is taken, and none of a class with one, so training has all classes.

    Returns:
        The remaining images and those held out, each in the given order.
    """
    held_out: set[int] = set()
    for members in _per_class(samples).values():
        if len(members) >= 2:
            order = _by_name_hash([samples[i][0] for i in members])
            held_out.update(members[i] for i in order[: max(1, round(len(members) / 5))])
    rest = [sample for i, sample in enumerate(samples) if i not in held_out]
    return rest, [sample for i, sample in enumerate(samples) if i in held_out]


def split_by_rule(samples: Samples) -> dict[str, Samples]:
    """Split a data set without splits into training, validation and test.

    Test is one image in five of every class (`take_every_fifth`), validation one in five of the rest.
    """
    rest, test = take_every_fifth(samples)
    train, val = take_every_fifth(rest)
    return {"train": train, "val": val, "test": test}
