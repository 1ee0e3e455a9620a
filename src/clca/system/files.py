"""JSON files of ours as others may have left them: cut short, edited, somebody else's."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none, or no whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: nested without an end
        return None
    return content if isinstance(content, dict) else None


def objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """The objects in lines of a file that may still be growing: what is not whole is left out."""
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


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
