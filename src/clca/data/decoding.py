"""`Decoders`: images are decoded in processes of their own, which are ended where one takes too long or too much.

No list of formats and no look at a header can foresee what every decoder makes of every file. So whatever comes from
strangers (uploads, and the files of `predict` and `data check`) is decoded where a limit of processor time and one of
memory hold, and where a crash ends a process that nobody else needs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from PIL import Image

from clca.data.image_formats import Code, UnreadableImage
from clca.data.images import MAX_PIXELS
from clca.errors import ClcaError, WorkError
from clca.system.processes import how_it_ended

SECONDS = 20.0
"""Processor time that a file of `MAX_PIXELS` may take to decode on a slow machine, several times over."""

_PATIENCE = 0.5  # seconds of processor time after which an image counts as slow
_WALL = 4  # times the processor time: a process that waits, or shares its core with many
_STARTING, _ENDING = 60.0, 10.0  # seconds
_BYTES_A_PIXEL, _BYTES_AT_LEAST = 24, 512 << 20  # decoded, laid on white and turned, each time in four bytes
_NICE = 10
_PROGRAM = "import sys; sys.path[:] = {path!r}; from clca.data.decoder import main; main()"

Resize = tuple[int, str]
"""Side of a square in pixels, and the interpolation by its name in `clca.data.transforms`."""


class Decoders:
    """Processes that decode images, used from any number of threads.

        with Decoders(4) as decoders:
            image, kind = decoders.image(Path("leaf.jpg"))

    An image that takes more than half a second of processor time counts as slow. Its turn passes to the next image, and
    it continues at a lower priority, as one of at most `slow`; any further slow image is refused. So a few images that
    take as long as they may do not delay others.

    Args:
        processes: Images decoded at the same time.
        seconds: Processor time an image may take.
        max_pixels: Largest width × height; memory is limited to what these need.
        slow: Slow images that may be decoded besides; None, where there is one user, lets all take their time.
    """

    def __init__(
        self, processes: int, *, seconds: float = SECONDS, max_pixels: int = MAX_PIXELS, slow: int | None = None
    ) -> None:
        self.seconds, self.max_pixels = seconds, max_pixels
        self._turns = threading.Semaphore(processes)
        self._slow = None if slow is None else threading.Semaphore(slow)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False
        for _ in range(processes):  # they start side by side, and while the caller does something else
            self._add()

    def image(self, source: Path | bytes, resize: Resize | None = None) -> tuple[Image.Image, str]:
        """Decode an image as `clca.data.images.read_with_format` does.

        Args:
            source: A file, or the content of one.
            resize: Stretch it to a square.

        Raises:
            ClcaError: As `read_with_format`; an `UnreadableImage` where the file is at fault, of code `too_slow` beyond
                `seconds`, and `busy` where there are too many slow ones. Messages about content name no file.
        """
        answer, pixels = self._ask("pixels", source, resize)
        width, height = answer["size"]
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1), answer["kind"]

    def verify(self, path: Path) -> None:
        """Decode a file for nothing but its errors, which are raised as by `image`."""
        self._ask("verify", path)

    def inspect(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """Size, kind and emptiness of an image, and its grey thumbnail; see `clca.data.checks.decode`."""
        return self._ask("inspect", path)

    def close(self) -> None:
        """End the processes; what is being decoded ends with an error."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- one request -------------------------------------------------------------------------------------------------

    def _ask(self, operation: str, source: Path | bytes, resize: Resize | None = None) -> tuple[dict[str, Any], bytes]:
        request: dict[str, Any] = {"operation": operation, "max_pixels": self.max_pixels}
        if resize is not None:
            request["resize"] = resize
        if isinstance(source, Path):
            request["path"] = os.path.abspath(source)
        turn = _Turn(self._turns, self._slow)
        try:
            answer, pixels = self._exchange(request, None if isinstance(source, Path) else source, turn)
        finally:
            turn.give_back()
        if "error" not in answer:
            return answer, pixels
        if "code" in answer:
            raise UnreadableImage(_without(answer["error"], source), answer["code"])
        raise ClcaError(_without(answer["error"], source))

    def _exchange(self, request: Mapping[str, Any], content: bytes | None, turn: _Turn) -> tuple[dict[str, Any], bytes]:
        process = self._take()
        whole = False
        try:
            process.send(request, content)
            if not process.answers_soon(min(_PATIENCE, self.seconds)):
                turn.goes_on_slowly()
                process.yield_to_others(turn.is_slow)
                if not process.answers_within(_WALL * self.seconds):
                    raise self._too_slow()
            answered = process.receive()
            whole = True
            return answered
        except (EOFError, OSError):  # it has ended
            code = process.end(_ENDING)
            if code == -signal.SIGPROF:
                raise self._too_slow() from None
            why = f"damaged: its decoder failed ({how_it_ended(code)}); convert it to JPEG or PNG"
            raise UnreadableImage(why, "damaged") from None
        finally:
            if whole and not turn.is_slow:
                self._put_back(process)
            else:
                process.end()
                self._add()

    def _too_slow(self) -> UnreadableImage:
        limit = f"takes longer than {self.seconds:g} s to decode"
        return UnreadableImage(f"{limit}: convert it to JPEG or PNG, or make it smaller", "too_slow")

    # -- processes ---------------------------------------------------------------------------------------------------

    def _take(self) -> _Process:
        with self._lock:
            if self._closed:
                raise WorkError("the decoders are closed")
            process = self._idle.pop(0) if self._idle else None
        return process or _Process(self.seconds, self.max_pixels)

    def _put_back(self, process: _Process) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.end()

    def _add(self) -> None:
        """Start one, so that the next image need not wait for that."""
        with self._lock:
            if not self._closed:
                self._idle.append(_Process(self.seconds, self.max_pixels))


