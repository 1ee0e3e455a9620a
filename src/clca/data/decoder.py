"""The program of a decoder process: it decodes images for its parent until the parent closes the connection.

A request is a JSON object and, unless it names a file, the content of one; the reply is a JSON object and pixels. The
parent, `clca.data.decoding`, accepts only JSON and bytes, since a malicious file may have taken over the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin, Image, ImageChops, ImageStat

from clca.data import heif_photos
from clca.data.image_formats import UnreadableImage
from clca.data.images import Decoded, decode, read_bytes
from clca.errors import ClcaError

THUMBNAIL = 32
"""Side of the thumbnail of an image, in pixels."""

NOTES = ("profile", "profile_problem", "left_out", "dark")
"""Attributes of `Decoded` that describe what was converted, ignored or left out."""

_DIFFERS = 12  # levels of any channel between a pixel and the median of the image
_LEAST_SHOWN = 0.002  # a scan with dust on it still counts as empty; a leaf or a grain covers more of the image

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Interpolations by their names in `clca.data.transforms`; the results are bit-identical."""

Reply = tuple[dict[str, Any], bytes]


def main() -> None:
    """Serve the connection given by `sys.argv`: file descriptor, limit of CPU seconds, limit of memory in bytes."""
    connection = Connection(int(sys.argv[1]))
    seconds, memory = float(sys.argv[2]), int(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM):  # a signal to the parent often goes to the whole group
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # Pillow's warnings about unusual files that it reads
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the parent sets how many images are decoded in parallel
    heif_photos.decoding_threads = 1
    _limit_memory(memory)
    _silence_libraries()
    with contextlib.suppress(EOFError, OSError):  # the parent closed it, or died
        connection.send_bytes(b"{}")
        while True:
            request = json.loads(connection.recv_bytes())
            content = None if "path" in request else connection.recv_bytes()
            # The default action of the signal, unlike a handler in Python, interrupts a decoder written in C.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            reply, pixels = _reply(request, content)
            signal.setitimer(signal.ITIMER_PROF, 0)
            content = None
            connection.send_bytes(json.dumps(reply).encode())
            connection.send_bytes(pixels)


def _limit_memory(memory: int) -> None:
    """Limit this process to `memory` bytes beyond what it has allocated; does nothing on systems other than Linux."""
    if sys.platform != "linux":
        return
    import resource

    allocated = Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]
    limit = int(allocated) * 1024 + memory
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _silence_libraries() -> None:
    """Discard what C libraries write to stderr; errors of Python are still printed."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _reply(request: Mapping[str, Any], content: bytes | None) -> Reply:
    try:
        data = read_bytes(Path(request["path"])) if content is None else content
        decoded = decode(data, request["max_pixels"])
        del data
        return _OPERATIONS[request["operation"]](decoded, request)
    except UnreadableImage as error:
        return {"error": str(error), "code": error.code}, b""
    except ClcaError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": "not enough memory to decode it: make it smaller", "code": "damaged"}, b""


def _pixels(decoded: Decoded, request: Mapping[str, Any]) -> Reply:
    image = decoded.image
    if request.get("resize"):
        side, interpolation = request["resize"]
        image = image.resize((side, side), RESAMPLING[interpolation])
    return {"size": image.size, "kind": decoded.kind}, image.tobytes()


def _inspect(decoded: Decoded, request: Mapping[str, Any]) -> Reply:
    reply, _ = _verify(decoded, request)
    notes = {name: getattr(decoded, name) for name in NOTES}
    return {**reply, **notes}, thumbnail_of(decoded.image).tobytes()


def _verify(decoded: Decoded, request: Mapping[str, Any]) -> Reply:
    image = decoded.image
    return {"size": image.size, "kind": decoded.kind, "near_empty": is_near_empty(image)}, b""


def thumbnail_of(image: Image.Image) -> Image.Image:
    """The thumbnail by which duplicates are found.

    Bilinear: its weights, unlike those of a box, do not change by leaps with the size of the image.
    """
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)


def is_near_empty(image: Image.Image) -> bool:
    """Return whether almost all pixels have the median colour."""
    fine = image.resize((128, 128), Image.Resampling.BOX)
    median = Image.new("RGB", fine.size, tuple(ImageStat.Stat(fine).median))
    red, green, blue = ImageChops.difference(fine, median).split()
    levels = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()
    return sum(levels[_DIFFERS + 1 :]) < _LEAST_SHOWN * 128 * 128


_OPERATIONS: dict[str, Callable[[Decoded, Mapping[str, Any]], Reply]] = {
    "pixels": _pixels,
    "inspect": _inspect,
    "verify": _verify,
}
