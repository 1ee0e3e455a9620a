"""Attention in bfloat16 in pieces: exact to its rounding, and never all weights at once."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import clca
from clca.kernels import dispatch, tiled_attention
from clca.kernels.dispatch import use_tiled_attention
from clca.kernels.tiled_attention import attention

SIZES: dict[str, Any] = {"img_size": 48, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 6}


@pytest.fixture
def suited(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU for which it is meant: the arithmetic is there on every one."""
    monkeypatch.setattr(dispatch, "TILED_BFLOAT16", True)


def exact(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    logits = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    return (logits if bias is None else logits + bias.double()).softmax(-1) @ v.double()


def drawn(batch: int, heads: int, queries: int, keys: int, width: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    sizes = ((batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, width))
    return tuple(torch.randn(size).bfloat16().transpose(1, 2).requires_grad_() for size in sizes)


@given(
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    width=st.sampled_from([1, 8, 16]),
    piece=st.sampled_from([1, 7, 64, 300, 10**6]),
    hidden=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_as_exact_as_bfloat16_is(
    heads: tuple[int, int], queries: int, keys: int, width: int, piece: int, hidden: bool
) -> None:
    q, k, v = drawn(*heads, queries, keys, width)
    bias = None
    if hidden:  # sizes of ToMe and padding of ATS; the first key is never hidden
        bias = torch.rand(heads[0], 1, 1, keys).log().masked_fill(torch.rand(heads[0], 1, 1, keys) < 0.3, -torch.inf)
        bias[..., 0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "TILE_SIZE", piece)
        result = attention(q, k, v, bias)
    assert result.dtype == torch.bfloat16
    expected = exact(q, k, v, bias)
    # Scores and weights are rounded to 8 bits: of scores below 8, and values below 4, that is this much.
    torch.testing.assert_close(result.double(), expected, atol=0.08, rtol=0.05)
    assert (result - expected).square().mean().sqrt() < 0.02
    direction = torch.randn(result.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "TILE_SIZE", piece)
        found = torch.autograd.grad(result, (q, k, v), direction.bfloat16())
    for gradient, true in zip(found, torch.autograd.grad(expected, (q, k, v), direction), strict=True):
        assert (gradient.double() - true.double()).norm() <= 0.03 * true.double().norm() + 0.02


@pytest.mark.parametrize(("queries", "keys"), [(197, 197), (50, 300)])
def test_no_further_from_exact_than_the_fused_kernel(queries: int, keys: int) -> None:
    q, k, v = drawn(2, 3, queries, keys, 32)
    expected, direction = exact(q, k, v, None), torch.randn(2, 3, queries, 32)
    true = torch.autograd.grad(expected, (q, k, v), direction.double())
    errors = {}
    for name, compute in (("pieces", attention), ("fused", F.scaled_dot_product_attention)):
        result = compute(q, k, v)
        found = torch.autograd.grad(result, (q, k, v), direction.bfloat16())
        errors[name] = [
            ((a.double() - b.double()).norm() / b.double().norm()).item()
            for a, b in ((result, expected), *zip(found, true, strict=True))
        ]
    # The fused kernel keeps scores in float32; plain products under autocast, as published, round them as pieces do.
    assert all(mine <= 2.5 * theirs for mine, theirs in zip(errors["pieces"], errors["fused"], strict=True)), errors


def test_what_all_keys_have_in_common_costs_no_digits() -> None:
    q, k, v = (x.detach() for x in drawn(2, 3, 150, 150, 32))
    q, k = (q + 4).bfloat16().requires_grad_(), (k + 8).bfloat16().requires_grad_()
    v = v.requires_grad_()
    expected, direction = exact(q, k, v, None), torch.randn(2, 3, 150, 32)
    assert (q @ k.mT).abs().max() / 32**0.5 > 200  # scores that bfloat16 cannot tell apart
    result = attention(q, k, v)
    assert (result - expected).norm() < 0.01 * expected.norm()
    true = torch.autograd.grad(expected, (q, k, v), direction.double())
    for gradient, other in zip(torch.autograd.grad(result, (q, k, v), direction.bfloat16()), true, strict=True):
        assert (gradient.double() - other.double()).norm() < 0.02 * other.double().norm()


@pytest.mark.parametrize(("queries", "keys"), [(3136, 3136), (787, 787), (108, 108), (20, 5), (1, 3 * 10**6)])
def test_pieces_cover_all_and_stay_small(queries: int, keys: int) -> None:
    heads = 2 if queries * keys > 10**6 else 96
    q, k = torch.zeros(heads, queries, 1).bfloat16(), torch.zeros(heads, keys, 1).bfloat16()
    seen = torch.zeros(heads, queries, dtype=torch.long)
    for these, those, weights, buffer in tiled_attention._tiles(q, k, None):
        assert weights.untyped_storage().size() <= 2 * max(tiled_attention.TILE_SIZE, keys)
        assert buffer.shape == weights.shape == (these.stop - these.start, those.stop - those.start, keys)
        seen[these, those] += 1
    assert (seen == 1).all()


@pytest.mark.usefixtures("suited")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_a_model_answers_as_with_the_fused_kernel(
    reduction: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    rate = 1.0 if reduction == "none" else 0.6
    # Normalising over four images in training would multiply every rounding.
    settings: dict[str, Any] = {**SIZES, "num_classes": 5, "reduction": reduction, "keep_rate": rate}
    model = clca.create_model("deit_tiny_patch16_224", **settings, cla=not training)
    model.train(training)
    images = torch.randn(4, 3, 48, 48)

    def answer() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)  # of DynamicViT's decisions
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
            logits = model(images).float()
        if training:
            return logits, torch.autograd.grad(logits.square().mean(), model.cls_token)[0]
        return logits, logits

    calls: list[int] = []
    for kind in (tiled_attention._SeparateAttention, tiled_attention._PackedAttention):
        run = kind.apply
        monkeypatch.setattr(kind, "apply", lambda *args, run=run: calls.append(1) or run(*args))
    found = answer()
    assert calls
    monkeypatch.setattr(dispatch, "TILED_BFLOAT16", False)
    del calls[:]
    expected = answer()
    assert not calls
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.usefixtures("suited")
def test_where_it_is_used() -> None:
    x = torch.randn(2, 3, 40, 8)
    assert not use_tiled_attention(x, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert use_tiled_attention(x, 40)
        assert use_tiled_attention(x.bfloat16(), 40)
        assert not use_tiled_attention(x, 3)
        assert not use_tiled_attention(x.double(), 40)
        assert not use_tiled_attention(x.to("meta"), 40)
        with FlopCounterMode(display=False):
            assert not use_tiled_attention(x, 40)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not use_tiled_attention(x, 40)
    with torch.autocast("cpu", torch.float16):
        assert not use_tiled_attention(x, 40)


@pytest.mark.usefixtures("suited")
def test_without_modules_and_reduction_it_is_timm_to_the_last_bit() -> None:
    import timm

    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_patch16_224", **SIZES, num_classes=5).eval()
    model = clca.reduce_tokens(vit, cla=False, clc=False, num_classes=None).eval()
    images = torch.randn(3, 3, 48, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(images), vit(images))
