"""Reading the images of a request to the endpoint, within limits of bytes, files and time."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from clca.serve.errors import Refusal
from clca.serve.form import form_boundary, read_form
from clca.serve.settings import ServeSettings
from clca.serve.upload_limits import UploadLimits, body_chunks

_NAME_LENGTH = 200


@dataclass
class Upload:
    """One image as it was sent.

    Attributes:
        name: The name that the client gives it; it is returned with the answer and used for nothing else.
        data: The file.
    """

    name: str
    data: bytearray = field(default_factory=bytearray)


def request_limits(settings: ServeSettings) -> UploadLimits:
    """Limits of a request to the endpoint."""
    return UploadLimits(
        what="request",
        files=settings.files_a_request,
        file_bytes=settings.file_bytes,
        total_bytes=settings.request_bytes,
        read_seconds=settings.read_seconds,
        seconds=settings.upload_seconds,
    )


async def read_uploads(request: Request, settings: ServeSettings, hold: Callable[[int], None]) -> list[Upload]:
    """The images of a request: a multipart form with files, or a body that is one image.

    Args:
        request: Its body has not been read.
        settings: The limits.
        hold: Called with the size of each chunk before it is kept; raises a `Refusal` if that is too much.

    Raises:
        Refusal: 400 for a broken form, 408 for one that arrives too slowly, 413 beyond a limit, 415 for another type,
            422 without images.
    """
    limits = request_limits(settings)
    limits.check_declared(request.headers.get("content-length", ""))
    content_type = request.headers.get("content-type", "")
    chunks = body_chunks(request.receive, limits, hold)
    kind = content_type.partition(";")[0].strip().lower()
    boundary = form_boundary(content_type)
    uploads: list[Upload] = []
    if boundary is not None:
        sink = _InMemory()
        await read_form(chunks, boundary, limits, sink)
        uploads = sink.uploads
    elif kind in ("", "application/octet-stream") or kind.startswith("image/"):
        uploads.append(Upload("image"))
        async for chunk in chunks:
            limits.check_file(len(uploads[0].data) + len(chunk))
            uploads[0].data += chunk
    else:
        raise Refusal(
            415,
            "unknown_body",
            "send images as multipart/form-data (curl -F images=@leaf.jpg), or one as the body with its own type "
            "(curl -H 'Content-Type: image/jpeg' --data-binary @leaf.jpg)",
        )
    if not any(upload.data for upload in uploads):
        raise Refusal(422, "no_image", "the request holds no image")
    return uploads


class _InMemory:
    """Keeps the files of a form in memory; a `clca.serve.form.FileSink`."""

    blocking = False

    def __init__(self) -> None:
        self.uploads: list[Upload] = []

    def begin(self, field: str, name: str | None) -> None:
        if name is None:
            raise Refusal(
                422,
                "not_a_file",
                f"the field {field[:_NAME_LENGTH]!r} is no file: options go into the address (/v1/predict?top_k=3)",
            )
        self.uploads.append(Upload(name[:_NAME_LENGTH]))

    def write(self, data: bytes) -> None:
        self.uploads[-1].data += data

    def end(self) -> None: ...
