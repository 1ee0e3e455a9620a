"""Find duplicate images: identical files, or the same image saved, scaled or brightened again."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clca.data.checks.decode import Inspection

# Two images are the same if their thumbnails pass two tests.
#
# The first, quick one is the root mean square difference of 16 × 16 colours in levels, after subtracting the mean of
# each. Measured on 400 leaves and 800 grains photographed on plain backgrounds and 240 synthetic leaves: the same image
# saved again at JPEG quality 50, at half the size, or 5 % brighter differs by at most 4.0, and by 4.2 after all three;
# two different images differ by at least 7.5. (Difference hashes do not separate the two: on a plain background their
# bits are noise.)
#
# But a small seed in two colours passes this test too. The second one, of 32 × 32 colours, first makes up for other
# brightness, highlights that it clips, and the shift of a plain background by JPEG. It then compares what is left with
# the contrast of the image, so that a small object counts as much as a large one. As a multiple of what is allowed
# below, the same image differs by at most 0.58 after one change (photographs 0.36; 0.50 after all three, and synthetic
# leaves 1.11), two different ones by at least 2.5. Of seeds in eight coat colours, drawn on plain backgrounds of 224 or
# 512 pixels and 6 to 67 % as wide as these, 1859 of 1860 copies with one change count as the same; of 2100 pairs in two
# coat colours, 51 do, 49 of them in two browns that differ by ten levels.
LEVELS = 5.0
_NOISE = 0.75  # levels that may differ whatever the contrast
_OF_CONTRAST = 0.07  # part of the contrast that may differ
_GAIN = 1.06  # largest ratio of brightness
_SHIFT = 2  # largest shift of the background in levels
_CLIPPED = 250  # a cell above this may contain clipped pixels

_ROWS = 512  # rows of the matrix of all pairs per block: 100 MB at 50,000 images


def exact_duplicates(images: Sequence[Inspection]) -> list[list[int]]:
    """Groups of two or more positions whose files are identical."""
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for position, image in enumerate(images):
        by_digest[image.digest].append(position)
    return [group for group in by_digest.values() if len(group) > 1]


def near_duplicates(images: Sequence[Inspection], levels: float = LEVELS) -> list[list[int]]:
    """Groups of two or more positions whose files differ but show the same image.

    Near-empty images are ignored (they all look alike), and so are identical copies after the first.

    Args:
        images: Inspected images.
        levels: Largest root mean square difference of two thumbnails of the same image, in the first test.
    """
    first_of = {image.digest: position for position, image in reversed(list(enumerate(images)))}
    chosen = [position for position in sorted(first_of.values()) if not images[position].near_empty]
    if len(chosen) < 2:
        return []
    fine = np.stack([images[position].thumbnail for position in chosen])
    thumbnails = fine.reshape(len(fine), -1, 3)
    coarse = _halved(fine).reshape(len(fine), -1)
    leader = list(range(len(chosen)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for one, other in _close_pairs(coarse, levels):
        same = _are_same(thumbnails, one, other)
        for i, j in zip(one[same].tolist(), other[same].tolist(), strict=True):
            leader[find(j)] = find(i)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, position in enumerate(chosen):
        groups[find(i)].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _halved(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Thumbnails [images, 2 h, 2 w, 3] at half the size, as means of 2 × 2 cells."""
    count, height, width, channels = thumbnails.shape
    cells = thumbnails.reshape(count, height // 2, 2, width // 2, 2, channels)
    return np.round(cells.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


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


def _are_same(thumbnails: NDArray[np.uint8], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.bool_]:
    """The second test, of pairs of rows that passed the first: whether both show the same image in the same colours."""
    blocks = range(0, len(one), _ROWS)
    same = [_compare(thumbnails[one[at : at + _ROWS]], thumbnails[other[at : at + _ROWS]]) for at in blocks]
    return np.concatenate(same) if same else np.zeros(0, bool)


def _compare(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether the thumbnails [pairs, cells, 3] are of the same image."""
    return _difference(one, other) <= 1


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The root mean square difference of thumbnails [pairs, cells, 3], as a multiple of what is allowed."""
    swapped = (one.mean(axis=(1, 2)) > other.mean(axis=(1, 2)))[:, None, None]
    dark = np.where(swapped, other, one).astype(np.float32)
    bright = np.where(swapped, one, other).astype(np.float32)
    unclipped = (dark < _CLIPPED) & (bright < _CLIPPED)
    energy = (dark**2).sum(axis=(1, 2), where=unclipped)
    gain = np.where(energy > 0, (dark * bright).sum(axis=(1, 2), where=unclipped) / np.maximum(energy, 1), 1)
    difference = bright - np.minimum(dark * np.clip(gain, 1 / _GAIN, _GAIN)[:, None, None], 255)
    difference -= np.clip(np.median(difference, axis=1, keepdims=True), -_SHIFT, _SHIFT)
    allowed = _NOISE**2 + _OF_CONTRAST**2 * np.minimum(_contrast(dark), _contrast(bright))
    return np.sqrt((difference**2).mean(axis=(1, 2)) / allowed)


def _contrast(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean square difference of the cells from the median colour of each thumbnail."""
    return ((thumbnails - np.median(thumbnails, axis=1, keepdims=True)) ** 2).mean(axis=(1, 2))
