"""Statistics of the head for several keep rates: stored, interpolated, and in use wherever the rate is set."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clca
from clca.benchmark.candidates import share_weights
from clca.models.rate_statistics import RateStatistics
from clca.models.token_reduced_vit import TokenReducedViT

RATES = (0.1, 0.4, 1.0)
HEADS = {"convolution": ("norm_in", "norm_out"), "linear": ("norm",)}


def make(head: str = "convolution", keep_rates: Any = RATES, **settings: Any) -> TokenReducedViT:
    return clca.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=4, num_classes=3,
        reduction="evit", cla_head=head, **({} if keep_rates is None else {"keep_rates": keep_rates}), **settings,
    )  # fmt: skip


def randomised(head: str = "convolution") -> TokenReducedViT:
    """A model in evaluation mode whose statistics differ from rate to rate."""
    torch.manual_seed(0)
    model = make(head)
    assert model.rate_statistics is not None
    for name, rows in model.rate_statistics.named_buffers():
        rows.normal_() if name.endswith("mean") else rows.uniform_(0.5, 2)
    return model.eval()


def used(model: TokenReducedViT) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.cla_head.named_buffers() if "running" in name}


def rows(model: TokenReducedViT, keep_rate: float) -> dict[str, torch.Tensor]:
    """The statistics of one of the rates, by the names of the head's buffers."""
    statistics: Any = model.rate_statistics
    found = {}
    for name in HEADS[model.config.cla_head]:
        for part in ("mean", "var"):
            found[f"{name}.running_{part}"] = getattr(statistics, f"{name}_{part}")[RATES.index(keep_rate)].clone()
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_setting_a_rate_gives_the_head_its_statistics(head: str) -> None:
    model = randomised(head)
    for rate in (1.0, 0.1, 0.4):
        model.keep_rate = rate
        assert_same(used(model), rows(model, rate))
    model.keep_rate = (0.4,) * len(model.locations)
    assert_same(used(model), rows(model, 0.4))


@pytest.mark.parametrize("head", HEADS)
def test_between_two_rates_they_are_interpolated_in_its_logarithm(head: str) -> None:
    model = randomised(head)
    model.keep_rate = 0.2  # half of the way from 0.1 to 0.4
    for name, value in used(model).items():
        torch.testing.assert_close(value, (rows(model, 0.1)[name] + rows(model, 0.4)[name]) / 2)
    model.keep_rate = rate = 0.7
    share = (math.log(rate) - math.log(0.4)) / (math.log(1.0) - math.log(0.4))
    for name, value in used(model).items():
        torch.testing.assert_close(value, (1 - share) * rows(model, 0.4)[name] + share * rows(model, 1.0)[name])


def test_beyond_the_rates_the_nearest_holds() -> None:
    model = randomised()
    model.keep_rate = 0.01
    assert_same(used(model), rows(model, 0.1))


def test_a_rate_for_each_location_counts_by_the_geometric_mean() -> None:
    model = randomised()
    model.keep_rate = (0.1, 0.4)
    several = used(model)
    model.keep_rate = 0.2
    for name, value in used(model).items():
        torch.testing.assert_close(several[name], value)


@pytest.mark.parametrize("head", HEADS)
def test_they_are_in_use_after_loading_and_copying(head: str, tmp_path: Path) -> None:
    model = randomised(head)
    model.keep_rate = 0.4
    loaded = make(head, keep_rate=1.0)
    loaded.load_state_dict(model.state_dict())
    assert_same(used(loaded), rows(model, 1.0))
    wrapped = nn.Sequential(make(head, keep_rate=1.0))
    wrapped.load_state_dict({f"0.{name}": value for name, value in model.state_dict().items()})
    assert_same(used(wrapped[0]), rows(model, 1.0))
    model.save_pretrained(tmp_path)
    stored = clca.from_pretrained(tmp_path)
    assert stored.keep_rate == 0.4
    assert_same(used(stored), rows(model, 0.4))
    x = torch.randn(2, 3, 32, 32)
    for copied in (stored, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for rate in (1.0, 0.2, 0.1):
            copied.keep_rate = model.keep_rate = rate
            torch.testing.assert_close(copied(x), model(x), rtol=0, atol=0)


def test_copies_that_share_weights_have_their_own_rate() -> None:
    model = randomised()
    copies = [share_weights(model, rate) for rate in RATES]
    for copied, rate in zip(copies, RATES, strict=True):
        assert copied.keep_rate == rate
        assert_same(used(copied), rows(model, rate))
        assert copied.blocks[0].attn.qkv.weight is model.blocks[0].attn.qkv.weight


@pytest.mark.parametrize("head", HEADS)
def test_a_training_step_updates_the_statistics_of_its_rate_alone(head: str) -> None:
    model, x = randomised(head).train(), torch.randn(4, 3, 32, 32)
    before = {rate: rows(model, rate) for rate in RATES}
    model.keep_rate = 0.4
    norm = getattr(model.cla_head, HEADS[head][0])
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    dims = [d for d in range(seen[0].ndim) if d != 1]
    name = f"{HEADS[head][0]}.running_mean"
    torch.testing.assert_close(rows(model, 0.4)[name], 0.9 * before[0.4][name] + 0.1 * seen[0].mean(dims))
    for rate in (0.1, 1.0):
        assert_same(rows(model, rate), before[rate])
    after = rows(model, 0.4)
    model.keep_rate = 0.6  # none of the rates: nothing is stored
    model(x)
    assert_same(rows(model, 0.4), after)
    assert_same(rows(model, 1.0), before[1.0])
    model.keep_rate = 0.4
    model.eval()
    assert_same(used(model), after)


def test_an_ordinary_model_and_one_without_aggregation_head_store_nothing_more() -> None:
    ordinary = make(keep_rates=None, keep_rate=0.4)
    assert ordinary.rate_statistics is None
    assert not [name for name in ordinary.state_dict() if "rate" in name]
    base = make(cla=False)
    assert base.rate_statistics is None
    assert base.state_dict().keys() == make(cla=False, keep_rates=None).state_dict().keys()


def test_a_model_starts_from_the_weights_of_an_ordinary_one_and_back(tmp_path: Path) -> None:
    ordinary, several = make(keep_rates=None, keep_rate=0.4), make()
    for number, (start, build) in enumerate([(ordinary, make), (several, lambda **s: make(keep_rates=None, **s))]):
        start.save_pretrained(tmp_path / str(number))
        made = build(weights=str(tmp_path / str(number) / "model.safetensors"))
        torch.testing.assert_close(made.cla_head.depthwise.weight, start.cla_head.depthwise.weight)


def test_rows_are_those_of_the_head() -> None:
    norm = nn.Module()
    norm.inner = nn.BatchNorm1d(5)
    norm.other = nn.LayerNorm(5)
    statistics = RateStatistics(RATES, norm)
    assert {name: tuple(value.shape) for name, value in statistics.state_dict().items()} == {
        "inner_mean": (3, 5), "inner_var": (3, 5)
    }  # fmt: skip


def test_a_compiled_model_keeps_its_statistics_apart() -> None:
    model, x = randomised().train(), torch.randn(4, 3, 32, 32)
    other = copy.deepcopy(model)
    other.compile(backend="eager")
    for each in (model, other):
        for rate in (1.0, 0.1, 0.4, 1.0):
            each.keep_rate = rate
            each(x)
        each.eval()
    for rate in RATES:
        model.keep_rate = other.keep_rate = rate
        for name, value in rows(model, rate).items():
            torch.testing.assert_close(rows(other, rate)[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other(x), model(x), rtol=1e-3, atol=1e-4)
