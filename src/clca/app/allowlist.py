"""An allow-list of Gradio's addresses: the page's own calls, with limits, and nothing else."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clca.app.gradio_queue import AllowedCalls, UploadProgress
from clca.app.settings import PageSettings
from clca.app.upload_folder import UploadFolder
from clca.app.upload_parser import page_limits, receive_files
from clca.serve.errors import Refusal
from clca.serve.guard import refuse
from clca.serve.root_path import path_below
from clca.serve.settings import MIB, ServeSettings
from clca.serve.upload_limits import body_chunks, next_message

_API = "/gradio_api"
_FILE = f"{_API}/file="
_READ = re.compile(
    rf"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(assets|static|svelte)/.+"
    rf"|{_API}/(startup-events|app_id|upload_progress)/?"
)
_STREAM = re.compile(rf"{_API}/(queue/data|heartbeat/[\w-]+)/?")
_JOIN = re.compile(rf"{_API}/queue/join/?")
_WRITE = re.compile(rf"{_API}/(cancel|reset)/?")
_UPLOAD = re.compile(rf"{_API}/upload/?")
_MESSAGE_BYTES = 2 * MIB
_PATH_LENGTH = 2000
_KEEP_SECONDS = 300.0  # seconds for which an upload is kept, however little space there is
_PROGRESS_SECONDS = 10.0  # seconds for a page to read that its upload is complete
_UPLOAD_NAME = re.compile(r"[\w-]{1,64}")
_CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_FILE_CONTENT = "default-src 'none'; sandbox"  # an uploaded page does nothing, even if it is opened
# Gradio would let every site read a page that is not on localhost, and fails at several ranges.
_DROPPED = (b"origin", b"range", b"if-range")


class Allowlist:
    """ASGI middleware before Gradio's application.

    Gradio would also fetch a URL or a file by its path for any client: neither is allowed. Uploads have limits of
    bytes, of time and of disk space.

    Args:
        app: Gradio's application.
        folder: Where uploads lie; no other file is named to Gradio, or served by it.
        page: Limits of uploads.
        settings: Of the endpoint: how long a client may send nothing.
        calls: What may be called.
        stopping: Set when open pages are to be left.
    """

    def __init__(
        self,
        app: ASGIApp,
        folder: UploadFolder,
        page: PageSettings,
        settings: ServeSettings,
        calls: AllowedCalls,
        stopping: asyncio.Event,
    ) -> None:
        self.app, self._folder, self._page, self._settings = app, folder, page, settings
        self._calls, self._stopping = calls, stopping
        self._uploads = self._received = 0  # under way; bytes of all there ever were

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Gradio's page needs no websocket
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        path, method = path_below(scope), scope["method"]
        try:
            if len(path) > _PATH_LENGTH:
                raise Refusal(404, "not_found", "there is nothing here")
            if method == "POST" and _from_another_site(Headers(scope=scope)):
                raise Refusal(403, "another_site", "this page takes nothing from other sites")
            scope = {**scope, "headers": [each for each in scope["headers"] if each[0] not in _DROPPED]}
            if method == "POST" and _UPLOAD.fullmatch(path):
                await self._upload(scope, receive, send)
            elif method == "POST" and (_WRITE.fullmatch(path) or _JOIN.fullmatch(path)):
                body, content = await self._message(receive)
                if _JOIN.fullmatch(path):
                    self._calls.check(content)
                await self.app(scope, _replay(body, receive), send)
            elif method == "GET" and _STREAM.fullmatch(path):
                await self._stream(scope, receive, _with_policy(send))
            elif method in ("GET", "HEAD") and _READ.fullmatch(path):
                await self.app(scope, receive, _with_policy(send))
            elif method in ("GET", "HEAD") and self._is_ours(path):
                await self.app(scope, receive, _with_policy(send, _FILE_CONTENT))
            else:
                raise Refusal(404, "not_found", "there is nothing here")
        except Refusal as refusal:
            await refuse(send, refusal)

    def _is_ours(self, path: str) -> bool:
        return path.startswith(_FILE) and self._folder.holds(path.removeprefix(_FILE))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The event stream of an open page; ended, rather than waited for, when the server stops."""
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

    async def _message(self, receive: Receive) -> tuple[bytes, Any]:
        """The body of a message to the page, raw and parsed, after a check that it names uploaded files only."""
        body = bytearray()
        more = True
        end = asyncio.get_running_loop().time() + self._settings.upload_seconds
        while more:
            message = await next_message(receive, self._settings.read_seconds, end)
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
        return bytes(body), content

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep an upload, and answer as Gradio's page expects it: with the paths."""
        page, headers = self._page, Headers(scope=scope)
        limits = page_limits(page, self._settings)
        length = limits.check_declared(headers.get("content-length", ""))
        if self._uploads >= page.uploads:
            raise Refusal(429, "busy", "too many uploads at once: try again later", {"Retry-After": "5"})
        progress = UploadProgress(_upload_name(scope))
        self._uploads += 1
        try:
            before = self._received
            held = await asyncio.to_thread(self._folder.free_space, page.folder_bytes, length, _KEEP_SECONDS)
            if held >= page.folder_bytes:
                raise _no_space()
            most = page.folder_bytes - held + before

            def hold(received: int) -> None:  # of all uploads together
                self._received += received
                if self._received > most:
                    raise _no_space()

            chunks = body_chunks(receive, limits, hold)
            content_type = headers.get("content-type", "")
            kept = await receive_files(chunks, content_type, limits, self._folder.path, progress.add)
        finally:
            self._uploads -= 1
            progress.end()
            asyncio.get_running_loop().call_later(_PROGRESS_SECONDS, progress.forget)
        await JSONResponse([str(path) for path in kept])(scope, receive, send)


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


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that has been read, once more; then whatever the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _from_another_site(headers: Headers) -> bool:
    """Whether a browser sends this for a page of another site.

    Browsers mark it so over https or on the local machine (Sec-Fetch-Site); otherwise Origin has to be our own host.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc not in (headers.get("host"), headers.get("x-forwarded-host"))


def _upload_name(scope: Scope) -> str | None:
    """What the page calls an upload whose progress it asks for."""
    name = parse_qs(scope.get("query_string", b"")[:500].decode("latin-1")).get("upload_id", [""])[0]
    return name if _UPLOAD_NAME.fullmatch(name) else None


def _with_policy(send: Send, content: str = _CONTENT) -> Send:
    """Add a policy: the page loads from and connects to this server only, and no other page may frame it."""

    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"content-security-policy", content.encode())]
        await send(message)

    return with_header


def _no_space() -> Refusal:
    return Refusal(507, "no_room", "too many photographs are kept: try again later", {"Retry-After": "300"})
