"""Tiny images and a tiny model, so that a whole training run takes a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clca.models.config import ModelConfig
from clca.training import DataConfig, TrainConfig

TINY = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}


def draw(root: Path, classes: int, images: int, splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    """Noise whose darkest channel tells the class: learnt within a few steps."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)
                pixels[..., label % 3] //= 4 + 4 * (label // 3)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def draw_images() -> Callable[..., Path]:
    return draw


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), classes=3, images=6)


@pytest.fixture
def make_config(images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config of a run of a few steps; model= and data= take dicts, the rest goes to TrainConfig."""

    def make(**changes: Any) -> TrainConfig:
        model = {"backbone": "vit_tiny_patch16_224", "img_size": 32, "reduction": "evit", "keep_rate": 0.5}
        model |= {"backbone_kwargs": TINY, **changes.pop("model", {})}
        data = {"root": str(images), **changes.pop("data", {})}
        settings = {"epochs": 2, "batch_size": 6, "lr": 1e-3, "workers": 0, "precision": "no", "pretrained": False}
        settings |= {"out": tmp_path / "run", "device": "cpu", **changes}
        return TrainConfig(model=ModelConfig(**model), data=DataConfig(**data), **settings)

    return make
