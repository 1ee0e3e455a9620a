"""Reading a request's images from the network, piece by piece, within limits of bytes, files and time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from clca.serve.errors import Refusal
from clca.serve.settings import MIB, ServeSettings
from clca.system.numerals import is_whole_number

_CLOSE = {"Connection": "close"}
_NAME_LENGTH = 200


@dataclass
class Upload:
    """One image as it was sent.

    Attributes:
        name: What the client calls it; told back and used for nothing else.
        data: The file.
    """

    name: str
    data: bytearray = field(default_factory=bytearray)


async def read_uploads(request: Request, settings: ServeSettings, hold: Callable[[int], None]) -> list[Upload]:
    """The images of a request: a multipart form with files, or a body that is one image.

    Args:
        request: Its body has not been read.
        settings: The limits.
        hold: Called with the bytes of each piece before it is kept; raises a `Refusal` where that is too many.

    Raises:
        Refusal: 400 for a broken form, 408 for one that comes too slowly, 413 beyond a limit, 415 for another type,
            422 without images.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    declared = request.headers.get("content-length", "")
    if is_whole_number(declared) and int(declared) > settings.request_bytes:
        raise _too_long(settings)
    pieces = _pieces(request, settings, hold)
    if kind == b"multipart/form-data":
        uploads = await _from_form(pieces, options.get(b"boundary", b""), settings)
    elif kind in (b"", b"application/octet-stream") or kind.startswith(b"image/"):
        uploads = [Upload("image")]
        async for piece in pieces:
            _extend(uploads[0], piece, settings)
    else:
        raise Refusal(
            415,
            "unknown_body",
            "send images as multipart/form-data (curl -F images=@leaf.jpg), or one as the body with its own type "
            "(curl -H 'Content-Type: image/jpeg' --data-binary @leaf.jpg)",
        )
    if not uploads or not any(upload.data for upload in uploads):
        raise Refusal(422, "no_image", "the request holds no image")
    return uploads


async def _pieces(request: Request, settings: ServeSettings, hold: Callable[[int], None]) -> AsyncIterator[bytes]:
    received = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + settings.upload_seconds
    stream = request.stream()
    while True:
        try:
            # Whoever sends a byte now and then meets the second limit.
            async with asyncio.timeout_at(min(loop.time() + settings.read_seconds, end)):
                piece = await anext(stream, None)
        except TimeoutError:
            raise Refusal(408, "slow_upload", "the request did not arrive in time", _CLOSE) from None
        except ClientDisconnect:
            raise Refusal(499, "client_gone", "the client closed the connection") from None
        if piece is None:
            return
        received += len(piece)
        if received > settings.request_bytes:
            raise _too_long(settings)
        hold(len(piece))
        if piece:
            yield piece


async def _from_form(pieces: AsyncIterator[bytes], boundary: bytes, settings: ServeSettings) -> list[Upload]:
    if not boundary:
        raise Refusal(400, "broken_form", "multipart/form-data without a boundary")
    form = _Form(settings)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for piece in pieces:
            parser.write(piece)
            if form.complete:
                break
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "broken_form", "the multipart form cannot be read") from None
    if not form.complete:
        raise Refusal(400, "broken_form", "the multipart form is cut off")
    return form.uploads


class _Form:
    """What the parser's callbacks put together."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.uploads: list[Upload] = []
        self.complete = False
        self._name, self._value, self._disposition = b"", b"", b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        most = self.settings.files_a_request
        if len(self.uploads) >= most:  # before the next is read
            raise Refusal(413, "too_many_files", f"more than {most} files in one request: send fewer")
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename")
        if name is None:
            field = options.get(b"name", b"").decode("utf-8", "replace")[:_NAME_LENGTH]
            raise Refusal(
                422,
                "not_a_file",
                f"the field {field!r} is no file: options go into the address (/v1/predict?top_k=3)",
            )
        self.uploads.append(Upload(name.decode("utf-8", "replace")[:_NAME_LENGTH]))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        _extend(self.uploads[-1], data[start:end], self.settings)

    def end(self) -> None:
        self.complete = True


def _extend(upload: Upload, piece: bytes, settings: ServeSettings) -> None:
    if len(upload.data) + len(piece) > settings.file_bytes:
        raise Refusal(413, "file_too_long", f"a file is over the limit of {settings.file_bytes / MIB:g} MiB")
    upload.data += piece


def _too_long(settings: ServeSettings) -> Refusal:
    return Refusal(413, "request_too_long", f"the request is over the limit of {settings.request_bytes / MIB:g} MiB")
