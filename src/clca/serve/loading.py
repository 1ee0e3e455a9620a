"""A small server while the models load: it answers 503, so that clients are not left waiting."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from clca.serve.errors import Refusal

_SECONDS = 5.0  # for a client to send the head of its request, and to read the answer
_LOADING = Refusal(503, "loading", "the models are still loading: try again in a moment")
_HEAD = (
    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n"
    "X-Content-Type-Options: nosniff\r\n{more}\r\n"
)
_LATER = "Retry-After: 5\r\nRefresh: 5\r\n"  # a browser asks again by itself


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While the block runs, SIGTERM and Ctrl-C end the process at once, in a line, with exit code 143 and 130.

    Not by an exception: modules that are being imported answer one with errors of their own, or swallow it. Nothing is
    lost, for nothing has been accepted yet. In the main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"clca: stopped while the models were loading\n")
        os._exit(128 + number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def answered_meanwhile(listening: socket.socket, root_path: str = "") -> Iterator[None]:
    """Answer every request while the block runs: /health/live with 200, everything else with 503.

    Args:
        listening: What `listen` returned; it stays open, and connections that come at the end wait for the server that
            accepts them then.
        root_path: As in `ServeSettings`.
    """
    loop = asyncio.new_event_loop()
    ends = asyncio.Event()
    ready = threading.Event()
    live = (b"/health/live", f"{root_path}/health/live".encode())
    health = (*live, *(f"{root}/health{end}".encode() for root in ("", root_path) for end in ("", "/ready")))
    clients: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        try:
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_SECONDS):
                    method, path = _asked(await reader.readuntil(b"\r\n\r\n"))
                    writer.write(_answer(method, path in live, path in health))
                    writer.write_eof()
                    while await reader.read(65536):  # a connection closed before would take the answer with it
                        pass
        finally:
            clients.discard(task)
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, sock=listening.dup(), limit=16384)
        ready.set()
        await ends.wait()
        server.close()
        for task in list(clients):
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="clca-loading", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join()
        loop.close()


def _asked(head: bytes) -> tuple[bytes, bytes]:
    """Method and path of a request, as far as it is one."""
    method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
    return method, rest.partition(b" ")[0].partition(b"?")[0]


def _answer(method: bytes, live: bool, health: bool) -> bytes:
    body = json.dumps({"live": True, "ready": False} if health else _LOADING.body).encode()
    status = "200 OK" if live else "503 Service Unavailable"
    head = _HEAD.format(status=status, length=len(body), more="" if live else _LATER).encode()
    return head if method == b"HEAD" else head + body
