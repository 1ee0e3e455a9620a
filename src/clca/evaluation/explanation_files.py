"""Explanations of many images in one folder: a PNG and a JSON each."""

import hashlib
import os
import tempfile
from pathlib import Path

from clca.errors import ClcaError, reason
from clca.explain import explain
from clca.models.token_reduced_vit import TokenReducedViT
from clca.plots.explanation import draw_explanation
from clca.system.files import write_json

_LONGEST = 80  # bytes of an image's name in those of its files: file systems end at 255


class ExplanationFiles:
    """A folder of explanations. Their names are the image's and a hash of its path: two images never share one.

    Args:
        folder: Made if it is missing.

    Raises:
        ClcaError: It is a file, or nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe"):
                pass
        except OSError as error:
            raise ClcaError(f"--explain {folder}: nothing can be written there ({reason(error)})") from None

    def name(self, image: Path) -> str:
        """What the files of an image are called, without their ending; the same every time."""
        path = os.fsencode(os.path.abspath(image))
        stem = os.fsencode(image.name)[:_LONGEST].decode("utf-8", "ignore").lstrip(".")
        return f"{stem}-{hashlib.sha256(path).hexdigest()[:16]}"

    def write(self, model: TokenReducedViT, image: Path) -> None:
        """Explain an image; the JSON is written last, and neither is ever half there.

        Raises:
            ClcaError: The image cannot be read.
            WorkError: A file could not be written.
        """
        explanation = explain(model, image)
        name = self.name(image)
        title = f"{image.name}: {explanation.target}, {explanation.probability:.0%}".encode("utf-8", "replace").decode()
        draw_explanation(self.folder / f"{name}.png", explanation, title)
        path = os.fsencode(image).decode("utf-8", "replace")
        write_json(self.folder / f"{name}.json", {"path": path, "figure": f"{name}.png", **explanation.to_json()})
