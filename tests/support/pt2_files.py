"""Exported files, changed: copies of a `.pt2` with another member, and any file with other bytes."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clca.errors import ClcaError
from clca.export import load_exported

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
METADATA = "extra/metadata.json"


def members(path: Path) -> dict[str, bytes]:
    """The members of an archive, without the folder they are in."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of these members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(f"archive/{name}", value)
    return path


def changed(sound: Path, path: Path, member: str, change: Callable[[Any], Any]) -> Path:
    """A copy in which `change` has worked on the JSON of a member."""
    content = members(sound)
    value = json.loads(content[member])
    change(value)
    return write(path, content | {member: json.dumps(value).encode()})


def graph(program: dict[str, Any]) -> dict[str, Any]:
    """The graph of a program."""
    return program["graph_module"]["graph"]


def load_and_run(path: str) -> list[float]:
    """Load a file and compute two images; for a child process."""
    torch.set_num_threads(1)
    logits = load_exported(path, threads=1)(torch.zeros(2, 3, 32, 32))
    return logits.flatten().tolist()


def load_all(paths: list[str]) -> list[str]:
    """What becomes of each file: "loaded", or the refusal; for a child process."""
    found = []
    for path in paths:
        try:
            logits = load_and_run(path)
            found.append("loaded" if len(logits) == 14 else f"gave {len(logits)} logits")
        except ClcaError as error:
            found.append(f"ClcaError {error}")
    return found


def mutated(content: bytes, seed: int) -> bytes:
    """Bytes flipped, cut out, repeated or cut off."""
    rng = random.Random(seed)
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(raw))
        match rng.randrange(4):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at : at + rng.randrange(64)]
            case 2:
                raw[at:at] = raw[at : at + rng.randrange(64)]
            case _:
                raw = raw[: at + 1] if rng.random() < 0.2 else raw
    return bytes(raw)
