"""Files of an upload, from the network to the page's folder; if the upload is refused, none of them is kept."""

import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO

from clca.app.settings import PageSettings
from clca.serve.errors import Refusal
from clca.serve.form import form_boundary, read_form
from clca.serve.settings import ServeSettings
from clca.serve.upload_limits import UploadLimits

_FILES = 1000  # per request; Gradio's page sends more in several requests
_SLOWEST = 4096  # bytes per second of an upload, after the time that the endpoint allows
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")


def page_limits(page: PageSettings, settings: ServeSettings) -> UploadLimits:
    """Limits of an upload to the page: those of the endpoint, but larger and with more time, as it may hold zips."""
    return UploadLimits(
        what="upload",
        files=_FILES,
        file_bytes=page.upload_bytes,
        total_bytes=page.upload_bytes,
        read_seconds=settings.read_seconds,
        seconds=settings.upload_seconds,
        bytes_per_second=_SLOWEST,
    )


async def receive_files(
    chunks: AsyncIterator[bytes],
    content_type: str,
    limits: UploadLimits,
    folder: Path,
    report: Callable[[str, bytes], None],
) -> list[Path]:
    """Write the files of a multipart form, each to a file with a name of ours below `folder`.

    Of the client's file name only a plain ending is kept, from which browsers recognize a picture.

    Args:
        chunks: The body.
        content_type: Of the request, with the boundary.
        limits: Of files and bytes.
        folder: Where a new folder for the files is made.
        report: Called with the client's name and each chunk of a file.

    Returns:
        The files, in the order of the form.

    Raises:
        Refusal: 400 for a broken form, 413 for too many files, 422 for a field that is no file. No file is kept then,
            nor where reading `chunks` fails.
    """
    sink = _OnDisk(Path(mkdtemp(dir=folder)), report)
    try:
        await read_form(chunks, form_boundary(content_type) or b"", limits, sink)
    except BaseException:
        sink.discard()
        raise
    return sink.paths


class _OnDisk:
    """Writes the files of a form to a folder; a `clca.serve.form.FileSink`."""

    blocking = True

    def __init__(self, folder: Path, report: Callable[[str, bytes], None]) -> None:
        self.paths: list[Path] = []
        self._folder, self._report = folder, report
        self._file: BinaryIO | None = None
        self._name = ""

    def begin(self, field: str, name: str | None) -> None:
        if name is None or field != "files":  # Gradio's name of the field
            raise Refusal(422, "not_a_file", "the upload has a field that is none of its files")
        self._name = name
        ending = Path(name).suffix if "\0" not in name else ""
        path = self._folder / f"{len(self.paths)}{ending if _ENDING.fullmatch(ending) else ''}"
        self._file = path.open("xb")
        self.paths.append(path)

    def write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._report(self._name, data)

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Delete what has been written."""
        self.end()
        shutil.rmtree(self._folder, ignore_errors=True)
