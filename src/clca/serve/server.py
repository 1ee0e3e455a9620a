"""Running the application with uvicorn, until a signal stops it; accepted requests are answered first."""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from clca.errors import ClcaError, reason

# `timeout` signals the process and then its group, and what runs a command in a terminal hands on the Ctrl-C that the
# terminal has sent to both: no user asks for the end twice so soon.
_SAME_SIGNAL_SECONDS = 1.0


class Server(uvicorn.Server):
    """uvicorn's server, which at the first SIGTERM or Ctrl-C refuses new requests (503) while it finishes the others.

    A second signal, from a second later on, ends it at once.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, ready: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._app, self._ready = app, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._told = 0.0  # to stop, by the loop's clock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Called by the signal handler, or to stop the server from another thread."""
        if self._loop is None:  # still starting
            self.should_exit = True
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop, self._loop.time())

    def _stop(self, now: float) -> None:
        if self._draining is None:
            self._told, self._draining = now, asyncio.ensure_future(self._drain())
        elif now - self._told > _SAME_SIGNAL_SECONDS:
            self.should_exit = self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # the loop cancels what is under way, and a traceback of each would add nothing
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    async def _drain(self) -> None:
        try:
            await self._app.state.service.drain()
        finally:
            self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port in use is reported before a model is loaded.

    Clients that connect meanwhile wait, or get 503 by `clca.serve.loading`: were the socket only bound, another server
    that is still loading could bind the same port, and one of the two would fail minutes later.

    Args:
        host: Name or address.
        port: 0 for any free one.

    Raises:
        ClcaError: If the address cannot be had.
    """
    if not 0 <= port <= 65535:  # the system would take the remainder
        raise ClcaError(f"cannot listen on port {port}: ports go from 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except (OSError, OverflowError) as error:
        where = f"{host} port {port} ({reason(error)})"
        raise ClcaError(f"cannot listen on {where}; choose another --port or --host") from None
    return found


def make_server(app: FastAPI, ready: Callable[[], None] | None = None) -> Server:
    """A server of the application, for `Server.run(sockets=[…])`; `ready` is called once it takes requests."""
    service = app.state.service
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http="h11",
        # Connections that send nothing hold no place in the queue, so they have a bound of their own.
        limit_concurrency=max(1024, 4 * service.settings.queue),
        timeout_graceful_shutdown=3,  # `drain` has waited for what was accepted; an open page would be waited for
    )
    return Server(config, app, ready)


def serve(app: FastAPI, listening: socket.socket, ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        app: What `create_app` returned.
        listening: What `listen` returned.
        ready: Called once it takes requests.
    """
    make_server(app, ready).run(sockets=[listening])
