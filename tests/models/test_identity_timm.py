"""With nothing switched on the model is timm's, to the bit, for every VisionTransformer family that timm ships."""

import sys
from typing import Any

import pytest
import timm
import torch
from timm.models import _registry
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import clca
from clca.errors import ClcaError

# One model a family, with what makes it small. `test_no_family_is_missing` holds this list to timm.list_models().
SMALL: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "depth": 3, "num_classes": 5}
FAMILIES: tuple[str, ...] = (
    "beit3_base_patch16_224",
    "deit3_base_patch16_224",
    "deit_base_distilled_patch16_224",
    "deit_base_patch16_224",
    "eva_large_patch14_196",
    "flexivit_base",
    "test_vit",
    "vit_base_mci_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg1_tipsv2",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_224_miil",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_plus_240",
    "vit_base_patch16_radio_v3",
    "vit_base_r26_s32_224",
    "vit_base_r50_s16_224",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg1_tipsv2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_giant_patch16_radio_v3",
    "vit_huge_patch16_radio_v4",
    "vit_intern300m_patch14_448",
    "vit_small_patch8_224",
)
# Where the stem sets the width.
WIDTHS = {"vit_base_mci_224": {"embed_dim": 768, "num_heads": 12}}
# A CLS token, but blocks whose attention and MLP do not follow one another: whole, or not at all.
PARALLEL = ("vit_base_patch16_18x2_224", "vit_base_patch16_xp_224")
# Settings that any family can be given.
VARIANTS: dict[str, dict[str, Any]] = {
    "average pool": {"global_pool": "avg"},
    "average of mean and maximum": {"global_pool": "avgmax"},
    "maximum, prefix included": {"global_pool": "max", "pool_include_prefix": True},
    "attention pool": {"global_pool": "map"},
    "no pool": {"global_pool": ""},
    "q/k norm": {"qk_norm": True},
    "norms inside": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no position table": {"pos_embed": "none"},
    "registers in the table": {"reg_tokens": 3},
    "no bias": {"qkv_bias": False, "proj_bias": False},
    "no final norm": {"final_norm": False},
    "no classifier": {"num_classes": 0},
    "pre-norm, LayerScale": {"pre_norm": True, "init_values": 0.1},
}
DROPPING = {f"{name}_rate": 0.3 for name in ("drop", "pos_drop", "patch_drop", "proj_drop", "attn_drop", "drop_path")}


def family(vit: nn.Module) -> tuple[Any, ...]:
    """What makes one VisionTransformer another architecture than the next, sizes aside."""
    block = vit.blocks[0]
    parts = [
        *(vit, block, vit.patch_embed, vit.norm_pre, vit.norm, vit.fc_norm, vit.attn_pool),
        *(getattr(block, name, None) for name in ("norm1", "attn", "ls1", "mlp")),
        *(getattr(getattr(block, "attn", None), name, None) for name in ("q_norm", "norm", "gate")),
        *(getattr(getattr(block, "mlp", None), name, None) for name in ("act", "norm")),
        getattr(vit.patch_embed, "norm", None),
    ]
    flags = (vit.num_prefix_tokens, vit.no_embed_class, vit.pos_embed is None, vit.global_pool, vit.dynamic_img_size)
    bias = getattr(getattr(getattr(block, "attn", None), "qkv", None), "bias", None) is not None
    return tuple(type(part).__name__ for part in parts), flags, bias


def small_vit(name: str, **kwargs: Any) -> VisionTransformer:
    """A small model of this family with random weights: timm's initial LayerScale would hide the blocks."""
    torch.manual_seed(0)
    with torch.device("meta"):
        patch_embed = timm.create_model(name, depth=1).patch_embed
    side = patch_embed.img_size[0] // patch_embed.grid_size[0]  # pixels a token, also behind a convolutional stem
    vit = timm.create_model(name, img_size=3 * side, **(SMALL | WIDTHS.get(name, {}) | kwargs))
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return vit


def as_clca(vit: VisionTransformer, reduction: str, **kwargs: Any) -> clca.TokenReducedViT:
    return clca.reduce_tokens(vit, num_classes=None, reduction=reduction, keep_rate=1.0, cla=False, clc=False, **kwargs)


