"""Linear layers through oneDNN: the numbers of the plain layers, and only where no observer would notice."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp, PatchEmbed
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import clca
from clca.kernels import prepack
from clca.kernels.dispatch import is_matmul_embedding, use_fused_linear
from clca.kernels.linear import embed_by_matmul, feed_forward, linear
from clca.kernels.prepack import prepacked

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 6}


def kept(model: nn.Module) -> list[int]:
    """How many layouts are kept of each weight of the model that is held open."""
    return [len(prepack._packs[weight].layouts) for weight in model.parameters() if weight in prepack._packs]


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
    assert not use_fused_linear(x)  # a gradient may be wanted
    with torch.no_grad():
        assert use_fused_linear(x)
        assert not use_fused_linear(x.double())
        assert not use_fused_linear(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert use_fused_linear(x) == use_fused_linear(x.bfloat16()) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
        with torch.autocast("cpu", torch.float16):
            assert not use_fused_linear(x)
        assert not use_fused_linear(x.bfloat16())  # a model cast as a whole: its weights are not float32
        with FlopCounterMode(display=False):
            assert not use_fused_linear(x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not use_fused_linear(x)
        torch.func.vmap(lambda row: pytest.fail("fused under vmap") if use_fused_linear(row) else row)(x)


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


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_under_autocast_it_rounds_as_the_plain_layer_does(bias: bool, gelu: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 40, bias=bias), torch.randn(2, 7, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result, plain = linear(layer, x, slice(8, None), gelu), layer(x)[..., 8:]
    assert result.dtype == plain.dtype == torch.bfloat16
    # Two steps of bfloat16 at most: sums in another order, and GELU of a sum that was not rounded before.
    torch.testing.assert_close(result, F.gelu(plain) if gelu else plain, atol=2**-8, rtol=2**-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_prepacked_weights_give_the_same(reduction: str, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    rate = 1.0 if reduction == "none" else 0.4
    model = clca.create_model("deit_tiny_patch16_224", **SIZES, num_classes=5, reduction=reduction, keep_rate=rate)
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        plain = model.eval()(images)
        with prepacked(model):
            # The same products in another order: a token near a tie may fall on the other side in bfloat16.
            torch.testing.assert_close(model(images), plain, atol=1e-5, rtol=1e-4 if precision.itemsize == 4 else 2e-2)
            torch.testing.assert_close(model(images), model(images), atol=0, rtol=0)
    assert not kept(model)


def test_changed_weights_are_laid_out_again() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 24), torch.randn(5, 16)

    def follows() -> None:
        with torch.no_grad():
            torch.testing.assert_close(linear(layer, x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)

    with prepacked(layer):
        follows()
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        layer(x).square().mean().backward()
        optimizer.step()
        follows()
        layer.load_state_dict(nn.Linear(16, 24).state_dict())
        follows()
        layer.weight.data = torch.randn(24, 16)  # as `Module.to` does
        follows()
        layer.weight = nn.Parameter(torch.randn(24, 16))
        follows()
        with torch.no_grad():
            layer.weight.mul_(2)
        follows()


@pytest.mark.skipif(not prepack.HAS_PREPACKING, reason="this torch has no oneDNN")
def test_weights_are_laid_out_once_and_let_go_at_the_end() -> None:
    layer, x = nn.Linear(16, 24), torch.randn(5, 16)
    twin = nn.Linear(16, 24)
    twin.weight = layer.weight
    with torch.no_grad(), prepacked(layer):
        for module in (layer, twin, layer):
            linear(module, x)
        assert kept(layer) == [1]
        with pytest.raises(ZeroDivisionError), prepacked(nn.Sequential(layer, twin)):
            raise ZeroDivisionError
        assert kept(layer) == [1]  # still held open by the first
        linear(layer, x, slice(8))
        assert kept(layer) == [2]
    assert not kept(layer)
    prepacked(layer).__enter__()  # never left, as by an endpoint
    with torch.no_grad():
        linear(layer, x)
    before = len(prepack._packs)
    del layer, twin, module
    gc.collect()
    assert len(prepack._packs) < before


@given(
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    norm=st.booleans(),
    order=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
@settings(max_examples=40, deadline=None)
def test_patches_by_a_product_are_those_of_the_convolution(
    patch: tuple[int, int], grid: tuple[int, int], batch: int, bias: bool, norm: bool, order: torch.memory_format
) -> None:
    torch.manual_seed(0)
    size = patch[0] * grid[0], patch[1] * grid[1]
    embed = PatchEmbed(size, patch, 3, 7, norm_layer=nn.LayerNorm if norm else None, bias=bias).double()  # type: ignore[arg-type]
    images = torch.randn(batch, 3, *size, dtype=torch.float64).contiguous(memory_format=order)
    assert is_matmul_embedding(embed, images)
    results = []
    for function in (embed, lambda x: embed_by_matmul(embed, x)):
        embed.zero_grad()
        result = function(images)
        result.square().sum().backward()
        results.append((result, embed.proj.weight.grad))
    torch.testing.assert_close(results[1], results[0])


def test_what_is_no_product_of_patches() -> None:
    embed, images = PatchEmbed(8, 4, 3, 6), torch.randn(1, 3, 8, 8)
    assert is_matmul_embedding(embed, images)
    assert not is_matmul_embedding(embed, images[..., :7])
    assert not is_matmul_embedding(PatchEmbed(8, 4, 3, 6, flatten=False), images)
    assert not is_matmul_embedding(nn.Sequential(embed), images)
    for changes in ({"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 3}):
        other = PatchEmbed(8, 4, 3, 6)
        other.proj = nn.Conv2d(3, 6, 4, **({"stride": 4} | changes))  # type: ignore[arg-type]
        assert not is_matmul_embedding(other, images), changes
    embed.proj.register_forward_hook(lambda *_: None)
    assert not is_matmul_embedding(embed, images)


def test_patches_by_a_product_compile_into_one_graph() -> None:
    embed, images = PatchEmbed(8, 4, 3, 6), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(
        lambda x: embed_by_matmul(embed, x) if is_matmul_embedding(embed, x) else None, backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(images), embed(images))
