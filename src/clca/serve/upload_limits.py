"""Limits of a request's body, for the endpoint and the page, and reading it within them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from starlette.types import Message, Receive

from clca.serve.errors import Refusal
from clca.serve.settings import MIB
from clca.system.numbers import is_whole_number

_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class UploadLimits:
    """What a body with files may be.

    Attributes:
        what: What error messages and codes call it.
        files: Number of files.
        file_bytes: Bytes per file.
        total_bytes: Bytes of the body.
        read_seconds: How long a client may send nothing.
        seconds: How long the body may take to arrive.
        bytes_per_second: Lowest rate after that; None if there is no more time after it.
    """

    what: Literal["request", "upload"]
    files: int
    file_bytes: int
    total_bytes: int
    read_seconds: float
    seconds: float
    bytes_per_second: float | None = None

    def check_declared(self, length: str) -> int:
        """The content length that a client declares, 0 if it declares none; a `Refusal` (413) beyond the limit."""
        declared = int(length) if is_whole_number(length) else 0
        self.check_total(declared)
        return declared

    def check_total(self, received: int) -> None:
        """Raise a `Refusal` (413) for a body of more than `total_bytes`."""
        if received > self.total_bytes:
            limit = f"the {self.what} is over the limit of {self.total_bytes / MIB:g} MiB: send fewer files at once"
            raise Refusal(413, f"{self.what}_too_long", limit)

    def check_file(self, received: int) -> None:
        """Raise a `Refusal` (413) for a file of more than `file_bytes`."""
        if received > self.file_bytes:
            raise Refusal(413, "file_too_long", f"a file is over the limit of {self.file_bytes / MIB:g} MiB")

    def too_many_files(self) -> Refusal:
        """The error for more than `files`."""
        return Refusal(413, "too_many_files", f"more than {self.files} files in one {self.what}: send fewer at once")


async def body_chunks(receive: Receive, limits: UploadLimits, hold: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The body of a request, as it arrives.

    Args:
        receive: Of the ASGI request, whose body has not been read.
        limits: Of bytes and time.
        hold: Called with the size of each chunk before it is passed on; raises a `Refusal` if that is too much.

    Raises:
        Refusal: 408 for a body that arrives too slowly, 413 beyond a limit, 499 for a closed connection.
    """
    loop = asyncio.get_running_loop()
    began, received, more = loop.time(), 0, True
    while more:
        extra = 0.0 if limits.bytes_per_second is None else received / limits.bytes_per_second
        # The second limit ends a client that sends a byte now and then.
        message = await next_message(receive, limits.read_seconds, began + limits.seconds + extra)
        chunk = message.get("body", b"")
        received += len(chunk)
        limits.check_total(received)
        hold(len(chunk))
        more = message.get("more_body", False)
        if chunk:
            yield chunk


async def next_message(receive: Receive, seconds: float, end: float) -> Message:
    """The next part of a request's body.

    Args:
        receive: Of the ASGI request.
        seconds: How long it may take.
        end: When it has to be here at the latest, by the event loop's clock.

    Raises:
        Refusal: 408 if it does not arrive in time, 499 for a closed connection.
    """
    try:
        async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + seconds, end)):
            message = await receive()
    except TimeoutError:
        raise Refusal(408, "slow_upload", "the request did not arrive in time", _CLOSE) from None
    if message["type"] == "http.disconnect":
        raise Refusal(499, "client_gone", "the client closed the connection")
    return message
