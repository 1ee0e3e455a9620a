"""A training step's products through oneDNN: the numbers of the plain layers, forwards and backwards."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import clca
from clca.kernels import dispatch, fused_block, onednn, tiled_attention
from clca.kernels.dispatch import use_onednn_in_training
from clca.kernels.linear import feed_forward, linear

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this torch has no oneDNN",
)
SIZES: dict[str, Any] = {"img_size": 48, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 6}


@pytest.fixture
def suited(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU for which it is meant, and for layers of any size: the arithmetic is there on every one."""
    monkeypatch.setattr(dispatch, "TRAIN_WITH_ONEDNN", True)
    monkeypatch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", True)
    monkeypatch.setattr(dispatch, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(dispatch, "MIN_QUERIES_BFLOAT16", 1)
    monkeypatch.setattr(dispatch, "MIN_QUERIES_FLOAT32", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran, in order."""
    ran: list[str] = []
    kinds: list[Any] = [
        onednn._Linear,
        onednn._FeedForward,
        tiled_attention._SeparateAttention,
        tiled_attention._PackedAttention,
    ]
    kinds += [fused_block._AttentionBranch, fused_block._Projection, fused_block._AttendFused, fused_block._Select]
    for kind in kinds:
        run = kind.apply

        def noted(*args: Any, run: Callable[..., Any] = run, name: str = kind.__name__) -> Any:
            ran.append(name)
            return run(*args)

        monkeypatch.setattr(kind, "apply", noted)
    return ran


def gradients(out: Tensor, of: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return list(torch.autograd.grad((out * weights).sum(), of))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 33)),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_linear_layer_both_ways(shape: tuple[int, int, int], outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape[0], shape[1] + 1, shape[2], requires_grad=True)
    layer = nn.Linear(shape[2], outputs, bias=bias)
    of = [x, *layer.parameters()]
    found = onednn.linear(x[:, 1:], layer.weight, layer.bias)  # not contiguous
    torch.testing.assert_close(found, layer(x[:, 1:]), atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients(found, of), gradients(layer(x[:, 1:]), of), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@given(
    rows=st.integers(1, 30),
    width=st.integers(1, 20),
    hidden=st.integers(1, 40),
    bias=st.booleans(),
    wide=st.sampled_from([1, 60, 10**6]),
)
@settings(max_examples=60, deadline=None)
def test_a_feed_forward_part_both_ways(rows: int, width: int, hidden: int, bias: bool, wide: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, rows, width, requires_grad=True)
    first, second = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
    of = [x, *first.parameters(), *second.parameters()]
    expected = second(F.gelu(first(x)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "MAX_HIDDEN", wide)
        found = onednn.feed_forward(x, first.weight, first.bias, second.weight, second.bias)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(gradients(found, of), gradients(expected, of), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frozen", range(5))
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    torch.manual_seed(0)
    values = [torch.randn(6, 4), torch.randn(8, 4), torch.randn(8), torch.randn(4, 8), torch.randn(4)]
    for number, value in enumerate(values):
        value.requires_grad_(number != frozen)
    of = [value for value in values if value.requires_grad]
    x, w1, b1, w2, b2 = values
    expected = gradients(F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2), of)
    for mine, theirs in zip(gradients(onednn.feed_forward(*values), of), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_second_operand_may_lie_anyhow() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 7), torch.randn(9, 14)[:, ::2]
    torch.testing.assert_close(onednn.matmul(a, b.mT), a @ b.mT)
    torch.testing.assert_close(onednn.matmul(a.mT.contiguous().mT, b.mT), a @ b.mT)


@given(
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    queries=st.integers(1, 30),
    keys=st.integers(1, 30),
    width=st.sampled_from([1, 8, 16]),
    piece=st.sampled_from([1, 14, 128, 10**6]),
    hidden=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_attention_in_pieces_both_ways(
    heads: tuple[int, int], queries: int, keys: int, width: int, piece: int, hidden: bool
) -> None:
    torch.manual_seed(0)
    batch, count = heads
    q = torch.randn(batch, queries, count, width).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(batch, keys, count, width).transpose(1, 2).requires_grad_() for _ in range(2))
    bias = None
    if hidden:  # sizes of ToMe and padding of ATS; the first key is never hidden
        bias = torch.rand(batch, 1, 1, keys).log().masked_fill(torch.rand(batch, 1, 1, keys) < 0.3, -torch.inf)
        bias[..., 0] = 0
    logits = q.double() @ k.double().mT / width**0.5
    expected = (logits if bias is None else logits + bias.double()).softmax(-1) @ v.double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "TILE_SIZE", piece)
        found = tiled_attention.attention(q, k, v, bias)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        of = [q, k, v]
        for mine, theirs in zip(gradients(found, of), gradients(expected, of), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [False, True])
def test_packed_it_is_the_same(hidden: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, 3, 4, 8).to(dtype).requires_grad_()
    bias = torch.rand(2, 1, 1, 9).log() if hidden else None
    apart = tiled_attention.attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), bias)
    packed = tiled_attention.packed_attention(qkv, bias)
    assert torch.equal(apart, packed)
    assert torch.equal(gradients(apart, [qkv])[0], gradients(packed, [qkv])[0])


@pytest.mark.usefixtures("suited")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("qk_norm", "attention_too"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_a_model_learns_the_same(
    reduction: str,
    qk_norm: bool,
    attention_too: bool,
    checkpointing: bool,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", attention_too)
    rate = 1.0 if reduction == "none" else 0.5
    model = clca.create_model(
        "deit_tiny_patch16_224", **SIZES, num_classes=5, reduction=reduction, keep_rate=rate, cla=False, qk_norm=qk_norm
    ).train()
    model.set_grad_checkpointing(checkpointing)
    images = torch.randn(2, 3, 48, 48)

    def answer() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)  # of DynamicViT's decisions
        logits = model(images)
        of = [parameter for parameter in model.parameters() if parameter.requires_grad]
        grads = torch.autograd.grad(logits.square().mean(), of, allow_unused=True)
        return logits, [torch.zeros_like(p) if g is None else g for p, g in zip(of, grads, strict=True)]

    logits, grads = answer()
    assert "_FeedForward" in calls
    fused = attention_too and not qk_norm
    assert "_Linear" in calls or fused
    assert ("_AttentionBranch" in calls) == fused
    assert ("_AttendFused" in calls) == (reduction == "evit" and fused)
    assert attention_too or not {"_SeparateAttention", "_PackedAttention"} & set(calls)
    del calls[:]
    monkeypatch.setattr(dispatch, "TRAIN_WITH_ONEDNN", False)
    monkeypatch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", False)
    expected, theirs = answer()
    assert not calls
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    largest = max(grad.abs().max().item() for grad in theirs)
    for mine, other in zip(grads, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4 * largest, rtol=1e-3)


@pytest.mark.usefixtures("suited")
def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 8)
    assert use_onednn_in_training(x)
    assert not use_onednn_in_training(x.double())
    assert not use_onednn_in_training(x.to("meta"))
    with torch.no_grad():
        assert not use_onednn_in_training(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not use_onednn_in_training(x)
    with FlopCounterMode(display=False):
        assert not use_onednn_in_training(x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not use_onednn_in_training(x)
    monkeypatch.setattr(dispatch, "TRAIN_WITH_ONEDNN", False)
    assert not use_onednn_in_training(x)


@pytest.mark.usefixtures("suited")
def test_what_is_no_plain_layer_stays_as_it_is(calls: list[str]) -> None:
    from timm.layers import Mlp

    x = torch.randn(2, 3, 8)
    plain, dropping, hooked = Mlp(8, 32), Mlp(8, 32, drop=0.5), Mlp(8, 32)
    hooked.fc2.register_full_backward_hook(lambda *_: None)
    feed_forward(plain, x)
    assert calls == ["_FeedForward"]
    feed_forward(dropping, x)
    feed_forward(hooked, x)
    linear(hooked.fc2, torch.randn(2, 3, 32))
    assert calls == ["_FeedForward"]
    feed_forward(dropping.eval(), x)
    assert calls == ["_FeedForward"] * 2


def test_small_layers_are_left_to_torch(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    monkeypatch.setattr(dispatch, "TRAIN_WITH_ONEDNN", True)
    layer = nn.Linear(64, 64)
    linear(layer, torch.randn(1, 8191, 64))
    assert not calls
    linear(layer, torch.randn(1, 8192, 64))
    assert calls == ["_Linear"]


@pytest.mark.usefixtures("suited")
def test_without_modules_and_reduction_it_trains_as_timm_to_the_last_bit(calls: list[str]) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_patch16_224", **SIZES, num_classes=5)
    images = torch.randn(3, 3, 48, 48)
    expected = vit(images)
    of = list(vit.parameters())
    theirs = gradients(expected, of)
    model = clca.reduce_tokens(vit, cla=False, clc=False, num_classes=None)
    logits = model(images)
    assert torch.equal(logits, expected)
    for mine, other in zip(gradients(logits, of), theirs, strict=True):
        assert torch.equal(mine, other)
    assert not calls
