"""A tiny model with random weights behind an endpoint, images for it, and a real server in a thread."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

import clca
from clca.data.transforms import from_preprocess, preprocess_dict
from clca.serve import ServeSettings, create_app
from clca.serve.server import listen, make_server

CLASSES = ["alder", "birch", "cedar", "date", "elm"]

# A batch and one image alone take other paths through the matrix products, whose sums then round otherwise: some 1e-7
# of a probability. Answers to different images are further apart by orders of magnitude, which the tests check.
TOLERANCE = 1e-5


def tiny_model(reduction: str = "evit", keep_rate: float = 0.5, seed: int = 0) -> clca.TokenReducedViT:
    """Weights so large that different images get clearly different answers."""
    tiny = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
    model = clca.create_model(
        "vit_tiny_patch16_224", num_classes=5, img_size=32, reduction=reduction, keep_rate=keep_rate, **tiny
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=generator)
        model.get_classifier().weight.mul_(0.3)  # type: ignore[operator, union-attr]  (else nearly all are 0 or 1)
    model.classes, model.preprocess = CLASSES, preprocess_dict(32)
    return model.eval()


def photo(seed: int, size: tuple[int, int] = (40, 36), kind: str = "PNG") -> bytes:
    """Noise around a colour of its own, as a file."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (*size, 3)) + rng.integers(0, 170, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def alone(model: clca.TokenReducedViT, data: bytes, keep_rate: float | None = None) -> Tensor:
    """Probabilities [K] that a model gives to one image by itself, by the plain way."""
    assert model.preprocess is not None
    usual = model.keep_rate
    if keep_rate is not None:
        model.keep_rate = keep_rate
    try:
        with torch.inference_mode():
            image = Image.open(io.BytesIO(data)).convert("RGB")
            return model(from_preprocess(model.preprocess)(image)[None]).softmax(1)[0]
    finally:
        model.keep_rate = usual


def by_class(result: dict[str, Any]) -> Tensor:
    """Probabilities [K] in the order of `CLASSES`, of an answer that names all of them."""
    found = dict(zip(result["classes"], result["probabilities"], strict=True))
    return torch.tensor([found[name] for name in CLASSES])


def make_app(model: clca.TokenReducedViT | None = None, **settings: Any) -> FastAPI:
    return create_app({"tiny": model or tiny_model()}, ServeSettings(device="cpu", precision="no", **settings))


@contextmanager
def running(app: FastAPI) -> Iterator[tuple[str, Any]]:
    """A real server on a free port of this machine: its address, and the server; stopped at the end."""
    listening = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = make_server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
    finally:
        server.handle_exit(15)
        thread.join(30)
        assert not thread.is_alive()
        listening.close()
