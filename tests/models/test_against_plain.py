"""The package against the plain reference, in double precision, for what no golden vector pins."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import published_gradient
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_models import BACKBONES, Pair, make_pair

REDUCTIONS = ("none", "topk", "evit", "dynamicvit", "ats", "tome", "patchmerger", "sit", "dpcknn")

# Each differs in one thing from the default: DeiT, 4x4 patches, 6 blocks, locations 1 3 4, CLA and CLC, one carrier.
SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {},
    "deit3": {"style": "deit3"},
    "clip": {"style": "clip"},
    "distilled": {"style": "distilled"},
    "distilled-own-head": {"style": "distilled", "cla": False},
    "distilled-bare": {"style": "distilled", "cla": False, "clc": False},
    "registers": {"style": "registers"},
    "registers-own-head": {"style": "registers", "cla": False},
    "registers-in-table": {"style": "registers_in_table", "num_clr": 2},
    "average-pool": {"style": "average", "cla": False},
    "average-pool-cla": {"style": "average"},
    "rates": {"keep_rate": (0.9, 0.4, 0.7)},
    "rates-bare": {"keep_rate": (0.9, 0.4, 0.7), "cla": False, "clc": False},
    "rate-one": {"keep_rate": 1.0},
    "rate-floor": {"keep_rate": 0.01},
    "rate-floor-bare": {"keep_rate": 0.01, "clc": False},
    "2x2": {"grid": 2},
    "2x2-floor": {"grid": 2, "keep_rate": 0.01},
    "2x2-floor-bare": {"grid": 2, "keep_rate": 0.01, "cla": False, "clc": False},
    "2x2-floor-distilled": {"grid": 2, "keep_rate": 0.01, "style": "distilled"},
    "2x2-four-carriers": {"grid": 2, "keep_rate": 0.01, "num_clr": 4, "locations": (0, 2, 4)},
    "no-carrier": {"num_clr": 0},
    "two-carriers": {"num_clr": 2},
    "four-carriers": {"num_clr": 4, "style": "registers"},
    "no-gap": {"clc_gap": False},
    "no-recovery-at-last": {"clc_recover_at_last": False},
    "two-carriers-no-gap-no-last": {"num_clr": 2, "clc_gap": False, "clc_recover_at_last": False},
    "location-0": {"locations": (0,)},
    "locations-0-1": {"locations": (0, 1)},
    "locations-1-2-5": {"locations": (1, 2, 5), "depth": 7},
    "every-block": {"locations": (0, 1, 2, 3, 4)},
    "at-L-2": {"locations": (2, 4)},
    "one-early": {"locations": (1,), "depth": 7},
    "cla-only": {"clc": False},
    "clc-only": {"cla": False},
    "bare": {"cla": False, "clc": False},
    "bare-last-block": {"cla": False, "clc": False, "locations": (2, 5)},
    "clc-last-block": {"cla": False, "locations": (2, 5)},
}


def scenario(reduction: str, name: str, **more: Any) -> Pair:
    settings = {"reduction": reduction, "keep_rate": 1.0 if reduction == "none" else 0.6} | SCENARIOS[name] | more
    if reduction == "none":
        settings["keep_rate"] = 1.0
    return make_pair(**settings)


def assert_same(pair: Pair) -> None:
    """Logits, tokens and owners of the package are those of the reference, for each image alone and for the batch."""
    with torch.no_grad():
        outcomes = pair.reference(pair.images)
        wanted = torch.stack([outcome.logits for outcome in outcomes])
        # The whole batch at once: ATS pads it.
        together = pair.model(pair.images)
        for image, outcome in zip(pair.images, outcomes, strict=True):
            logits, trace = pair.model.forward_trace(image[None])
            assert [int(torch.as_tensor(count).max()) for count in trace.tokens] == outcome.tokens
            assert [owner[0].tolist() for owner in trace.owner] == outcome.owner
            torch.testing.assert_close(logits[0], outcome.logits, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(together, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_tokens_and_owners(reduction: str, name: str) -> None:
    assert_same(scenario(reduction, name))


@pytest.mark.parametrize("name", ["default", "registers", "registers-in-table", "rates", "2x2-floor", "clc-only"])
@pytest.mark.parametrize("reduction", [name for name in REDUCTIONS if name != "dynamicvit"])
def test_gradients_of_every_parameter(reduction: str, name: str) -> None:
    """In training mode; DynamicViT trains in another way and has its own file."""
    pair = scenario(reduction, name, images=3)
    target = torch.tensor([0, 3, 5])
    for tensor in pair.reference.w.values():
        tensor.requires_grad_(tensor.is_floating_point())
    outcomes = pair.reference(pair.images, training=True)
    F.cross_entropy(torch.stack([outcome.logits for outcome in outcomes]), target).backward()
    F.cross_entropy(pair.model.train()(pair.images), target).backward()
    compared = 0
    for key, tensor in pair.reference.w.items():
        if tensor.grad is None or float(tensor.grad.abs().max()) < 1e-12:
            continue  # the 1000-class head that CLA does not use, running statistics, what a single cluster cannot move
        got = published_gradient(pair.model, pair.state, key)
        torch.testing.assert_close(got, tensor.grad, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
        compared += 1
    assert compared > 6 * 8  # every block's weights, at least


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Any settings that are allowed, on images from 2x2 patches, also such that are not square."""
    depth = draw(st.integers(2, 6))
    cla = draw(st.booleans())
    blocks = st.integers(0, depth - 2 if cla else depth - 1)
    locations = tuple(sorted(draw(st.sets(blocks, min_size=1, max_size=4))))
    rate = st.floats(0.01, 1.0)
    one_each = st.lists(rate, min_size=len(locations), max_size=len(locations)).map(tuple)
    reduction = draw(st.sampled_from(REDUCTIONS))
    return {
        "style": draw(st.sampled_from(sorted(BACKBONES))),
        "grid": (draw(st.integers(2, 5)), draw(st.integers(2, 5))),
        "depth": depth,
        "locations": locations,
        "cla": cla,
        "reduction": reduction,
        "keep_rate": 1.0 if reduction == "none" else draw(st.one_of(rate, one_each)),
        "clc": draw(st.booleans()),
        "num_clr": draw(st.integers(0, 4)),
        "clc_gap": draw(st.booleans()),
        "clc_recover_at_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_any_setting(case: dict[str, Any]) -> None:
    assume(not case["clc"] or case["num_clr"] or case["clc_gap"])
    assert_same(make_pair(**case))


@pytest.mark.parametrize("reduction", ["sit", "patchmerger", "tome", "dynamicvit"])
@pytest.mark.parametrize(("grid", "rate", "counts"), [(10, 0.7, [70, 48, 34]), (25, 0.6, [375, 225, 134])])
def test_static_counts_are_rounded_as_written(reduction: str, grid: int, rate: float, counts: list[int]) -> None:
    """k ** (j+1) first, then times P: 100 * 0.7 * 0.7 would keep 49, and 0.6 * 0.6 * 0.6 * 625 would keep 135."""
    settings = {"grid": grid, "keep_rate": rate, "locations": (0, 1, 2), "depth": 4, "clc": False, "images": 1}
    pair = make_pair(reduction=reduction, **settings)
    with torch.no_grad():
        _, trace = pair.model.forward_trace(pair.images)
    assert [tokens - 1 for tokens in trace.tokens[:3]] == counts
