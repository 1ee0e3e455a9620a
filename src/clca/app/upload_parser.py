"""Uploads from the network to the page's folder: files by our own naming, and none of them if the upload is refused."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from clca.serve.errors import Refusal

FILES = 1000  # a request; Gradio's page sends more in several requests
_HEADER_BYTES = 8192
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")


async def receive_files(
    pieces: AsyncIterator[bytes], content_type: str, folder: Path, tell: Callable[[str, bytes], None]
) -> list[Path]:
    """Keep the files of a multipart form, each in a file of its own below `folder`.

    Of the name that a client gives a file only a plain ending is kept, by which browsers know a picture.

    Args:
        pieces: The body.
        content_type: Of the request, with the boundary.
        folder: Where they shall lie.
        tell: Called with the name and each piece of a file.

    Returns:
        The files, in the order of the form.

    Raises:
        Refusal: 400 for a broken form, 413 for too many files, 422 for a field that is no file. Nothing is kept then,
            nor where reading `pieces` fails.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(400, "broken_form", "an upload is a multipart form with a boundary")
    form = _Form(Path(mkdtemp(dir=folder)), tell)
    try:
        try:
            parser = MultipartParser(options[b"boundary"], form.callbacks())  # type: ignore[arg-type]
            async for piece in pieces:
                await asyncio.to_thread(parser.write, piece)
            parser.finalize()
        except FormParserError:
            raise Refusal(400, "broken_form", "the multipart form cannot be read") from None
        if not form.complete:
            raise Refusal(400, "broken_form", "the multipart form is cut off")
    except BaseException:
        form.discard()
        raise
    return form.paths


class _Form:
    """What the parser's callbacks write."""

    def __init__(self, folder: Path, tell: Callable[[str, bytes], None]) -> None:
        self.paths: list[Path] = []
        self.complete = False
        self._folder, self._tell = folder, tell
        self._file: BinaryIO | None = None
        self._name, self._header, self._value, self._disposition = "", b"", b"", b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "end",
        )
        return {f"on_{name}": getattr(self, name) for name in names}

    def discard(self) -> None:
        """Delete what has been written."""
        self.part_end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def part_begin(self) -> None:
        if len(self.paths) >= FILES:
            raise Refusal(413, "too_many_files", f"more than {FILES} files in one upload: send fewer at once")
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._refuse_long_headers()

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._refuse_long_headers()

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None or options.get(b"name") != b"files":
            raise Refusal(422, "not_a_file", "the upload has a field that is none of its files")
        self._name = name.decode("utf-8", "replace")
        ending = Path(self._name).suffix if "\0" not in self._name else ""
        path = self._folder / f"{len(self.paths)}{ending if _ENDING.fullmatch(ending) else ''}"
        self._file = path.open("xb")
        self.paths.append(path)

    def part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._file.write(data[start:end])
        self._tell(self._name, data[start:end])

    def part_end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def end(self) -> None:
        self.complete = True

    def _refuse_long_headers(self) -> None:
        if len(self._header) + len(self._value) > _HEADER_BYTES:
            raise Refusal(400, "broken_form", "a header in the multipart form is too long")
