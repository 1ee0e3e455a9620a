"""What `clca.data.open` returns: torch Datasets of image files and of synthetic leaves."""

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
    """Resized images of a data set by index, as `clca.data.cache` keeps them."""

    resize: SquareResize

    def read(self, index: int) -> Any | None:
        """The resized image [3, side, side], uint8; None if it has to be read from its file."""


class ImageDataset(Dataset[tuple[Any, int]]):
    """The images of one split, read when asked for.

    Attributes:
        classes: Class names.
        paths: The image files.
        labels: One index into `classes` for each file.
        transform: Called with each RGB image; may be set at any time; None gives the PIL image itself.
        root: The data set that they are a part of, if any.
        resized: Where the resized images are kept (`clca.data.cache.fill.use_cache` sets it), if anywhere. Serves
            transforms that begin with the very resize; what comes out is the same bit for bit.
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
    """Synthetic leaves in memory, drawn when first asked for.

    The picture of a leaf depends on seed, difficulty, size, cultivar and number alone: more cultivars or images leave
    the others as they are, and the same leaf comes out at every size. Of every five leaves of a cultivar three are for
    training, one for validation, one for test.

    Args:
        cultivars: Number of classes.
        images: Leaves of each, over all splits.
        size: Side of the square images, in pixels.
        seed: Whole number from 0; another seed gives other cultivars.
        difficulty: 0 (cultivars far apart) to 1 (their gaps are about the scatter within one).
        split: "train", "val", "train_val", "test", or "all".
        transform: Called with each RGB image; settable; None gives the image itself.
        cache: Keep drawn images in memory.

    Attributes:
        classes: "cultivar-001" …
        paths: What `write_leaves` calls each file, relative to its folder; in memory no such files exist.
        labels: One index into `classes` for each leaf.

    Raises:
        ClcaError: For parameters out of range, naming the parameter.
    """
