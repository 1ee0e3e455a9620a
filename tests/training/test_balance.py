"""Uneven classes: weights of images, draws that repeat the rare ones, and what decides on the weights kept."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from clca.training import TrainConfig, train
from clca.training.loaders import BatchPlan
from clca.training.logistic import fit_logistic
from clca.training.losses import class_weights, make_loss, watched_measure

Make = Callable[..., TrainConfig]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_every_class_counts_the_same_and_the_mean_is_one(labels: list[int]) -> None:
    each = class_weights(labels, 7)[labels]
    assert each.mean() == pytest.approx(1)
    sums = Counter[int]()
    for label, weight in zip(labels, each, strict=True):
        sums[label] += weight
    assert len({round(total, 9) for total in sums.values()}) == 1


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"mixup": 0.5}])
def test_the_loss_is_the_plain_formula(make_config: Make, settings: dict[str, Any]) -> None:
    labels = [0] * 8 + [1] * 2 + [2]
    loss, mix = make_loss(make_config(balance="loss", **settings), 3, labels)
    logits, truth = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 0, 1, 2, 2, 0])
    weight = torch.from_numpy(class_weights(labels, 3)).float()
    targets = F.one_hot(truth, 3).float()
    if mix is not None:
        targets = targets.lerp(targets.flip(0), 0.3)
        expected = -(targets * weight * logits.log_softmax(1)).sum(1).mean()
        assert loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
        return
    smoothed = targets * (1 - settings.get("label_smoothing", 0)) + settings.get("label_smoothing", 0) / 3
    expected = (weight[truth] * -(smoothed * logits.log_softmax(1)).sum(1)).mean()
    found = loss(logits, truth)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_even_classes_have_the_usual_loss(make_config: Make) -> None:
    logits, truth = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 2, 1])
    weighted, _ = make_loss(make_config(balance="loss"), 3, [0, 1, 2])
    plain, _ = make_loss(make_config(), 3, [0, 1, 2])
    assert weighted(logits, truth).item() == pytest.approx(plain(logits, truth).item(), rel=1e-6)


def test_the_sampler_draws_classes_equally_often() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    shares = torch.from_numpy(class_weights(labels.tolist(), 3)[labels]) / len(labels)
    plan = BatchPlan.create(1000, 10, 1, 1, seed=0, shares=shares)
    drawn = [int(labels[index]) for epoch in range(10) for index in plan.order(epoch)]
    assert len(drawn) == 10_000
    assert all(3000 < count < 3700 for count in Counter(drawn).values())
    assert plan.order(3) == plan.order(3) != plan.order(4)
    assert sorted(BatchPlan.create(1000, 10, 1, 1, seed=0).order(0)) == list(range(1000))


@pytest.mark.parametrize(
    ("watch", "labels", "measure"),
    [("auto", [0] * 6 + [1] * 2, "top1"), ("auto", [0] * 7 + [1] * 2, "macro"), ("auto", [0] * 9 + [2] * 3, "top1"),
     ("top1", [0] * 9 + [1], "top1"), ("macro", [0, 1], "macro"), ("loss", [0] * 9 + [1], "loss")],
)  # fmt: skip
def test_uneven_classes_are_judged_by_their_mean(
    make_config: Make, watch: str, labels: list[int], measure: str
) -> None:
    assert watched_measure(make_config(watch=watch), labels) == measure


def test_a_probe_with_weights_finds_the_rare_class() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([0] * 300 + [1] * 12)
    features = generator.normal(size=(312, 8)).astype(np.float32)
    features[labels == 1, 0] += 1.5
    recalls = []
    for weights in (None, class_weights(labels.tolist(), 2)[labels]):
        fit = fit_logistic(features, labels, 2, weights=weights)
        logits = (features - fit.mean) / fit.deviation @ fit.weight.T + fit.bias
        recalls.append(float((logits.argmax(1) == labels)[labels == 1].mean()))
    assert recalls[1] > 0.6 > recalls[0]


@pytest.fixture
def uneven(draw_images: Callable[..., Path], tmp_path: Path) -> Path:
    root = draw_images(tmp_path / "uneven", classes=3, images=8)
    for number in range(1, 8):
        (root / "train" / "class2" / f"{number}.png").unlink()
    return root


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["none", "loss", "sampler"])
@pytest.mark.parametrize("probe", ["none", "only"])
def test_runs_with_uneven_classes_finish_and_repeat(make_config: Make, uneven: Path, balance: str, probe: str) -> None:
    model = {"cla_head": "linear"} if probe == "only" else {}
    short = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0} if probe == "only" else {"epochs": 3}
    config = make_config(balance=balance, probe=probe, model=model, data={"root": str(uneven)}, **short)
    result = train(config, quiet=True)
    weights = (result.folder / "model.safetensors").read_bytes()
    if probe == "none":
        epochs = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        best = max(
            (line for line in epochs if "val" in line), key=lambda line: (line["val"]["macro"], -line["val"]["loss"])
        )
        assert result.kept_epoch == best["epoch"]
    shutil.rmtree(result.folder)
    train(config, quiet=True)
    assert (result.folder / "model.safetensors").read_bytes() == weights
