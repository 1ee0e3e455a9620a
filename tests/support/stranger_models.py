"""Tiny models in folders, to be changed by strangers; and what a child process does with them."""

import io
import json
import shutil
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import clca

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 4}
CLASSES = ["Merlot", "Pinot noir", "Riesling", "Syrah", "Tannat"]
PREPROCESS = {
    "img_size": 16, "resize": 18, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "square": True,
}  # fmt: skip


def tiny_model(**settings: Any) -> clca.TokenReducedViT:
    made = clca.create_model(
        "deit_tiny_patch16_224", **TINY | {"num_classes": 5, "reduction": "evit", "keep_rate": 0.5} | settings
    )
    made.classes, made.preprocess = list(CLASSES), dict(PREPROCESS)
    return made.eval()


@cache
def _saved() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tiny_model().save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def good_folder(folder: Path) -> Path:
    """A sound model folder, made once and copied."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _saved().items():
        (folder / name).write_bytes(content)
    return folder


def edited(folder: Path, **fields: Any) -> Path:
    """A model folder whose settings of the model are changed."""
    content = json.loads((good_folder(folder) / "config.json").read_text())
    content["model"] |= fields
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def with_kwargs(folder: Path, **kwargs: Any) -> Path:
    """A model folder whose settings of the backbone are changed."""
    content = json.loads((good_folder(folder) / "config.json").read_text())
    content["model"]["backbone_kwargs"] |= kwargs
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def with_top(folder: Path, **fields: Any) -> Path:
    """A model folder whose classes, preprocess or else are changed."""
    content = json.loads((good_folder(folder) / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def with_header(folder: Path, header: Any, data: bytes | None = None) -> Path:
    """A model folder whose weights have another header: a function of the old one, an object, or bytes."""
    file = good_folder(folder) / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if callable(header):
        found = json.loads(content[8 : 8 + length])
        header = header(found) or found
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + (content[8 + length :] if data is None else data))
    return folder


def load(folder: str) -> str:
    """Load a model folder; for a child process."""
    model = clca.from_pretrained(folder)
    return type(model).__name__


def load_and_run(folder: str) -> list[int]:
    """Load a model folder and run it once; for a child process."""
    import torch

    model = clca.from_pretrained(folder)
    side = model.patch_embed.img_size
    return list(model(torch.zeros(1, model.in_chans, *side)).shape)


def start_from(weights: str) -> str:
    """Make a model that starts from a file of weights; for a child process."""
    return type(tiny_model(weights=weights)).__name__


def load_published(weights: str) -> str:
    """Load a file in the published naming; for a child process."""
    return type(clca.load_published(tiny_model(), weights)).__name__


def photographs(folder: Path) -> Path:
    """Two photographs of each of two classes, as a folder to evaluate on or predict."""
    from PIL import Image

    for split in ("train", "val", "test"):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for copy in range(2):
                Image.new("RGB", (20, 20), (40 * number, 90 * copy, 100)).save(folder / split / name / f"{copy}.png")
    return folder


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(source, target)
    return target


def read_each(contents: list[bytes], suffix: str) -> list[str]:
    """Read weights files one after the other; for a child process.

    Returns:
        For each the message with which it was refused; "" for one that was read, and is no larger than its file.
    """
    from clca.models.weights import read_state_dict

    found = []
    for number, content in enumerate(contents):
        file = Path(f"{number}{suffix}")
        file.write_bytes(content)
        try:
            read = read_state_dict(file)
        except clca.ClcaError as refusal:
            found.append(str(refusal))
        else:
            assert sum(tensor.numel() for tensor in read.values()) <= len(content)
            found.append("")
    return found


def with_pickle(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """A file of torch.save with some bytes of its pickle replaced, and all checksums made to fit."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(made, "w") as target:
        for member in source.infolist():
            data = bytearray(source.read(member))
            if member.filename.endswith("data.pkl"):
                for place, found in changes:
                    place %= len(data)
                    data[place : place + len(found)] = found
            target.writestr(member.filename, bytes(data))
    return made.getvalue()
