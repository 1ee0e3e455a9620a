"""Where the golden vectors and real images are."""

import os
from pathlib import Path


def shared_folder() -> Path | None:
    """The folder with golden vectors and real images: `$CLCA_SHARED`, else `shared` beside the repository."""
    named = os.environ.get("CLCA_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if folder.is_dir() else None
