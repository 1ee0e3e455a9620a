"""Read the resized images of a data set from files of rows, as torch tensors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import tv_tensors

from clca.data.cache.row_file import RowFile, RowReader, Source
from clca.data.transforms import SquareResize


class ResizedRows:
    """The resized images of a data set, by index, from files of rows.

    It can be pickled with its data set; each worker process then maps the files itself.

    Args:
        resize: The resize that was applied to the images.
        files: Files that may contain the images.
        paths: The image files, in the order of the data set.
    """

    def __init__(self, resize: SquareResize, files: Sequence[RowFile], paths: Sequence[Path]) -> None:
        self.resize = resize
        place_of = {source: (number, row) for number, file in enumerate(files) for source, row in file.row_of.items()}
        self.sources = [Source.of(path) for path in paths]
        self._places = [place_of.get(source) if source is not None else None for source in self.sources]
        used = {place[0] for place in self._places if place is not None}
        self.files = {number: file.path for number, file in enumerate(files) if number in used}
        self._checksums = {number: files[number].checksums for number in used}
        self._readers: dict[int, RowReader | None] = {}
        for number in used:  # open now: an open file stays readable when it is unlinked
            self._reader(number)

    def __len__(self) -> int:
        """Number of images that have a row."""
        return sum(place is not None for place in self._places)

    def read(self, index: int) -> tv_tensors.Image | None:
        """The resized image [3, side, side], uint8; None if it must be read from its file.

        That is the case if it is not in the cache, if its file has changed, or if the file of rows is lost or damaged.
        """
        place = self._places[index]
        if place is None:
            return None
        source = self.sources[index]
        assert source is not None
        reader = self._reader(place[0])
        if reader is None or Source.of(source.path) != source:
            return None
        row = reader.read(place[1])
        return None if row is None else tv_tensors.Image(torch.from_numpy(row))

    def _reader(self, number: int) -> RowReader | None:
        if number not in self._readers:
            try:
                self._readers[number] = RowReader(self.files[number], self.resize.size, self._checksums[number])
            except (OSError, ValueError):  # evicted in the meantime, or truncated
                self._readers[number] = None
        return self._readers[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}
