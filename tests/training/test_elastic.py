"""Training one model for several keep rates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clca
from clca.evaluation import evaluate
from clca.models.config import ModelConfig
from clca.models.token_reduced_vit import TokenReducedViT
from clca.training import TrainConfig, resume, train, trainer
from clca.training.config import default_run_folder, identity
from clca.training.elastic import training_costs
from clca.training.rate_sets import rate_sets

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]
RATES = (0.1, 0.3, 1.0)
FREE = sorted(set(clca.list_reductions()) - {"none", "sit", "patchmerger"})
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}


def elastic(make: Make, model: dict[str, Any] | None = None, **settings: Any) -> TrainConfig:
    config = make(model=model or {}, **settings)
    fields = config.model.model_dump(exclude={"keep_rate"}) | {"keep_rates": RATES}
    return config.model_copy(update={"model": ModelConfig(**fields)})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in found]


@pytest.mark.parametrize("reduction", FREE)
def test_a_step_costs_at_most_twice_that_of_its_largest_rate(reduction: str) -> None:
    rates = ModelConfig(backbone="-", reduction=reduction, keep_rates="0.05..1").keep_rates
    config = ModelConfig(
        backbone="vit_tiny_patch16_224", img_size=64, reduction=reduction, keep_rates=rates, backbone_kwargs=SMALL
    )
    costs = training_costs(config)
    assert tuple(costs) == rates
    for drawn in rate_sets(costs):
        assert sum(costs[rate] for rate in drawn) <= 2 * costs[1.0] * (1 + 1e-9)
    if reduction == "dynamicvit":
        assert len(set(costs.values())) == 1  # it masks tokens in training


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        *[({"reduction": reduction}, {}) for reduction in FREE],
        ({"cla_head": "linear"}, {"grad_accum": 3, "ema": 0.9}),
        ({"cla": False}, {"mixup": 0.8, "clip_grad": 1.0}),
        ({"clc": False}, {"precision": "bf16", "grad_checkpointing": True, "freeze_backbone": True}),
    ],
    ids=[*FREE, "linear", "base", "bf16"],
)
def test_interrupted_anywhere_it_ends_as_if_it_had_not_been(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], settings: dict[str, Any]
) -> None:
    whole = train(elastic(make_config, model, out=tmp_path / "whole", **settings), quiet=True)
    one_step = trainer._Trainer._one_step

    def stopping(self: Any, batches: Any) -> bool:
        return one_step(self, batches) or self.progress.step == self.state.saved_step + 2

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_one_step", stopping)
        with pytest.raises(trainer.Interrupted):
            train(elastic(make_config, model, **settings), quiet=True)
        with pytest.raises(trainer.Interrupted):
            resume(tmp_path / "run", quiet=True)
    result = resume(tmp_path / "run", quiet=True)
    found, expected = weights(result.folder), weights(whole.folder)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert lines(result.folder) == lines(whole.folder)
    assert (result.train, result.watched) == (whole.train, whole.watched)


def test_each_rate_is_scored_and_the_run_by_their_mean(make_config: Make) -> None:
    result = train(elastic(make_config), quiet=True)
    epochs = [line for line in lines(result.folder) if "train" in line]
    for line in epochs:
        assert list(line["rates"]) == ["0.1", "0.3", "1"]
        for name in ("loss", "top1", "top5", "macro"):
            assert line["val"][name] == pytest.approx(sum(each[name] for each in line["rates"].values()) / 3)
    assert result.watched == epochs[result.kept_epoch - 1]["val"]
    for rate, numbers in epochs[result.kept_epoch - 1]["rates"].items():
        found = evaluate(result.folder, split="val", keep_rate=float(rate), workers=0, device="cpu", precision="no")
        assert found.top1 == pytest.approx(numbers["top1"])
        assert found.loss == pytest.approx(numbers["loss"], rel=1e-3)


def test_a_step_has_the_gradient_of_labels_and_of_the_largest_rates_predictions(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, torch.Tensor]] = []
    forward = TokenReducedViT.forward

    def recorded(self: TokenReducedViT, x: torch.Tensor) -> torch.Tensor:
        logits = forward(self, x)
        if self.training:
            seen.append((self.keep_rate, logits.detach()))
        return logits

    monkeypatch.setattr(TokenReducedViT, "forward", recorded)
    labels: list[torch.Tensor] = []
    from clca.training.elastic import ElasticStep

    step = ElasticStep.forward_backward

    def kept(self: ElasticStep, number: int, images: Any, own: torch.Tensor, targets: Any) -> Any:
        labels.append(own)
        return step(self, number, images, own, targets)

    monkeypatch.setattr(ElasticStep, "forward_backward", kept)
    result = train(elastic(make_config, epochs=1, data={"val_split": "none"}), quiet=True)
    steps = [line for line in lines(result.folder) if "loss" in line]
    cross_entropy = torch.nn.functional.cross_entropy
    for line, own in zip(steps, labels, strict=True):
        drawn = [seen.pop(0)]
        while seen and seen[0][0] != 1.0:
            drawn.append(seen.pop(0))
        assert drawn[0][0] == 1.0
        assert len(drawn) > 1
        teacher = drawn[0][1].softmax(1)
        losses = [cross_entropy(drawn[0][1], own)]
        losses += [(cross_entropy(x, own) + cross_entropy(x, teacher)) / 2 for _, x in drawn[1:]]
        assert line["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_it_learns_at_every_rate_and_each_has_its_own_statistics(make_config: Make, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 20, "lr": 3e-3, "data": {"val_split": "none"}}
    several = train(elastic(make_config, out=tmp_path / "several", **settings), quiet=True)
    ordinary = train(make_config(model={"keep_rate": 0.1}, out=tmp_path / "ordinary", **settings), quiet=True)
    gaps = {}
    for result in (several, ordinary):
        scores = {}
        for rate in (0.1, 1.0):
            found = evaluate(result.folder, split="train", keep_rate=rate, workers=0, device="cpu", precision="no")
            scores[rate] = found.top1
            gaps[result.folder.name, rate] = _gap(result.folder, rate)
        if result is several:
            assert min(scores.values()) > 0.8  # of three classes
    assert gaps["several", 1.0] < gaps["ordinary", 1.0] / 2
    assert gaps["several", 0.1] < 2 * gaps["ordinary", 0.1] + 0.1


def _gap(folder: Path, keep_rate: float) -> float:
    """How far the mean of the head's input in its own standard deviations is from 0 on noise, at a keep rate."""
    model = clca.from_pretrained(folder)
    model.keep_rate = keep_rate
    config = json.loads((folder / "config.json").read_text())["train"]
    transform = clca.data.transforms.from_preprocess(model.preprocess)
    images = clca.data.open(config["data"]["root"], "train", transform=transform)
    with torch.no_grad():
        tokens = model.forward_features(torch.stack([image for image, _ in images]))
        normed = model.cla_head.norm_in(tokens.transpose(1, 2))
        scale, shift = model.cla_head.norm_in.weight[:, None], model.cla_head.norm_in.bias[:, None]
        return float(((normed - shift) / scale).mean((0, 2)).abs().mean())


def test_a_run_of_earlier_versions_keeps_its_identity(make_config: Make) -> None:
    assert "model.keep_rates" not in identity(make_config())
    config = elastic(make_config, out=None)
    assert identity(config)["model.keep_rates"] == list(RATES)
    assert "-0.1-0.3-1-s0-" in default_run_folder(config).name


def test_a_rate_in_use_that_is_not_trained_for_is_refused(make_config: Make) -> None:
    fields = elastic(make_config).model_dump()
    fields["model"]["keep_rate"] = 0.05
    with pytest.raises(ValueError, match=r"keep_rate: 0.05 is outside of the keep_rates .* 0.1 to 1"):
        TrainConfig.model_validate(fields)
