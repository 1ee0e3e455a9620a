"""What of Gradio can be reached over the network: what the page uses, with limits, and nothing else."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clca.app.settings import PageSettings
from clca.app.upload_folder import UploadFolder
from clca.serve.guard import refuse
from clca.serve.refusal import Refusal
from clca.serve.settings import MIB, ServeSettings

_API = "/gradio_api"
_FILE = f"{_API}/file="
_READ = re.compile(
    rf"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(assets|static|svelte)/.+"
    rf"|{_API}/(startup-events|app_id|upload_progress)/?"
)
_STREAM = re.compile(rf"{_API}/(queue/data|heartbeat/[\w-]+)/?")
_WRITE = re.compile(rf"{_API}/(queue/join|cancel|reset)/?")
_UPLOAD = re.compile(rf"{_API}/upload/?")
_MESSAGE_BYTES = 2 * MIB
_SLOWEST = 4096  # bytes a second of an upload, after its first minute
_CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class Gate:
    """ASGI middleware before Gradio's application.

    Gradio also answers to whoever wants it to fetch an address, or a file by its path: neither is let through. Uploads
    have limits of bytes, of time and of room on the disk.

    Args:
        app: Gradio's application.
        folder: Where uploads lie; no other file is named to Gradio, or served by it.
        page: Limits of uploads.
        settings: Of the endpoint: how long a client may send nothing.
        stopping: Set when open pages are to be left.
    """

    def __init__(
        self, app: ASGIApp, folder: UploadFolder, page: PageSettings, settings: ServeSettings, stopping: asyncio.Event
    ) -> None:
        self.app, self._folder, self._page, self._settings, self._stopping = app, folder, page, settings, stopping
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Gradio's page needs no websocket
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        path, method = _path_of(scope), scope["method"]
        try:
            if method == "POST" and _UPLOAD.fullmatch(path):
                await self._upload(scope, receive, send)
            elif method == "POST" and _WRITE.fullmatch(path):
                body = await self._message(receive)
                await self.app(scope, _again(body, receive), send)
            elif method == "GET" and _STREAM.fullmatch(path):
                await self._stream(scope, receive, _with_policy(send))
            elif method in ("GET", "HEAD") and (_READ.fullmatch(path) or self._is_ours(path)):
                await self.app(scope, receive, _with_policy(send))
            else:
                raise Refusal(404, "not_found", "there is nothing here")
        except Refusal as refusal:
            await refuse(send, refusal)

    def _is_ours(self, path: str) -> bool:
        return path.startswith(_FILE) and self._folder.holds(path.removeprefix(_FILE))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What a page listens to as long as it is open; ended, rather than waited for, when the server stops."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        stream = asyncio.ensure_future(self.app(scope, receive, watched))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({stream, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stream.done():
                await stream
            elif begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                raise Refusal(503, "stopping", "the server is stopping")
        finally:
            stream.cancel()
            stopping.cancel()
            await asyncio.gather(stream, stopping, return_exceptions=True)

    # -- messages --------------------------------------------------------------------------------------------------

    async def _message(self, receive: Receive) -> bytes:
        """The body of a message to the page, once it names no file but uploaded ones."""
        body = bytearray()
        more = True
        while more:
            message = await self._next(receive)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _MESSAGE_BYTES:
                raise Refusal(413, "message_too_long", "the message is too long")
        try:
            content = json.loads(bytes(body) or b"{}")
        except (ValueError, RecursionError):
            raise Refusal(400, "broken_message", "the message is not JSON") from None
        try:
            for file in _files_in(content):
                if not isinstance(file, str) or not self._folder.holds(file):
                    raise Refusal(403, "not_uploaded", "the message names a file that was not uploaded")
        except RecursionError:
            raise Refusal(400, "broken_message", "the message is nested too deeply") from None
        return bytes(body)

    async def _next(self, receive: Receive, end: float | None = None) -> Message:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.read_seconds
        try:
            async with asyncio.timeout_at(until if end is None else min(until, end)):
                message = await receive()
        except TimeoutError:
            raise Refusal(408, "slow_upload", "the upload did not arrive in time", {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise Refusal(499, "client_gone", "the client closed the connection")
        return message

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = self._page.upload_bytes
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > most:
                raise _too_long(most)
        if self._uploads >= self._page.uploads:
            raise Refusal(429, "busy", "too many uploads at once: try again later", {"Retry-After": "5"})
        self._uploads += 1
        try:
            held = await asyncio.to_thread(self._folder.size)
            if held >= self._page.folder_bytes:
                raise Refusal(507, "no_room", "too many photographs are kept: try again later", {"Retry-After": "600"})
            await self._watched_upload(scope, receive, send, min(most, self._page.folder_bytes - held))
        finally:
            self._uploads -= 1

    async def _watched_upload(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        """Hand an upload on to Gradio. It would tell of a failure in its own way, so what it sends then is dropped."""
        loop = asyncio.get_running_loop()
        began, received, complete = loop.time(), 0, False
        refused: Refusal | None = None

        async def watched() -> Message:
            nonlocal received, complete, refused
            if complete:
                return await receive()
            try:
                message = await self._next(receive, began + self._settings.upload_seconds + received / _SLOWEST)
                received += len(message.get("body", b""))
                if received > most:
                    raise _too_long(most)
            except Refusal as refusal:
                refused = refusal
                raise
            complete = not message.get("more_body", False)
            return message

        async def unless_refused(message: Message) -> None:
            if refused is None:
                await send(message)

        try:
            await self.app(scope, watched, unless_refused)
        except Exception:
            if refused is None:
                raise
        if refused is not None:
            raise refused


def _path_of(scope: Scope) -> str:
    """The path below the mount, as Gradio will read it."""
    root, path = scope.get("root_path", ""), scope["path"]
    return (path[len(root) :] if root and path.startswith(root) else path) or "/"


def _files_in(content: Any) -> Iterator[Any]:
    """Every path in a message: Gradio takes an object with a `path` for a file, wherever it is."""
    if isinstance(content, dict):
        if "path" in content:
            yield content["path"]
        if str(content.get("url", "")).startswith("data:"):  # a file that passed no upload
            yield None
        for value in content.values():
            yield from _files_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from _files_in(value)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, once more; then whatever the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_policy(send: Send) -> Send:
    """A page that loads from, and talks to, nobody but this server, and that no other page frames."""

    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"content-security-policy", _CONTENT.encode())]
        await send(message)

    return with_header


def _too_long(most: int) -> Refusal:
    return Refusal(413, "upload_too_long", f"the upload is over the limit of {most / MIB:.0f} MiB: send fewer at once")
