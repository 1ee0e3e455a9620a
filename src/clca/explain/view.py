"""Which pixels of the original image each patch sees, through the resize and the crop of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """The part of an image that a model sees, cut into patches.

    Attributes:
        size: Of the original image, width and height in pixels.
        box: Left, top, width and height of what the model sees, in pixels of the original; where the crop padded, it
            reaches over the image.
        grid: Patches down and across.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    grid: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], preprocess: dict[str, Any], grid: tuple[int, int]) -> View:
        """What the evaluation transform of `preprocess` leaves of an image of width × height.

        The arithmetic is torchvision's: `Resize` cuts the longer side to whole pixels, `CenterCrop` rounds its corner.
        """
        width, height = size
        side, crop = preprocess["resize"], preprocess["img_size"]
        if preprocess["square"]:
            wide = high = side
        elif width <= height:
            wide, high = side, int(side * height / width)
        else:
            wide, high = int(side * width / height), side
        left, top = _corner(wide, crop), _corner(high, crop)
        across, down = width / wide, height / high
        return cls(size, (left * across, top * down, crop * across, crop * down), grid)

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where patches begin and end in the original: across [columns + 1] and down [rows + 1], in pixels."""
        left, top, width, height = self.box
        rows, columns = self.grid
        return left + width * np.arange(columns + 1) / columns, top + height * np.arange(rows + 1) / rows

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The column of patches that each pixel column lies in [W], and the row for each pixel row [H]; -1 unseen."""
        across, down = self.edges()
        return _place(self.size[0], across), _place(self.size[1], down)

    def to_pixels(self, values: NDArray[Any], unseen: float) -> NDArray[Any]:
        """Give every pixel of the original what its patch has.

        Args:
            values: One for each patch, row by row, [P].
            unseen: For pixels that were cropped away.

        Returns:
            [H, W], of the type of `values`.
        """
        column, row = self.places()
        pixels = values.reshape(self.grid)[row][:, column]  # -1 takes any patch, and is overwritten
        pixels[row < 0] = unseen
        pixels[:, column < 0] = unseen
        return pixels

    def share_of(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The share of each patch's pixels at which a mask of the original [H, W] is true, [P]; 0 without pixels."""
        column, row = self.places()
        rows, columns = self.grid
        inside = mask[row >= 0][:, column >= 0]
        patch = row[row >= 0][:, None] * columns + column[column >= 0]
        count = np.bincount(patch.ravel(), minlength=rows * columns)
        true = np.bincount(patch.ravel(), weights=inside.ravel(), minlength=rows * columns)
        return true / np.maximum(count, 1)


def _corner(side: int, crop: int) -> int:
    """Where a centre crop begins on a side; below 0 where it pads."""
    return -((crop - side) // 2) if crop > side else round((side - crop) / 2)


def _place(pixels: int, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    index = np.searchsorted(edges, np.arange(pixels) + 0.5, side="right") - 1
    index[index >= len(edges) - 1] = -1
    return index
