"""What the page accepts and where it finds what it shows."""

from pathlib import Path

from pydantic import Field, model_validator

from clca.serve.settings import MIB
from clca.system.settings import StrictSettings


class PageSettings(StrictSettings):
    """Limits of the page's uploads, and what it shows beside an answer.

    Raises:
        ClcaError: A number is not positive, or a folder does not exist.
    """

    examples: Path | None = Field(
        None,
        description="Folder or CSV file with example images of each class. If omitted: the run's training images, if "
        "they are on this machine.",
    )
    show_examples: bool = Field(True, description="Show example images beside the answers.")
    words: Path | None = Field(
        None, description="Folder with further translations of the page: de.json, fr.json and so on."
    )
    upload_bytes: int = Field(1024 * MIB, ge=1, description="Bytes of one upload, all of its files together.")
    folder_bytes: int = Field(
        4096 * MIB,
        ge=1,
        description="Bytes of all uploads that are kept; beyond that, the oldest are deleted once they are five "
        "minutes old.",
    )
    uploads: int = Field(64, ge=1, description="Uploads that may arrive at once.")
    keep_minutes: float = Field(
        60.0,
        gt=0,
        description="Minutes that uploaded photographs and drawn pictures are kept; all are deleted when the page "
        "stops.",
    )
    batch_files: int = Field(2000, ge=1, description="Photographs in a batch, from zip files or not.")

    @model_validator(mode="after")
    def _folders_exist(self) -> "PageSettings":
        if self.examples is not None and not self.examples.exists():
            raise ValueError(f"examples: {self.examples}: no such file or folder")
        if self.words is not None and not self.words.is_dir():
            raise ValueError(f"words: {self.words}: no such folder of translations")
        return self
