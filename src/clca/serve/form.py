"""The parser of multipart forms that hold files, for the endpoint and the page, under one set of limits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from clca.serve.errors import Refusal
from clca.serve.upload_limits import UploadLimits

_HEADER_BYTES = 8192  # of a header of one part


class FileSink(Protocol):
    """Where the files of a form go."""

    blocking: bool
    """Whether `write` may wait for a disk; it runs in another thread then."""

    def begin(self, field: str, name: str | None) -> None:
        """A part begins.

        Args:
            field: The form field.
            name: The file name that the client gives; None if the part is no file.

        Raises:
            Refusal: The part is not accepted.
        """

    def write(self, data: bytes) -> None:
        """The next bytes of the file."""

    def end(self) -> None:
        """The file is complete."""


def form_boundary(content_type: str) -> bytes | None:
    """The boundary of a multipart form, empty if it is missing; None for another type of content."""
    kind, options = parse_options_header(content_type)
    return options.get(b"boundary", b"") if kind == b"multipart/form-data" else None


async def read_form(chunks: AsyncIterator[bytes], boundary: bytes, limits: UploadLimits, sink: FileSink) -> None:
    """Parse a multipart form of files.

    Args:
        chunks: The body.
        boundary: From the content type.
        limits: Of files and bytes.
        sink: Receives the files.

    Raises:
        Refusal: 400 for a broken form, 413 beyond a limit, and what `sink` and `chunks` raise.
    """
    if not boundary:
        raise Refusal(400, "broken_form", "multipart/form-data without a boundary")
    form = _Form(limits, sink)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks:
            if sink.blocking:
                await asyncio.to_thread(parser.write, chunk)
            else:
                parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "broken_form", "the multipart form cannot be read") from None
    if not form.complete:
        raise Refusal(400, "broken_form", "the multipart form is cut off")


class _Form:
    """Callbacks of the parser."""

    _EVENTS = (
        *("part_begin", "part_data", "part_end"),
        *("header_field", "header_value", "header_end", "headers_finished", "end"),
    )

    def __init__(self, limits: UploadLimits, sink: FileSink) -> None:
        self.complete = False
        self._limits, self._sink = limits, sink
        self._files = self._file_bytes = 0
        self._header, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {f"on_{event}": getattr(self, event) for event in self._EVENTS}

    def part_begin(self) -> None:
        if self._files >= self._limits.files:  # before the next is read
            raise self._limits.too_many_files()
        self._files += 1
        self._file_bytes = 0
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
        field = options.get(b"name", b"").decode("utf-8", "replace")
        self._sink.begin(field, None if name is None else name.decode("utf-8", "replace"))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._file_bytes += end - start
        self._limits.check_file(self._file_bytes)
        self._sink.write(data[start:end])

    def part_end(self) -> None:
        self._sink.end()

    def end(self) -> None:
        self.complete = True

    def _refuse_long_headers(self) -> None:
        if len(self._header) + len(self._value) > _HEADER_BYTES:
            raise Refusal(400, "broken_form", "a header in the multipart form is too long")
