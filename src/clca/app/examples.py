"""Example images of each class, so that an answer can be compared with what the class looks like."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from clca import data
from clca.app.html import address_of
from clca.errors import ClcaError
from clca.serve.served_model import ServedModel

SHOWN = 3
_SIDE = 160


class Examples:
    """Small pictures of the classes of one model, as data: addresses; none where its images are not here.

    They are read when a class is first asked for, from the folder given or from the run's own training images, and
    from nowhere else.

    Args:
        served: The model.
        root: Folder or CSV file with images of its classes; None for those that it was trained on.
    """

    def __init__(self, served: ServedModel, root: Path | None = None) -> None:
        self._served, self._root = served, root
        self._opened: Any = None
        self._of_class: dict[str, list[int]] | None = None
        self._pictures: dict[str, Sequence[str]] = {}
        self._lock = Lock()

    def of(self, name: str) -> Sequence[str]:
        """Addresses of up to three pictures of a class."""
        with self._lock:
            if name not in self._pictures:
                self._pictures[name] = self._read(name)
            return self._pictures[name]

    def _read(self, name: str) -> Sequence[str]:
        if self._of_class is None:
            self._of_class = self._open()
        found = self._of_class.get(name, [])
        chosen = [found[(2 * place + 1) * len(found) // (2 * SHOWN)] for place in range(SHOWN)] if found else []
        pictures = []
        for index in dict.fromkeys(chosen):
            try:
                image, _ = self._opened[index]
            except (ClcaError, OSError):  # it was there when the folder was listed
                continue
            pictures.append(address_of(image, _SIDE))
        return pictures

    def _open(self) -> dict[str, list[int]]:
        """Which images each class has."""
        try:
            root, source = self._where()
            if root is None:
                return {}
            self._opened = data.open(root, "train", source=source, strict=False)
        except (ClcaError, OSError):
            return {}
        found: dict[str, list[int]] = {}
        for index, label in enumerate(self._opened.labels):
            found.setdefault(self._opened.classes[int(label)], []).append(index)
        return found

    def _where(self) -> tuple[str | None, str | None]:
        if self._root is not None:
            return str(self._root), None
        own = self._served.run.images if self._served.run is not None else None
        return (own.root, own.source) if own is not None else (None, None)
