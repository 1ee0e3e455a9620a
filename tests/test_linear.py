"""Linear layers through oneDNN: the numbers of the plain layers, and only where nobody could tell."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import clca
from clca.linear import feed_forward, fuses, linear

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 6}


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 33)),
    outputs=st.integers(2, 40),
    bias=st.booleans(),
    gelu=st.booleans(),
    first=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_same_as_the_plain_layer(shape: tuple[int, int, int], outputs: int, bias: bool, gelu: bool, first: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[2], outputs, bias=bias)
    part = slice(min(first, outputs - 1), None)
    x = torch.randn(shape[0], shape[1] + 1, shape[2])[:, 1:]  # not contiguous
    expected = layer(x)[..., part]
    with torch.no_grad():
        result = linear(layer, x, part, gelu)
    # The terms are summed in another order.
    torch.testing.assert_close(result, F.gelu(expected) if gelu else expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_where_it_is_used() -> None:
    x = torch.randn(2, 3, 8)
    assert not fuses(x)  # a gradient may be wanted
    with torch.no_grad():
        assert fuses(x)
        assert not fuses(x.double())
        assert not fuses(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not fuses(x)
        with FlopCounterMode(display=False):
            assert not fuses(x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not fuses(x)
        torch.func.vmap(lambda row: pytest.fail("fused under vmap") if fuses(row) else row)(x)


def test_a_hook_still_sees_its_layer() -> None:
    mlp, x = Mlp(8, 16), torch.randn(2, 3, 8)
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    mlp.fc1.register_forward_hook(note("fc1"))
    mlp.act.register_forward_hook(note("act"))
    mlp.register_forward_pre_hook(note("mlp"))
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(mlp, x), mlp(x))
    assert sorted(seen) == sorted(["fc1", "act", "mlp"] * 2)


@pytest.mark.parametrize("act", [nn.GELU, nn.ReLU, nn.SiLU, lambda: nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm])
def test_other_activations_and_norms_hold(act: Any, norm: Any) -> None:
    mlp, x = Mlp(8, 16, act_layer=act, norm_layer=norm, drop=0.5).eval(), torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(mlp, x), mlp(x))


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_the_model_gives_the_same_with_and_without(reduction: str) -> None:
    torch.manual_seed(0)
    rate = 1.0 if reduction == "none" else 0.4
    model = clca.create_model("deit_tiny_patch16_224", **SIZES, num_classes=5, reduction=reduction, keep_rate=rate)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        fused = model.eval()(images)
        with torch.backends.mkldnn.flags(enabled=False):
            torch.testing.assert_close(fused, model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduction", ["none", "topk", "evit", "tome"])
def test_without_modules_and_reduction_it_is_timm_to_the_last_bit(reduction: str) -> None:
    import timm

    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_patch16_224", **SIZES, num_classes=5).eval()
    model = clca.reduce_tokens(vit, reduction=reduction, keep_rate=1.0, cla=False, clc=False, num_classes=None).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(images), vit(images))
