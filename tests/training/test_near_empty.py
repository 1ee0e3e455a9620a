"""Training says so if photographs are nearly empty, on every start."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clca.training import TrainConfig
from clca.training.preflight import open_splits, verify_images

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]


@pytest.fixture
def images(tmp_path: Path, draw_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    return draw_images(tmp_path / "photos", classes=2, images=4)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("progress", [False, True])
def test_near_empty_photographs_are_counted_and_named(
    images: Path, make_config: Make, caplog: pytest.LogCaptureFixture, cache: bool, progress: bool
) -> None:
    config = make_config(data={"root": str(images)}, cache=cache)
    with caplog.at_level(logging.WARNING):
        verify_images(open_splits(config), progress=progress)
    assert not [line for line in caplog.messages if "nearly empty" in line]

    folder = images / "train" / "class0"
    twelve_bits = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    Image.fromarray(twelve_bits).save(folder / "camera.png")
    Image.new("RGB", (40, 40), "white").save(folder / "lid\x1b[31m.png")
    count = len(list((images / "train").rglob("*.*"))) + len(list((images / "val").rglob("*.*")))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            verify_images(open_splits(config), progress=progress)
        (line,) = [line for line in caplog.messages if "nearly empty" in line]
        assert line.startswith(f"2 of {count} images are nearly empty (almost all of their pixels are equal; clca data")
        assert str(folder / "camera.png") in line
        assert line.endswith(r"lid\x1b[31m.png") or r"lid\x1b[31m.png, " in line

    shutil.rmtree(images / "val")
    (folder / "camera.png").unlink()