def images_for(vit: VisionTransformer) -> torch.Tensor:
    return torch.randn(2, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_of_every_family(name: str) -> None:
    vit = small_vit(name)
    images = images_for(vit)
    for reduction in ("none", "topk", "evit", "tome"):
        model = as_clca(vit, reduction)
        for mode in (False, True):
            wanted = vit.train(mode)(images)
            assert torch.isfinite(wanted).all()
            assert torch.equal(model.train(mode)(images), wanted), f"{reduction}, training {mode}"
        assert torch.equal(model.eval().forward_features(images), vit.eval().forward_features(images))
        assert torch.equal(
            model.forward_head(model.forward_features(images), pre_logits=True),
            vit.forward_head(vit.forward_features(images), pre_logits=True),
        )


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize("variant", VARIANTS)
def test_identity_of_settings(variant: str) -> None:
    vit = small_vit("vit_tiny_patch16_224", **VARIANTS[variant])
    images = images_for(vit)
    for reduction in ("none", "topk", "evit", "tome"):
        model = as_clca(vit, reduction)
        for mode in (False, True):
            assert torch.equal(model.train(mode)(images), vit.train(mode)(images)), f"{reduction}, training {mode}"


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_identity_with_every_kind_of_dropout(name: str) -> None:
    """The same seed drops the same: random numbers are drawn in timm's order, and gradients are timm's as well."""
    vit = small_vit(name, **DROPPING).train()
    model = as_clca(vit, "none").train()
    images = images_for(vit)
    results = []
    for run in (vit, model):
        vit.zero_grad()
        torch.manual_seed(7)
        logits = run(images)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in vit.parameters())])
    for got, wanted in zip(results[1], results[0], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize("name", PARALLEL)
def test_blocks_that_cannot_be_opened(name: str) -> None:
    """Whole they run as timm's; what would act inside them is refused by name; what acts before them works."""
    vit = small_vit(name).eval()
    images = images_for(vit)
    assert torch.equal(as_clca(vit, "none").eval()(images), vit(images))
    for reduction in ("topk", "evit", "tome", "ats", "dynamicvit"):
        with pytest.raises(ClcaError) as refusal:
            clca.reduce_tokens(vit, num_classes=5, reduction=reduction, keep_rate=0.5)
        assert type(vit.blocks[0]).__name__ in str(refusal.value)
        assert reduction in str(refusal.value)
    for reduction in ("patchmerger", "sit", "dpcknn"):
        model = clca.reduce_tokens(vit, num_classes=5, reduction=reduction, keep_rate=0.5, locations=[1]).eval()
        assert model(images).shape == (2, 5)


@pytest.mark.parametrize("size", [48, 80])
def test_identity_at_another_image_size(size: int) -> None:
    """`img_size` resamples the position table as timm's own set_input_size does, and leaves the backbone as it was."""
    vit = small_vit("vit_tiny_patch16_224").eval()
    before = vit.pos_embed.detach().clone()
    model = as_clca(vit, "none", img_size=size).eval()
    assert torch.equal(vit.pos_embed, before)
    assert vit.patch_embed.img_size == (48, 48)
    logits = model(torch.ones(1, 3, size, size))
    vit.set_input_size(img_size=(size, size))
    assert torch.equal(logits, vit(torch.ones(1, 3, size, size)))


def vision_transformer_names() -> list[str]:
    """Every name of timm.list_models() whose module builds VisionTransformers."""
    modules = {
        module
        for module in _registry._model_to_module.values()
        if getattr(sys.modules.get(f"timm.models.{module}"), "VisionTransformer", None) is VisionTransformer
    }
    return [name for name in timm.list_models() if _registry._model_to_module[name] in modules]


def test_no_family_is_missing() -> None:
    """Every VisionTransformer of timm with a CLS token is of a family in the lists; one without is refused."""
    families: dict[tuple[Any, ...], str] = {}
    refused = 0
    with torch.device("meta"):
        for name in vision_transformer_names():
            vit = timm.create_model(name, depth=1)
            if not isinstance(vit, VisionTransformer):
                continue
            if vit.has_class_token:
                families.setdefault(family(vit), name)
            else:
                refused += 1
                with pytest.raises(ClcaError, match=r"CLS|class token"):
                    clca.reduce_tokens(vit, num_classes=5)
        covered = {family(timm.create_model(name, depth=1)) for name in (*FAMILIES, *PARALLEL)}
    assert refused > 20
    assert [name for key, name in families.items() if key not in covered] == []


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_siglip_224",
        "vit_medium_patch16_reg4_gap_256",
        "test_vit3",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_relpos_small_patch16_224",
        "vit_small_patch16_rope_224",
        "vit_small_patch16_dinov3",
        "resnet18",
        "convnext_atto",
        "mobilenetv3_small_050",
        "cait_xxs24_224",
        "xcit_nano_12_p16_224",
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ClcaError) as refusal:
        clca.create_model(name, num_classes=5)
    message = str(refusal.value)
    assert name in message
    assert "\n" not in message
    assert 20 < len(message) < 400


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ClcaError, match="vit_bse_patch16_224"):
        clca.create_model("vit_bse_patch16_224")
    with pytest.raises(ClcaError, match="evitt"):
        clca.create_model("deit_tiny_patch16_224", reduction="evitt")
