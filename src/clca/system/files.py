"""JSON files that may be truncated, edited, of another program, or made to exhaust memory."""

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clca.errors import ClcaError

MOST_BYTES = 4 * 2**20
"""Of a `config.json`, the header of a weights file, a line of metrics: names of 100,000 classes fit."""

_MOST_CONTAINERS = 200_000  # an empty list of two bytes takes 56 in memory
_DEEPEST = 64


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file that is not larger than expected.

    Raises:
        ClcaError: It is larger, or no regular file: a FIFO has no end that one could wait for, nor a device.
        OSError: It cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        kind = os.fstat(handle)
        if stat.S_ISDIR(kind.st_mode):
            raise ClcaError("is a folder")
        if not stat.S_ISREG(kind.st_mode):
            raise ClcaError("is no regular file")
        content = file.read(most + 1) if kind.st_size <= most else b""
    if len(content) > most or kind.st_size > most:
        raise ClcaError(f"is larger than {most / 2**20:g} MiB, which no such file is")
    return content


def parse_json(content: bytes) -> Any:
    """Parse JSON strictly: UTF-8, finite numbers, every name once, and at most 64 levels.

    Raises:
        ValueError: It is not such JSON.
    """
    if content.count(b"[") + content.count(b"{") > _MOST_CONTAINERS:
        raise ValueError(f"more than {_MOST_CONTAINERS} lists and objects")
    try:
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} deep") from None
    level, depth = [found], 0
    while level:
        level = [
            part
            for each in level
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, (dict, list))
        ]
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:60]!r} occurs twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _whole(text: str) -> int:
    """An integer that fits 64 bits: a longer one of up to 4,300 digits would overflow every float it is made into."""
    if len(text) > 20 or abs(value := int(text)) >= 2**64:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def read_json(path: Path, most: int = 4 * MOST_BYTES) -> dict[str, Any] | None:
    """The object in a file; None where there is none, no whole one, or one larger than `most` bytes."""
    try:
        content = parse_json(read_bounded(path, most))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """The objects in lines of a file that may still be growing: what is not whole is left out."""
    for line in lines:
        try:
            content = parse_json(line if isinstance(line, bytes) else line.encode())
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def file_objects(path: Path, most: int = 16 * MOST_BYTES) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a file, as `objects`; none where it cannot be read.

    Args:
        path: The file.
        most: Bytes of it that are read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return
        while most > 0 and (line := file.readline(min(most, MOST_BYTES))):
            most -= len(line)
            yield from objects([line])


def part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within an object; empty where there is none, or something else."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def as_utf8(content: Any) -> Any:
    """Texts, also those in lists and dictionaries, with what of a file's name is not UTF-8 as \\udcf1."""
    if isinstance(content, str):
        return content if content.isascii() else content.encode(errors="backslashreplace").decode()
    if isinstance(content, dict):
        return {as_utf8(name): as_utf8(value) for name, value in content.items()}
    return [as_utf8(value) for value in content] if isinstance(content, list) else content
