"""The images for checking an exported file: given ones, the test images of the run, or synthetic leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from clca import data
from clca.data.datasets import Leaves
from clca.data.images import read_image
from clca.data.sources.photographs import find_images
from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.run_folder import RunFolder

MOST = 256
"""Largest number of images; they are spread evenly over all available ones."""


@dataclass(frozen=True)
class CheckImages:
    """Images for checking an exported file.

    Attributes:
        description: Where they come from, in words.
        real: Whether they are photographs rather than synthetic.
        read: Function that returns the i-th image, preprocessed, [3, H, W].
        labels: Index of the class of each image in the model's classes; None if unknown.
    """

    description: str
    real: bool
    read: Callable[[int], Tensor]
    labels: list[int | None]

    def __iter__(self) -> Iterator[tuple[Tensor, int | None]]:
        for index, label in enumerate(self.labels):
            yield self.read(index), label

    def __len__(self) -> int:
        return len(self.labels)


def find_check_images(model: TokenReducedViT, run: RunFolder, given: Sequence[str | Path] = ()) -> CheckImages:
    """Choose the images for checking the exported file of a run.

    Args:
        model: A model with `classes` and `preprocess`.
        run: The run; its test images are used if no images are given and they still exist.
        given: Files, folders and patterns. If the name of an image's folder is a class, it is the label of the image.

    Raises:
        ClcaError: The given paths contain no images, or an image cannot be read.
    """
    assert model.classes is not None
    assert model.preprocess is not None
    transform = from_preprocess(model.preprocess)
    index = {name: label for label, name in enumerate(model.classes)}
    if given:
        files = _spread(find_images(given))
        for file in files:
            read_image(file)  # fail early if one cannot be read
        labels = [index.get(file.parent.name) for file in files]
        return CheckImages("given images", True, lambda i: transform(read_image(files[i])), labels)
    test_set = _test_images(run)
    if test_set is not None:
        test_set.transform = transform
        chosen = _spread(range(len(test_set)))
        labels = [index.get(test_set.classes[test_set.labels[i]]) for i in chosen]
        real = not isinstance(test_set, Leaves)
        return CheckImages("test images of the run", real, lambda i: test_set[chosen[i]][0], labels)
    synthetic = _synthetic_images(model.preprocess["resize"])
    return CheckImages("synthetic leaves and noise", False, lambda i: transform(synthetic[i]), [None] * len(synthetic))


def _test_images(run: RunFolder) -> Any:
    """The test images of the run's data set, or None."""
    try:
        own = run.images
        return data.open(own.root, "test", source=own.source, grouping=own.grouping) if own is not None else None
    except (ClcaError, OSError):  # the data set was moved, or has no test split
        return None


def _spread(items: Sequence[Any]) -> list[Any]:
    """At most `MOST` items, evenly spaced."""
    chosen = np.linspace(0, len(items) - 1, min(MOST, len(items))).astype(int)
    return [items[i] for i in chosen]


def _synthetic_images(size: int) -> list[Image.Image]:
    leaves = Leaves(cultivars=4, images=3, size=size, split="all")
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(4)]
    return [leaves[i][0] for i in range(len(leaves))] + noise
