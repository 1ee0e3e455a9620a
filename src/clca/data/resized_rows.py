"""The resized images of a data set, from files of rows, as torch wants them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from clca.data.resized_file import RowFile, Source, mapped
from clca.data.transforms import SquareResize


class ResizedRows:
    """The resized images of a data set, by their index in it, from files of rows.

    Goes to reading processes with its data set; each maps the files itself.

    Args:
        resize: What was done to the images.
        files: Where rows may be.
        paths: The image files of the data set, in its order.
    """

    def __init__(self, resize: SquareResize, files: Sequence[RowFile], paths: Sequence[Path]) -> None:
        self.resize = resize
        place_of = {source: (number, row) for number, file in enumerate(files) for source, row in file.row_of.items()}
        self.sources = [Source.of(path) for path in paths]
        self._places = [place_of.get(source) if source is not None else None for source in self.sources]
        used = {place[0] for place in self._places if place is not None}
        self.files = {number: file.path for number, file in enumerate(files) if number in used}
        self._counts = {number: files[number].count for number in used}
        self._maps: dict[int, NDArray[np.uint8] | None] = {}
        for number in used:  # held from now on, whatever becomes of the name
            self._map(number)

    def __len__(self) -> int:
        """Images that have a row."""
        return sum(place is not None for place in self._places)

    def read(self, index: int) -> tv_tensors.Image | None:
        """The resized image [3, side, side], uint8; None where it has to be read from its file.

        That is so where it was not stored, or its file has changed since, or the file of rows is gone.
        """
        place = self._places[index]
        if place is None:
            return None
        source = self.sources[index]
        assert source is not None
        rows = self._map(place[0])
        if rows is None or Source.of(source.path) != source:
            return None
        return tv_tensors.Image(torch.from_numpy(np.array(rows[place[1]])))

    def _map(self, number: int) -> NDArray[np.uint8] | None:
        if number not in self._maps:
            try:
                self._maps[number] = mapped(self.files[number], self._counts[number], self.resize.size)
            except (OSError, ValueError):  # evicted before this process came to it, or cut off
                self._maps[number] = None
        return self._maps[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
