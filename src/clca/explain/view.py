"""Map patches to pixels of the original image, through the resize and crop of the evaluation transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """The part of an image that a model sees, divided into patches.

    Attributes:
        size: Width and height of the original image in pixels.
        box: Left, top, width and height of the visible part, in pixels of the original; it extends beyond the image if
            the crop is padded.
        grid: Number of rows and columns of patches.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    grid: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], preprocess: dict[str, Any], grid: tuple[int, int]) -> View:
        """The view of an image of size (width, height) through the evaluation transform of `preprocess`.

        The arithmetic is that of torchvision: `Resize` truncates the longer side, `CenterCrop` rounds its corner.
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
        """Edges of the patches in pixels of the original: x [columns + 1] and y [rows + 1]."""
        left, top, width, height = self.box
        rows, columns = self.grid
        return left + width * np.arange(columns + 1) / columns, top + height * np.arange(rows + 1) / rows

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The patch column of each pixel column [W], and the patch row of each pixel row [H]; -1 outside the view."""
        across, down = self.edges()
        return _place(self.size[0], across), _place(self.size[1], down)

    def to_pixels(self, values: NDArray[Any], unseen: float) -> NDArray[Any]:
        """Assign each pixel of the original the value of its patch.

        Args:
            values: One value per patch, row by row, [P].
            unseen: Value of pixels outside the view.

        Returns:
            [H, W], with the type of `values`.
        """
        column, row = self.places()
        pixels = values.reshape(self.grid)[row][:, column]  # -1 selects an arbitrary patch, which is overwritten below
        pixels[row < 0] = unseen
        pixels[:, column < 0] = unseen
        return pixels

    def share_of(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The share of each patch's pixels where a mask of the original [H, W] is true, [P]; 0 without pixels."""
        column, row = self.places()
        rows, columns = self.grid
        inside = mask[row >= 0][:, column >= 0]
        patch = row[row >= 0][:, None] * columns + column[column >= 0]
        count = np.bincount(patch.ravel(), minlength=rows * columns)
        true = np.bincount(patch.ravel(), weights=inside.ravel(), minlength=rows * columns)
        return true / np.maximum(count, 1)


def _corner(side: int, crop: int) -> int:
    """Start of a centre crop along one side; negative if the crop is padded."""
    return -((crop - side) // 2) if crop > side else round((side - crop) / 2)


def _place(pixels: int, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    index = np.searchsorted(edges, np.arange(pixels) + 0.5, side="right") - 1
    index[index >= len(edges) - 1] = -1
    return index
