"""`Decoders`: decode untrusted images in worker processes with limits of CPU time and memory.

Neither a list of formats nor a check of headers can predict what every decoder does with every file. Untrusted files
(uploads, and the files of `predict` and `data check`) are therefore decoded in worker processes, which are killed when
an image exceeds a limit, and whose crash affects nothing else.
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
"""Limit of CPU time for an image; several times what a file of `MAX_PIXELS` takes on a slow machine."""

_SLOW_AFTER = 0.5  # seconds of CPU time after which an image counts as slow
_WALL_FACTOR = 4  # wall time allowed per CPU time: a process may wait, or share its core with many others
_START_TIMEOUT, _EXIT_TIMEOUT = 60.0, 10.0  # seconds
_BYTES_PER_PIXEL, _MIN_BYTES = 24, 512 << 20  # decoded, composited on white and rotated, four bytes each
_NICE = 10
_PROGRAM = "import sys; sys.path[:] = {path!r}; from clca.data.decoder import main; main()"

Resize = tuple[int, str]
"""Side of the square in pixels, and the name of the interpolation in `clca.data.transforms`."""


class Decoders:
    """A pool of processes that decode images; it can be used from any number of threads.

        with Decoders(4) as decoders:
            image, kind = decoders.image(Path("leaf.jpg"))

    An image that takes more than half a second of CPU time counts as slow. It gives its slot to the next image and
    continues at a lower priority, in one of `slow` extra slots; if these are taken, it is refused. Thus a few slow
    images do not delay the others.

    Args:
        processes: Number of images decoded in parallel.
        seconds: Limit of CPU time per image.
        max_pixels: Largest width × height; the memory limit of a process follows from it.
        slow: Number of extra slots for slow images; None (for a single user) sets no limit.
    """

    def __init__(
        self, processes: int, *, seconds: float = SECONDS, max_pixels: int = MAX_PIXELS, slow: int | None = None
    ) -> None:
        self.seconds, self.max_pixels = seconds, max_pixels
        self._slots = threading.Semaphore(processes)
        self._slow_slots = None if slow is None else threading.Semaphore(slow)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False
        for _ in range(processes):  # they start in parallel, while the caller continues
            self._start_process()

    def image(self, source: Path | bytes, resize: Resize | None = None) -> tuple[Image.Image, str]:
        """Decode an image as `clca.data.images.read_with_format` does.

        Args:
            source: A file, or the content of one.
            resize: Resize the image to this square, whatever its aspect ratio.

        Raises:
            ClcaError: As `read_with_format`. It is an `UnreadableImage` if the file is at fault, with code `too_slow`
                beyond `seconds` and `busy` if no slot for slow images is free. Messages about content omit the path.
        """
        reply, pixels = self._request("pixels", source, resize)
        width, height = reply["size"]
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1), reply["kind"]

    def verify(self, path: Path) -> bool:
        """Decode a file only to raise the errors that `image` would raise; return whether it is nearly empty."""
        return bool(self._request("verify", path)[0]["near_empty"])

    def inspect(self, path: Path) -> tuple[dict[str, Any], bytes]:
        """Size, kind and near-emptiness of an image, notes, and its thumbnail; see `clca.data.checks.decode`."""
        return self._request("inspect", path)

    def close(self) -> None:
        """End the processes; images that are being decoded fail with an error."""
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

    def _request(
        self, operation: str, source: Path | bytes, resize: Resize | None = None
    ) -> tuple[dict[str, Any], bytes]:
        request: dict[str, Any] = {"operation": operation, "max_pixels": self.max_pixels}
        if resize is not None:
            request["resize"] = resize
        if isinstance(source, Path):
            request["path"] = os.path.abspath(source)
        slot = _Slot(self._slots, self._slow_slots)
        try:
            reply, pixels = self._exchange(request, None if isinstance(source, Path) else source, slot)
        finally:
            slot.release()
        if "error" not in reply:
            return reply, pixels
        if "code" in reply:
            raise UnreadableImage(_without_path(reply["error"], source), reply["code"])
        raise ClcaError(_without_path(reply["error"], source))

    def _exchange(self, request: Mapping[str, Any], content: bytes | None, slot: _Slot) -> tuple[dict[str, Any], bytes]:
        process = self._acquire()
        complete = False
        try:
            process.send(request, content)
            if not process.wait_cpu_time(min(_SLOW_AFTER, self.seconds)):
                slot.move_to_slow()
                if slot.is_slow:
                    process.lower_priority()
                if not process.wait(_WALL_FACTOR * self.seconds):
                    raise self._too_slow()
            reply = process.receive()
            complete = True
            return reply
        except (EOFError, OSError):  # the process has ended
            code = process.end(_EXIT_TIMEOUT)
            if code == -signal.SIGPROF:
                raise self._too_slow() from None
            why = f"damaged: its decoder failed ({how_it_ended(code)}); convert it to JPEG or PNG"
            raise UnreadableImage(why, "damaged") from None
        finally:
            if complete and not slot.is_slow:
                self._release(process)
            else:
                process.end()
                self._start_process()

    def _too_slow(self) -> UnreadableImage:
        limit = f"takes longer than {self.seconds:g} s to decode"
        return UnreadableImage(f"{limit}: convert it to JPEG or PNG, or make it smaller", "too_slow")

    # -- processes ---------------------------------------------------------------------------------------------------

    def _acquire(self) -> _Process:
        with self._lock:
            if self._closed:
                raise WorkError("the decoders are closed")
            process = self._idle.pop(0) if self._idle else None
        return process or _Process(self.seconds, self.max_pixels)

    def _release(self, process: _Process) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.end()

    def _start_process(self) -> None:
        """Start a process ahead of time, so that the next image need not wait for it."""
        with self._lock:
            if not self._closed:
                self._idle.append(_Process(self.seconds, self.max_pixels))


class _Slot:
    """The slot that an image occupies while it is decoded: a regular one, or one for slow images."""

    def __init__(self, slots: threading.Semaphore, slow: threading.Semaphore | None) -> None:
        self._held, self._slow, self.is_slow = slots, slow, False
        slots.acquire()

    def move_to_slow(self) -> None:
        """Free the regular slot and take one for slow images; raise an `UnreadableImage` if none is free."""
        if self._slow is None:
            return
        if not self._slow.acquire(blocking=False):
            code: Code = "busy"
            raise UnreadableImage("is slow to decode, and so are other images at the moment: try again later", code)
        self._held.release()
        self._held, self.is_slow = self._slow, True

    def release(self) -> None:
        self._held.release()


class _Process:
    """One decoder process, used from one thread at a time."""

    def __init__(self, seconds: float, max_pixels: int) -> None:
        ours, theirs = socket.socketpair()
        memory = _MIN_BYTES + _BYTES_PER_PIXEL * max_pixels
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path), *map(str, (theirs.fileno(), seconds, memory))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # only the parent handles Ctrl-C
                env={
                    **os.environ,
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",  # of LibRaw: the parent sets how many images are decoded in parallel
                },  # its threads take longer to start than everything else
            )
        self._psutil = psutil.Process(self._process.pid)
        self._connection = Connection(ours.detach())
        self._ready, self._cpu_start = False, 0.0

    def send(self, request: Mapping[str, Any], content: bytes | None) -> None:
        if not self._ready:
            if not self._connection.poll(_START_TIMEOUT):
                raise WorkError(f"a process that decodes images did not start within {_START_TIMEOUT:g} s")
            try:
                self._connection.recv_bytes()
            except (EOFError, OSError):
                how = how_it_ended(self.end(_EXIT_TIMEOUT))
                raise WorkError(f"a process that decodes images did not start ({how}): see above") from None
            self._ready = True
        self._cpu_start = self._cpu_time()
        self._connection.send_bytes(json.dumps(request).encode())
        if content is not None:
            self._connection.send_bytes(content)

    def wait(self, seconds: float) -> bool:
        """Wait for a reply or the end of the process; return whether either came in time."""
        return self._connection.poll(seconds)

    def wait_cpu_time(self, seconds: float) -> bool:
        """As `wait`, but measured in CPU time of the process: a busy machine alone does not make an image slow."""
        if self.wait(seconds):
            return True
        deadline = time.monotonic() + (_WALL_FACTOR - 1) * seconds
        while (left := seconds - (self._cpu_time() - self._cpu_start)) > 0 and time.monotonic() < deadline:
            if self.wait(max(left, 0.01)):
                return True
        return False

    def _cpu_time(self) -> float:
        with contextlib.suppress(psutil.Error):
            times = self._psutil.cpu_times()
            return float(times.user + times.system)
        return math.inf  # the process has ended

    def receive(self) -> tuple[dict[str, Any], bytes]:
        return json.loads(self._connection.recv_bytes()), self._connection.recv_bytes()

    def lower_priority(self) -> None:
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)

    def end(self, grace: float = 0.0) -> int:
        """Return the exit code of the process, which is killed if it does not exit within `grace` seconds."""
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._connection.close()
        return self._process.wait()


def _without_path(message: str, source: Path | bytes) -> str:
    """Remove the absolute path that was sent from the start of a message."""
    return message.removeprefix(f"{os.path.abspath(source)}: ") if isinstance(source, Path) else message
