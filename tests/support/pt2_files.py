"""A sound `.pt2` of a tiny model, and copies of it with one member changed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
