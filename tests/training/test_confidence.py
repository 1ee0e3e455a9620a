"""A finished run knows how far to trust its answers, if there were images to set that on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clca
from clca.data.transforms import from_preprocess
from clca.models.confidence import CONFIDENCE, read_by_head
from clca.training import TrainConfig, train
from clca.training.confidence import FALSE_ALARMS
from clca.training.progress import Display

Make = Callable[..., TrainConfig]
QUICK: dict[str, Any] = {"probe": "only", "probe_views": 1, "epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0}


class Lines(Display):
    """Collects what is logged."""

    lines: list[str]

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def photographs(draw_images: Callable[..., Path], tmp_path: Path) -> Path:
    return draw_images(tmp_path / "photographs", classes=3, images=8)


def logged(config: TrainConfig) -> tuple[Path, list[str]]:
    lines: list[str] = []
    display = type("Shown", (Lines,), {"lines": lines})
    return train(config, display=display).folder, lines


@pytest.mark.parametrize(
    ("model", "settings"),
    [({}, {}), ({"cla": False}, {"ema": 0.9}), ({"cla_head": "linear", "cla_average": True}, QUICK)],
    ids=["published", "base", "quick"],
)
def test_it_is_set_on_the_watched_images(
    make_config: Make, photographs: Path, model: dict[str, Any], settings: dict[str, Any]
) -> None:
    folder, lines = logged(make_config(model=model, data={"root": str(photographs)}, **settings))
    assert any("probabilities calibrated on 24 val images, temperature" in line for line in lines)
    loaded = clca.from_pretrained(folder)
    assert loaded.confidence is not None
    found = loaded.confidence.at(0.5)
    assert found is not None
    assert found.facts.scaled_loss <= found.facts.loss + 1e-6
    assert (found.facts.images, found.facts.false_alarms) == (24, FALSE_ALARMS)
    watched = clca.data.open(photographs, "val", transform=from_preprocess(loaded.preprocess))
    strange = torch.full((3, 3, 32, 32), 2.0)
    strange[1:] = 4 * torch.randn(2, 3, 1, 1)
    with torch.no_grad():
        known = found(read_by_head(loaded, loaded.forward_features(torch.stack([image for image, _ in watched]))))
        others = found(read_by_head(loaded, loaded.forward_features(strange)))
    assert (known > 1.001).sum() <= FALSE_ALARMS * 24
    assert others.min() > 1


def test_a_model_for_several_rates_has_one_at_each(make_config: Make, photographs: Path) -> None:
    model = {"keep_rates": (0.3, 0.6), "cla_head": "linear"}
    folder, lines = logged(make_config(model=model, data={"root": str(photographs)}, **QUICK))
    assert sum("probabilities calibrated" in line for line in lines) == 2
    confidences = clca.from_pretrained(folder).confidence
    assert confidences is not None
    assert [one.keep_rate for one in confidences.each] == [0.3, 0.6]
    assert confidences.at(0.4) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [({}, "fewer than 20 val images (18)"), ({"train_split": "train_val"}, "no val split is watched"),
     ({"train_split": "train_val", "val_split": "test"}, "no val split is watched")],
)  # fmt: skip
def test_without_images_to_set_it_on_there_is_none(make_config: Make, data: dict[str, Any], why: str) -> None:
    folder, lines = logged(make_config(data=data))
    assert lines[-1] == f"probabilities are not calibrated, and no image is called unfamiliar: {why}"
    assert not (folder / CONFIDENCE).exists()


def test_another_training_in_the_same_place_does_not_keep_the_old_one(make_config: Make, photographs: Path) -> None:
    folder, _ = logged(make_config(data={"root": str(photographs)}))
    (folder / "summary.json").unlink()
    (folder / "last.ckpt").unlink()
    before = (folder / CONFIDENCE).read_bytes()
    logged(make_config(data={"root": str(photographs)}))
    assert (folder / CONFIDENCE).read_bytes() == before  # the same run again, bit for bit
