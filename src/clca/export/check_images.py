"""The images on which an exported file is checked: named ones, the run's own test images, or synthetic leaves."""

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
from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.evaluation.predictor import find_images
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training.run_folder import own_images

MOST = 256
"""Images looked at, spread evenly over all there are."""


@dataclass(frozen=True)
class Pictures:
    """Images to check with.

    Attributes:
        what: In words.
        real: Whether they are photographs, rather than drawn.
        read: The i-th image, preprocessed [3, H, W].
        labels: An index into the model's classes for each, None where it is not known.
    """

    what: str
    real: bool
    read: Callable[[int], Tensor]
    labels: list[int | None]

    def __iter__(self) -> Iterator[tuple[Tensor, int | None]]:
        for index, label in enumerate(self.labels):
            yield self.read(index), label

    def __len__(self) -> int:
        return len(self.labels)


def find_pictures(model: TokenReducedViT, run: str | Path, named: Sequence[str | Path] = ()) -> Pictures:
    """What to check a run's exported file on.

    Args:
        model: With `classes` and `preprocess`.
        run: The run; its own test images are taken if none are named and they are still there.
        named: Files, folders and patterns; an image in a folder called as a class is known to be of it.

    Raises:
        ClcaError: What is named holds no images, or one that cannot be read.
    """
    assert model.classes is not None
    assert model.preprocess is not None
    transform = from_preprocess(model.preprocess)
    index = {name: label for label, name in enumerate(model.classes)}
    if named:
        files = _spread(find_images(named))
        for file in files:
            read_image(file)  # one that cannot be read is told before anything is done
        labels = [index.get(file.parent.name) for file in files]
        return Pictures("images named", True, lambda i: transform(read_image(files[i])), labels)
    found = _test_images(Path(run))
    if found is not None:
        found.transform = transform
        chosen = _spread(range(len(found)))
        labels = [index.get(found.classes[found.labels[i]]) for i in chosen]
        real = not isinstance(found, Leaves)
        return Pictures("test images of the run", real, lambda i: found[chosen[i]][0], labels)
    drawn = _drawn(model.preprocess["resize"])
    return Pictures("synthetic leaves and noise", False, lambda i: transform(drawn[i]), [None] * len(drawn))


def _test_images(run: Path) -> Any:
    """The test images that the run's config names, or None."""
    try:
        own = own_images(run)
        return data.open(own.root, "test", source=own.source) if own is not None else None
    except (ClcaError, OSError):  # moved, or never had a test split
        return None


def _spread(items: Sequence[Any]) -> list[Any]:
    chosen = np.linspace(0, len(items) - 1, min(MOST, len(items))).astype(int)
    return [items[i] for i in chosen]


def _drawn(size: int) -> list[Image.Image]:
    leaves = Leaves(cultivars=4, images=3, size=size, split="all")
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(4)]
    return [leaves[i][0] for i in range(len(leaves))] + noise
