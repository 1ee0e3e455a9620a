"""Explanations of many images in one folder, each a PNG and a JSON file."""

import hashlib
import os
import tempfile
from pathlib import Path

from clca.errors import ClcaError, reason
from clca.explain import explain
from clca.models.token_reduced_vit import TokenReducedViT
from clca.plots.explanation import draw_explanation
from clca.system.files import write_json

_LONGEST = 80  # bytes of the image's name in the names of its files; file systems allow 255


class ExplanationFiles:
    """A folder of explanations, named by the image and a hash of its path, so that no two images share a name.

    Args:
        folder: Created if it does not exist.

    Raises:
        ClcaError: It is a file, or not writable.
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
        """Name of the files of an image, without extension."""
        path = os.fsencode(os.path.abspath(image))
        stem = os.fsencode(image.name)[:_LONGEST].decode("utf-8", "ignore").lstrip(".")
        return f"{stem}-{hashlib.sha256(path).hexdigest()[:16]}"

    def write(self, model: TokenReducedViT, image: Path) -> None:
        """Explain an image. Both files are written atomically, the JSON last.

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
