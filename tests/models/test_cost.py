"""Cost: the paper's table, and agreement with what a real forward pass does."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

import clca
from clca.models.cost import flop_counter

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 3, "depth": 6}
RATES = (1.0, 0.7, 0.5, 0.25, 0.1)
# METHOD section 6: ViT-B/16, 80 classes, GMACs an image.
TABLE = {
    (448, False): (78.49, 50.16, 38.20, 28.55, 24.79),
    (448, True): (79.48, 50.85, 38.76, 28.98, 25.17),
    (224, False): (17.56, 11.61, 8.82, 6.53, 5.63),
    (224, True): (18.36, 12.17, 9.32, 6.96, 5.96),
}


@pytest.fixture(scope="module", params=list(TABLE), ids=lambda key: f"{key[0]}-{'clca' if key[1] else 'plain'}")
def row(request: pytest.FixtureRequest) -> tuple[clca.TokenReducedViT, tuple[int, bool]]:
    size, clca_on = request.param
    with torch.device("meta"):
        model = clca.create_model(
            "vit_base_patch16_224", num_classes=80, img_size=size, reduction="evit", cla=clca_on, clc=clca_on
        )
    return model, request.param


def test_the_papers_table(row: tuple[clca.TokenReducedViT, tuple[int, bool]]) -> None:
    model, key = row
    for rate, expected in zip(RATES, TABLE[key], strict=True):
        model.keep_rate = rate
        measured = clca.cost(model)
        # Printed to two decimals: the last one may be rounded either way.
        assert measured.gmacs == pytest.approx(expected, rel=1e-3, abs=0.0051), (key, rate)
        assert measured.tokens_per_block == tuple(_evit_tokens(key[0], rate, key[1]))
        assert measured.params == sum(p.numel() for p in model.parameters())


def _evit_tokens(size: int, rate: float, cache: bool) -> list[int]:
    """Tokens that each of twelve blocks puts out, by METHOD sections 2 and 4."""
    n, cached, counts = 1 + (size // 16) ** 2 + cache, 0, []
    for block in range(12):
        if block in (3, 6, 9):
            kept = math.ceil(rate * (n - 1))
            n = n if kept == n - 1 else 1 + kept + 1
        counts.append(n)
        if cache:
            if block in (3, 6, 9, 10):
                n, cached = n + cached, 0
            if block < 10:
                cached += 2
    return counts


@pytest.mark.parametrize("reduction", clca.list_reductions())
@pytest.mark.parametrize("cla", [True, False])
def test_agrees_with_a_real_forward_pass(reduction: str, cla: bool) -> None:
    rate = 1.0 if reduction == "none" else 0.5
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction=reduction, keep_rate=rate, cla=cla, clc=cla)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), flop_counter() as counter:
        model.eval()(image)
    measured = clca.cost(model, images=image)
    assert measured.computed_gmacs == counter.get_total_flops() / 2 / 1e9 > 0
    model.economical = False
    with torch.no_grad(), flop_counter() as counter:
        model(image)
    assert measured.gmacs == counter.get_total_flops() / 2 / 1e9
    left_out = cla or reduction in ("topk", "evit", "ats")
    assert (measured.computed_gmacs < measured.gmacs) == left_out
    assert len(measured.tokens_per_block) == 6
    tokens = model.forward_trace(image)[1].tokens
    assert measured.tokens_per_block == tuple(float(t) for t in tokens)


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_dense_model_of_timm(name: str) -> None:
    vit = timm.create_model(name, **TINY, num_classes=7)
    vit.blocks[0].eval()
    image, modes = torch.randn(1, 3, 32, 32), [module.training for module in vit.modules()]
    measured = clca.cost(vit)
    assert [module.training for module in vit.modules()] == modes
    with torch.no_grad(), flop_counter() as counter:
        vit.eval()(image)
    assert measured.gmacs == measured.computed_gmacs == counter.get_total_flops() / 2 / 1e9 > 0
    assert measured.params == sum(p.numel() for p in vit.parameters())
    assert measured.tokens_per_block == (64.0 + vit.num_prefix_tokens,) * 6
    assert clca.cost(vit.to("meta")) == measured


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: timm.create_model("resnet18"), "resnet18 does not fit: it is a timm ResNet"),
        (lambda: timm.create_model("vit_base_patch16_siglip_224", depth=1), "no CLS token"),
        (lambda: nn.Linear(1, 1), "Linear does not fit: it is a Linear, and clca needs a VisionTransformer of timm"),
        (lambda: "vit_base_patch16_224", "str does not fit: it is a str, and clca needs a VisionTransformer of timm"),
    ],
)
def test_the_cost_of_another_model_is_refused(other: Callable[[], Any], words: str) -> None:
    with torch.device("meta"):
        model = other()
    with pytest.raises(clca.ClcaError, match=words) as refused:
        clca.cost(model)
    assert "\n" not in str(refused.value)


def test_a_cost_by_image_needs_weights() -> None:
    with torch.device("meta"):
        model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="ats", keep_rate=0.5)
    for images in None, torch.randn(2, 3, 32, 32):
        with pytest.raises(clca.ClcaError, match=r"what ats keeps depends on the image.*make the model on another"):
            clca.cost(model, images=images)


def test_fused_attention_on_a_cpu_is_counted() -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    with torch.no_grad(), flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert counter.get_total_flops() == 2 * (2 * 3) * (5 * 8 * 7 + 5 * 7 * 8)


def test_ats_is_averaged_over_the_images_given() -> None:
    torch.manual_seed(3)
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="ats", keep_rate=0.7)
    torch.nn.init.normal_(model.blocks[1].attn.qkv.weight, std=1.0)
    images = torch.randn(4, 3, 32, 32) * torch.tensor([0.01, 0.5, 2.0, 8.0]).view(4, 1, 1, 1)
    single = [clca.cost(model, images=image[None]) for image in images]
    together = clca.cost(model, images=images)
    assert len({c.tokens_per_block for c in single}) > 1
    assert together.gmacs == pytest.approx(sum(c.gmacs for c in single) / 4)
    for block, tokens in enumerate(together.tokens_per_block):
        assert tokens == pytest.approx(sum(c.tokens_per_block[block] for c in single) / 4)
    assert clca.cost(model) == clca.cost(model)  # noise without images, and the same noise


@pytest.mark.parametrize("reduction", ["evit", "ats", "dynamicvit"])
@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_and_the_generator_alone(reduction: str, training: bool) -> None:
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction=reduction, keep_rate=0.5).train(training)
    model.blocks[0].eval()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    clca.cost(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(v.device.type == "cpu" for v in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), random)


def test_other_image_sizes() -> None:
    fixed = clca.create_model("deit_tiny_patch16_224", **TINY)
    assert clca.cost(fixed, 32) == clca.cost(fixed)
    with pytest.raises(clca.ClcaError, match="64×64 pixels given to a model for 32×32"):
        clca.cost(fixed, 64)
    with pytest.raises(clca.ClcaError, match="no images"):
        clca.cost(fixed, images=torch.zeros(0, 3, 32, 32))
    dynamic = clca.create_model("deit_tiny_patch16_224", **TINY, dynamic_img_size=True)
    large = clca.create_model("deit_tiny_patch16_224", **(TINY | {"img_size": 64}))
    assert clca.cost(dynamic, 64).tokens_per_block == clca.cost(large).tokens_per_block
    assert clca.cost(dynamic, 64).gmacs == clca.cost(large).gmacs
    wide = clca.create_model("deit_tiny_patch16_224", **(TINY | {"img_size": (32, 64)}))
    assert clca.cost(dynamic, (32, 64)).tokens_per_block == clca.cost(wide).tokens_per_block
    with pytest.raises(clca.ClcaError, match="image size 33 is not a multiple of the patch size"):
        clca.cost(dynamic, (32, 33))


def test_cost_follows_the_keep_rate_and_the_type() -> None:
    model = clca.create_model("deit_tiny_patch16_224", **TINY, reduction="tome", keep_rate=1.0)
    dense = clca.cost(model).gmacs
    model.keep_rate = 0.25
    assert clca.cost(model).gmacs < dense
    assert clca.cost(model.bfloat16()).gmacs == clca.cost(model.float()).gmacs


@pytest.mark.parametrize("reduction", ["evit", "ats"])
def test_a_pool_whose_query_is_a_parameter(reduction: str) -> None:
    """Attention pooling hands its own parameter to a module, which the counter once took for a gradient to follow."""
    model = clca.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        reduction=reduction,
        keep_rate=0.5,
        cla=False,
        global_pool="map",
        embed_dim=32,
        depth=4,
        num_heads=2,
    )
    frozen = clca.cost(model.requires_grad_(False))
    assert clca.cost(model.requires_grad_(True)) == frozen
