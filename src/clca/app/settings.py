"""What the page accepts and where it finds what it shows."""

from dataclasses import dataclass, fields
from pathlib import Path

from clca.errors import ClcaError
from clca.serve.settings import MIB


@dataclass(frozen=True)
class PageSettings:
    """Limits of the page's uploads, and what it shows beside an answer.

    Attributes:
        examples: Folder or CSV file with the example images of each class; None for the run's own training images.
        show_examples: Whether examples are shown at all.
        words: Folder with translations (LANGUAGE.json) besides those of the package.
        upload_bytes: One upload, all of its files together.
        folder_bytes: All uploads that are kept; for more, the oldest are deleted once they are five minutes old.
        uploads: Uploads that may arrive at once.
        keep_minutes: How long uploaded photographs and drawn pictures are kept; they are deleted when the page stops.
        batch_files: Photographs of a batch, unpacked from zips or not.

    Raises:
        ClcaError: Where a number is not positive, or a folder does not exist.
    """

    examples: Path | None = None
    show_examples: bool = True
    words: Path | None = None
    upload_bytes: int = 1024 * MIB
    folder_bytes: int = 4096 * MIB
    uploads: int = 64
    keep_minutes: float = 60.0
    batch_files: int = 2000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
                raise ClcaError(f"{field.name} = {value}: has to be above 0")
        if self.examples is not None and not self.examples.exists():
            raise ClcaError(f"{self.examples}: no such file or folder, so no examples can be shown from it")
        if self.words is not None and not self.words.is_dir():
            raise ClcaError(f"{self.words}: no such folder of translations")
