"""Who may ask: an optional token before everything but /health; and headers that keep browsers careful."""

import base64
import binascii
import hashlib
import hmac
import json
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clca.serve.errors import Refusal
from clca.serve.root_path import path_below

OPEN = ("/health", "/health/live", "/health/ready")


class Guard:
    """ASGI middleware: refuses requests without the token.

    Programs send it as `Authorization: Bearer TOKEN`; a browser asks for it and sends it as the password.

    Args:
        app: What is guarded, with all that is mounted into it.
        token: The token, or None to let everyone in.
        local: Whether only requests to a name of this machine itself are answered.
    """

    def __init__(self, app: ASGIApp, token: str | None, local: bool = False) -> None:
        self.app, self._local = app, local
        self._digest = None if token is None else _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, _careful(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(_careful(send), refusal)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if self._local and not _names_this_machine(Headers(scope=scope).get("host", "")):
            return Refusal(421, "wrong_host", "without a token this server answers to localhost and 127.0.0.1 alone")
        if not self._may(scope):
            # Chromium reads the first challenge of a line only, and asks for nothing where that is not Basic.
            challenge = {"WWW-Authenticate": 'Basic realm="clca", Bearer realm="clca"'}
            return Refusal(401, "no_token", "show the token: -H 'Authorization: Bearer TOKEN'", challenge)
        return None

    def _may(self, scope: Scope) -> bool:
        if self._digest is None or path_below(scope) in OPEN:
            return True
        shown = _shown(Headers(scope=scope).get("authorization", ""))
        # Digests are of one length, so that the time of the comparison reveals neither the token nor its length.
        return hmac.compare_digest(_digest(shown), self._digest)


async def refuse(send: Send, refusal: Refusal) -> None:
    """Send a refusal as the whole answer."""
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    coded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": coded})
    await send({"type": "http.response.body", "body": body})


def _names_this_machine(host: str) -> bool:
    """Whether a Host header names a loopback address."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _shown(authorization: str) -> bytes:
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _careful(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Referrer-Policy", "no-referrer")
        await send(message)

    return with_headers