class _Turn:
    """What an image holds while it is decoded: a turn, or a place among the slow ones."""

    def __init__(self, turns: threading.Semaphore, slow: threading.Semaphore | None) -> None:
        self._held, self._slow, self.is_slow = turns, slow, False
        turns.acquire()

    def goes_on_slowly(self) -> None:
        """Let another have the turn; an `UnreadableImage` where there are too many slow ones."""
        if self._slow is None:
            return
        if not self._slow.acquire(blocking=False):
            code: Code = "busy"
            raise UnreadableImage("takes long to decode, and others do as well: try again later", code)
        self._held.release()
        self._held, self.is_slow = self._slow, True

    def give_back(self) -> None:
        self._held.release()


class _Process:
    """One decoder process, used from one thread at a time."""

    def __init__(self, seconds: float, max_pixels: int) -> None:
        ours, theirs = socket.socketpair()
        memory = _BYTES_AT_LEAST + _BYTES_A_PIXEL * max_pixels
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path), *map(str, (theirs.fileno(), seconds, memory))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C on the terminal is the parent's alone
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads take longer to start than all the rest
            )
        self._usage = psutil.Process(self._process.pid)
        self._connection = Connection(ours.detach())
        self._ready, self._spent = False, 0.0

    def send(self, request: Mapping[str, Any], content: bytes | None) -> None:
        if not self._ready:
            if not self._connection.poll(_STARTING):
                raise WorkError(f"a process that decodes images did not start within {_STARTING:g} s")
            try:
                self._connection.recv_bytes()
            except (EOFError, OSError):
                how = how_it_ended(self.end(_ENDING))
                raise WorkError(f"a process that decodes images did not start ({how}): see above") from None
            self._ready = True
        self._spent = self._processor_time()
        self._connection.send_bytes(json.dumps(request).encode())
        if content is not None:
            self._connection.send_bytes(content)

    def answers_within(self, seconds: float) -> bool:
        """Whether there is an answer, or the end of the process."""
        return self._connection.poll(seconds)

    def answers_soon(self, seconds: float) -> bool:
        """`answers_within`, by the processor time of the process: on a busy machine no image is slow for that alone."""
        if self.answers_within(seconds):
            return True
        until = time.monotonic() + (_WALL - 1) * seconds
        while (missing := seconds - (self._processor_time() - self._spent)) > 0 and time.monotonic() < until:
            if self.answers_within(max(missing, 0.01)):
                return True
        return False

    def _processor_time(self) -> float:
        with contextlib.suppress(psutil.Error):
            times = self._usage.cpu_times()
            return float(times.user + times.system)
        return math.inf  # it has ended

    def receive(self) -> tuple[dict[str, Any], bytes]:
        return json.loads(self._connection.recv_bytes()), self._connection.recv_bytes()

    def yield_to_others(self, slow: bool) -> None:
        if slow:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)

    def end(self, grace: float = 0.0) -> int:
        """End the process and return its exit code; one that is ending by itself has `grace` seconds for that."""
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._connection.close()
        return self._process.wait()


def _without(message: str, source: Path | bytes) -> str:
    """A message without the absolute path that was sent."""
    return message.removeprefix(f"{os.path.abspath(source)}: ") if isinstance(source, Path) else message
