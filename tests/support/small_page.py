"""A tiny trained run, the page of it on a free port, and a browser that looks at it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from clca.app import PageSettings
from clca.evaluation import evaluate
from clca.models.config import ModelConfig
from clca.serve import ServeSettings
from clca.serve.server import listen, make_server
from clca.training import DataConfig, TrainConfig, train

TINY = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
CLASSES = ["<b>alder", "birch", "cedar"]  # a name that would be HTML
RATES = (0.25, 0.5, 1.0)
SLOW = 60_000  # ms that a browser may take on a machine with more to do
expect.set_options(timeout=SLOW)


def draw(path: Path, label: int, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Noise whose darkest channel tells the class."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    pixels[..., label] //= 4
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_run(folder: Path) -> Path:
    """Train and evaluate a run of some steps, with photographs/ beside it."""
    photographs = folder / "photographs"
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(CLASSES):
            for image in range(4):
                draw(photographs / split / name / f"{image}.png", label, 100 * number + image)
    out = folder / "vines"
    model = ModelConfig(
        backbone="vit_tiny_patch16_224", img_size=32, reduction="evit", keep_rate=0.5, backbone_kwargs=TINY
    )
    train(
        TrainConfig(
            model=model, data=DataConfig(root=str(photographs)), out=out, epochs=3, batch_size=6, lr=1e-3, workers=0,
            device="cpu", precision="no", pretrained=False,
        )
    )  # fmt: skip
    for rate in RATES:
        evaluate(out, keep_rate=None if rate == 0.5 else rate, workers=0, device="cpu", precision="no")
    return out


@contextmanager
def page_of(runs: list[Path], page: PageSettings | None = None, **settings: Any) -> Iterator[str]:
    """Its address."""
    import threading

    from clca.app import create_app

    app = create_app(runs, ServeSettings(device="cpu", precision="no", local=True, **settings), page)
    listening, ready = listen("127.0.0.1", 0), threading.Event()
    server = make_server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.handle_exit(15)
        server.handle_exit(15)  # open pages hold a stream, which would be waited for
        thread.join(30)
        listening.close()


def chromium() -> str:
    """The browser of this machine; where there is none, a gate fails and a person is told."""
    found = os.environ.get("CLCA_CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        told = "no Chromium: apt-get install chromium, or set CLCA_CHROMIUM to its path"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found
