"""The torch Datasets that `clca.data.open` returns: image files and synthetic leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch.utils.data import Dataset

from clca.data.images import read_image
from clca.data.sources.splits import Samples
from clca.data.synthetic.leaves import DrawnLeaves
from clca.data.transforms import ResizeFirst, SquareResize


class ResizedImages(Protocol):
    """Resized images of a data set by index, as stored by `clca.data.cache`."""

    resize: SquareResize

    def read(self, index: int) -> Any | None:
        """The resized image [3, side, side], uint8; None if it must be read from its file."""


class ImageDataset(Dataset[tuple[Any, int]]):
    """The images of one split, read on access.

    Attributes:
        classes: Class names.
        paths: The image files.
        labels: One index into `classes` for each file.
        transform: Called with each RGB image; can be set at any time; None returns the PIL image itself.
        root: Root of the data set that they belong to, if any.
        groups: The group of each image, if there are groups that stay together.
        resized: Cache of resized images, if any (set by `clca.data.cache.fill.use_cache`). It is used for transforms
            that begin with exactly that resize; results are bit-identical with and without it.
    """

    def __init__(
        self,
        classes: list[str],
        samples: Samples,
        transform: Callable[[Image.Image], Any] | None = None,
        root: Path | None = None,
    ) -> None:
        self.classes = list(classes)
        self.paths = [path for path, _ in samples]
        self.labels = [label for _, label in samples]
        self.transform = transform
        self.root = root
        self.groups: list[str] | None = None
        self.resized: ResizedImages | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        transform, label = self.transform, self.labels[index]
        if self.resized is not None and isinstance(transform, ResizeFirst) and transform.resize == self.resized.resize:
            resized = self.resized.read(index)
            if resized is not None:
                return transform.rest(resized), label
        image = read_image(self.paths[index])
        return (image if transform is None else transform(image)), label


class Leaves(DrawnLeaves, Dataset[tuple[Any, int]]):
    """Synthetic leaves in memory, drawn on first access.

    The image of a leaf depends only on seed, difficulty, size, cultivar and number: adding cultivars or images does not
    change the others, and the same leaf is drawn at every size. Of every five leaves of a cultivar, three are for
    training, one for validation and one for test.

    Args:
        cultivars: Number of classes.
        images: Leaves per cultivar, over all splits.
        size: Side of the square images, in pixels.
        seed: Non-negative integer; another seed gives other cultivars.
        difficulty: 0 (cultivars differ clearly) to 1 (they differ about as much as the leaves of one cultivar).
        split: "train", "val", "train_val", "test", or "all".
        transform: Called with each RGB image; can be set at any time; None returns the image itself.
        cache: Keep drawn images in memory.

    Attributes:
        classes: "cultivar-001" …
        paths: Relative path at which `write_leaves` would write each leaf; in memory no such files exist.
        labels: One index into `classes` for each leaf.

    Raises:
        ClcaError: A parameter is out of range.
    """
