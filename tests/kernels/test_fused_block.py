"""Halves of a block in one: the numbers of the plain block, forwards and backwards."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from clca.kernels import dispatch, fused_block, onednn, tiled_attention
from clca.models.block import attend_selected, attention_branch, mlp_branch, project
from clca.reductions.base import Selection, behind_prefix

pytestmark = pytest.mark.skipif(not onednn.HAS_ONEDNN, reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def suited() -> Iterator[None]:
    """As on a CPU for which it is meant, and for blocks of any size: the arithmetic is there on every one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "TRAIN_WITH_ONEDNN", True)
        patch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", True)
        patch.setattr(dispatch, "MIN_MULTIPLICATIONS", 0)
        patch.setattr(dispatch, "MIN_QUERIES_BFLOAT16", 1)
        patch.setattr(dispatch, "MIN_QUERIES_FLOAT32", 1)
        yield


def drawn_block(width: int = 12, heads: int = 3, **options: Any) -> Block:
    torch.manual_seed(0)
    block = Block(width, heads, **{"qkv_bias": True, **options})
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.train()


def plainly(run: Callable[[], Tensor]) -> Tensor:
    """What `run` gives by PyTorch's own layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "TRAIN_WITH_ONEDNN", False)
        patch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", False)
        return run()


def gradients(out: Tensor, of: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), of, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(of, found, strict=True)]


def assert_same(found: Tensor, expected: Tensor, of: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    theirs = gradients(expected, of)
    largest = max(grad.abs().max().item() for grad in theirs)
    for mine, other in zip(gradients(found, of), theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5 * max(1, largest), rtol=1e-3)


def key_bias_of(batch: int, tokens: int) -> Tensor:
    """Sizes of ToMe and padding of ATS; the first key is never hidden."""
    bias = torch.rand(batch, 1, 1, tokens).log().masked_fill(torch.rand(batch, 1, 1, tokens) < 0.3, -math.inf)
    bias[..., 0] = 0
    return bias


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20)),
    heads=st.sampled_from([1, 2, 3, 6]),
    biases=st.booleans(),
    scale=st.sampled_from([None, 0.5]),
    hidden=st.booleans(),
    piece=st.sampled_from([1, 30, 10**6]),
)
@settings(max_examples=60, deadline=None)
def test_attention_and_what_is_around_it(
    shape: tuple[int, int], heads: int, biases: bool, scale: float | None, hidden: bool, piece: int
) -> None:
    block = drawn_block(heads=heads, qkv_bias=biases, proj_bias=biases, init_values=scale)
    x = torch.randn(*shape, 12).requires_grad_()
    bias = key_bias_of(*shape) if hidden else None
    of = [x, *block.norm1.parameters(), *block.attn.parameters(), *block.ls1.parameters()]
    expected = plainly(lambda: attention_branch(block, x, bias)[0])
    assert dispatch.use_fused_attention_branch(block, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "TILE_SIZE", piece)
        assert_same(attention_branch(block, x, bias)[0], expected, of)
        with torch.no_grad():
            assert dispatch.use_fused_attention_branch(block.eval(), x)
            torch.testing.assert_close(attention_branch(block, x, bias)[0], expected, atol=2e-5, rtol=1e-4)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20)),
    biases=st.booleans(),
    scale=st.sampled_from([None, 0.5]),
    wide=st.sampled_from([1, 100, 10**6]),
)
@settings(max_examples=60, deadline=None)
def test_the_mlp_and_what_is_around_it(shape: tuple[int, int], biases: bool, scale: float | None, wide: int) -> None:
    block = drawn_block(proj_bias=biases, init_values=scale)
    x = torch.randn(*shape, 12).requires_grad_()
    of = [x, *block.norm2.parameters(), *block.mlp.parameters(), *block.ls2.parameters()]
    expected = plainly(lambda: mlp_branch(block, x))
    assert dispatch.use_fused_mlp_branch(block, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "MAX_HIDDEN", wide)
        patch.setattr(fused_block, "MAX_HIDDEN_IN_INFERENCE", wide)
        assert_same(mlp_branch(block, x), expected, of)
        with torch.no_grad():
            assert dispatch.use_fused_mlp_branch(block.eval(), x)
            torch.testing.assert_close(mlp_branch(block, x), expected, atol=2e-5, rtol=1e-4)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(3, 20),
    stay=st.integers(1, 18),
    biases=st.booleans(),
    hidden=st.booleans(),
    piece=st.sampled_from([1, 30, 10**6]),
    any_weights=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_tokens_fused_before_the_product_with_the_values(
    batch: int, tokens: int, stay: int, biases: bool, hidden: bool, piece: int, any_weights: bool
) -> None:
    block = drawn_block(qkv_bias=biases, proj_bias=biases)
    x = torch.randn(batch, tokens, 12).requires_grad_()
    bias = key_bias_of(batch, tokens) if hidden else None
    of = [x, *block.norm1.parameters(), *block.attn.parameters()]

    def answer() -> Tensor:
        projected = project(block, x, bias, frozenset({"cls_attention"}), every_query=True)
        scores = projected.evidence.cls_attention
        assert scores is not None
        scores = scores.mean(dim=1)[:, 1:]  # [B, N - 1]
        kept = scores.argsort(dim=1, descending=True, stable=True)[:, : min(stay, tokens - 2)]
        weights = scores if any_weights else scores.scatter(1, kept, 0.0)
        fused = nn.functional.pad(weights, (1, 0))
        return attend_selected(block, x, projected, Selection(behind_prefix(kept + 1, 1), fused), bias)

    expected = plainly(answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention, "TILE_SIZE", piece)
        assert_same(answer(), expected, of)
        with torch.no_grad():
            torch.testing.assert_close(answer(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_a_reduction_that_fuses_may_leave_it_for_once(grad: bool) -> None:
    block, x = drawn_block(), torch.randn(2, 9, 12)
    kept = torch.tensor([[0, 3, 5], [0, 7, 2]])

    def answer() -> Tensor:
        projected = project(block, x, None, frozenset(), every_query=True)
        return attend_selected(block, x, projected, Selection(kept))

    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(answer(), plainly(answer), atol=2e-5, rtol=1e-4)


def test_what_is_frozen_gets_no_gradient() -> None:
    block = drawn_block()
    x = torch.randn(2, 9, 12).requires_grad_()
    names = [name for name, _ in block.named_parameters()]
    for frozen in (["x"], names, *([name] for name in names)):
        x.requires_grad_("x" not in frozen)
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name not in frozen)
        of = [value for value in (x, *block.parameters()) if value.requires_grad]

        def both() -> Tensor:
            return mlp_branch(block, attention_branch(block, x)[0])

        assert_same(both(), plainly(both), of)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_stochastic_depth_drops_the_same_images(rate: float) -> None:
    block = drawn_block(drop_path=rate or 0.5)
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = rate  # type: ignore[assignment]
    x = torch.randn(4, 9, 12).requires_grad_()

    def both() -> Tensor:
        torch.manual_seed(1)
        return mlp_branch(block, attention_branch(block, x)[0])

    assert dispatch.use_fused_attention_branch(block, x)
    assert_same(both(), plainly(both), [x, *block.parameters()])


def test_large_scores_do_not_overflow() -> None:
    block = drawn_block()
    with torch.no_grad():
        block.attn.qkv.weight *= 40
    x = torch.randn(2, 15, 12).requires_grad_()
    expected = plainly(lambda: attention_branch(block, x)[0])
    found = attention_branch(block, x)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert all(grad.isfinite().all() for grad in gradients(found, [x, *block.attn.parameters()]))


def test_the_graph_can_be_walked_twice() -> None:
    block, x = drawn_block(), torch.randn(2, 9, 12).requires_grad_()
    loss = mlp_branch(block, attention_branch(block, x)[0]).square().sum()
    first, second = (torch.autograd.grad(loss, [x, *block.parameters()], retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def _with_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"qk_norm": True}, None),
        ({"attn_drop": 0.1}, None),
        ({"proj_drop": 0.1}, None),
        ({}, lambda block: _with_hook(block.attn)),
        ({}, lambda block: _with_hook(block.attn.qkv)),
        ({}, lambda block: block.double()),
    ],
)
def test_what_is_not_plain_is_left_alone(options: dict[str, Any], change: Callable[[Block], Any] | None) -> None:
    x = torch.randn(2, 9, 12)
    assert dispatch.use_fused_attention_branch(drawn_block(), x)
    block = drawn_block(**options)
    if change is not None:
        change(block)
    assert not dispatch.use_fused_attention_branch(block, x.to(block.norm1.weight.dtype))


def test_in_inference_only_where_no_image_is_dropped_and_in_float32() -> None:
    block, x = drawn_block(drop_path=0.5), torch.randn(2, 9, 12)
    with torch.no_grad():
        assert not dispatch.use_fused_attention_branch(block, x)
        assert not dispatch.use_fused_mlp_branch(block, x)
        block.eval()
        assert dispatch.use_fused_attention_branch(block, x)
        assert dispatch.use_fused_mlp_branch(block, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not dispatch.use_fused_attention_branch(block, x)
            assert not dispatch.use_fused_mlp_branch(block, x)


def test_where_products_are_no_faster_only_mlps_are_in_one_and_only_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "ONEDNN_TWICE_AS_FAST", False)
    block, x = drawn_block().eval(), torch.randn(2, 9, 12)
    assert dispatch.use_fused_mlp_branch(block, x)
    assert not dispatch.use_fused_attention_branch(block, x)
    assert not dispatch.use_tiled_attention(x, 9)
    with torch.no_grad():
        assert not dispatch.use_fused_mlp_branch(block, x)
        assert not dispatch.use_fused_attention_branch(block, x)


@pytest.mark.parametrize("norm", ["hooked", "without weights", "another"])
def test_a_norm_that_is_not_plain_is_called(norm: str) -> None:
    layer: Any = partial(nn.LayerNorm, elementwise_affine=norm != "without weights")
    block = drawn_block(norm_layer=nn.RMSNorm if norm == "another" else layer)
    called: list[str] = []
    if norm == "hooked":
        for one in (block.norm1, block.norm2):
            one.register_forward_hook(lambda *_: called.append("norm"))
    x = torch.randn(2, 9, 12).requires_grad_()

    def both() -> Tensor:
        return mlp_branch(block, attention_branch(block, x)[0])

    assert dispatch.use_fused_attention_branch(block, x)
    assert_same(both(), plainly(both), [x, *block.parameters()])
    with torch.no_grad():  # a few rows at a time it is not called
        assert not dispatch.use_fused_attention_branch(block, x)
        assert not dispatch.use_fused_mlp_branch(block, x)
    assert len(called) == (4 if norm == "hooked" else 0)
