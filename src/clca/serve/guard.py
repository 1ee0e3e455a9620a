"""Who may ask: an optional token before everything but /health; and headers that keep browsers careful."""

import base64
import binascii
import hashlib
import hmac
import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clca.serve.refusal import Refusal

OPEN = ("/health", "/health/live", "/health/ready")


class Guard:
    """ASGI middleware: refuses whoever does not show the token.

    Programs send it as `Authorization: Bearer TOKEN`; a browser asks for it and sends it as the password.

    Args:
        app: What is guarded, with all that is mounted into it.
        token: The token, or None to let everyone in.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self._digest = None if token is None else _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may(scope):
            await self.app(scope, receive, _careful(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            refusal = Refusal(401, "no_token", "show the token: -H 'Authorization: Bearer TOKEN'")
            body = json.dumps(refusal.body).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"www-authenticate", b'Bearer realm="clca", Basic realm="clca"'),
            ]
            send = _careful(send)
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _may(self, scope: Scope) -> bool:
        if self._digest is None or scope["path"] in OPEN:
            return True
        shown = _shown(Headers(scope=scope).get("authorization", ""))
        # Digests are of one length, so that the comparison's time tells nothing of the token, nor of its length.
        return hmac.compare_digest(_digest(shown), self._digest)


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
