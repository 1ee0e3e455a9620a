"""Find duplicate images: identical files, or the same image saved, scaled or brightened again."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clca.data.checks.decode import Inspection

# Threshold of the root mean square difference of two 16 × 16 thumbnails, in grey levels, after subtracting the mean of
# each. Measured on 400 leaves and 800 grains photographed on plain backgrounds and 240 synthetic leaves: the same image
# saved again at JPEG quality 50, at half the size, or 5 % brighter differs by at most 3.8, two different images by at
# least 7.7. (Difference hashes do not separate the two: on a plain background their bits are noise.)
GREY_LEVELS = 5.0

_ROWS = 512  # rows of the matrix of all pairs per block: 100 MB at 50,000 images


def exact_duplicates(images: Sequence[Inspection]) -> list[list[int]]:
    """Groups of two or more positions whose files are identical."""
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for position, image in enumerate(images):
        by_digest[image.digest].append(position)
    return [group for group in by_digest.values() if len(group) > 1]


def near_duplicates(images: Sequence[Inspection], grey_levels: float = GREY_LEVELS) -> list[list[int]]:
    """Groups of two or more positions whose files differ but show the same image.

    Near-empty images are ignored (they all look alike), and so are identical copies after the first.

    Args:
        images: Inspected images.
        grey_levels: Largest root mean square difference of two thumbnails of the same image.
    """
    first_of = {image.digest: position for position, image in reversed(list(enumerate(images)))}
    chosen = [position for position in sorted(first_of.values()) if not images[position].near_empty]
    if len(chosen) < 2:
        return []
    thumbnails = np.stack([images[position].thumbnail.ravel() for position in chosen])
    leader = list(range(len(chosen)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for one, other in _close_pairs(thumbnails, grey_levels):
        for i, j in zip(one.tolist(), other.tolist(), strict=True):
            leader[find(j)] = find(i)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, position in enumerate(chosen):
        groups[find(i)].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _close_pairs(thumbnails: NDArray[np.uint8], most: float) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs (i < j) of rows with distance up to `most`, block by block: |a - b|² = |a|² + |b|² - 2 a·b."""
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype=np.float32)
    square = (centred**2).sum(axis=1)
    limit = most**2 * thumbnails.shape[1]
    for start in range(0, len(centred), _ROWS):
        dot = centred[start : start + _ROWS] @ centred[start:].T
        dot -= square[start:] / 2  # in place, since the matrix is large
        one, other = np.nonzero(dot >= (square[start : start + _ROWS, None] - limit) / 2)
        upper = one < other
        yield one[upper] + start, other[upper] + start
