"""Small models of every kind that this library exports: each backbone style, reduction, head, pool and keep rate."""

from __future__ import annotations

from typing import Any

import torch

import clca
from clca.models.confidence import Confidence, Confidences, read_by_head
from clca.reductions.registry import SHIPPED
from clca.training.confidence import fit_confidence

SIZE, CLASSES = 32, 7
_NARROW: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2}
_BLOCKS = {"embed_dim": 24, "num_heads": 3, "depth": 2}

# timm name and further arguments: one for each kind of layer in the timm models that `check_fits` accepts.
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", _NARROW),
    "deit3": ("deit3_small_patch16_224", _NARROW),  # LayerScale, position table without CLS
    "distilled": ("deit_tiny_distilled_patch16_224", _NARROW),
    "clip": ("vit_base_patch16_clip_224", _NARROW),  # norm before the blocks
    "quickgelu": ("vit_base_patch16_clip_quickgelu_224", _NARROW),
    "registers": ("vit_small_patch14_reg4_dinov2", _NARROW),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", _NARROW),
    "qk_norm": ("vit_tiny_patch16_224", {**_NARROW, "qk_norm": True, "global_pool": "avg", "init_values": 0.1}),
    "beit3": ("beit3_base_patch16_224", _NARROW),
    "test_vit": ("test_vit", {**_NARROW, "act_layer": "gelu_tanh"}),
    "rms": ("vit_tiny_patch16_224", {**_NARROW, "norm_layer": "rmsnorm", "act_layer": "silu"}),
    "one_channel": ("vit_tiny_patch16_224", {**_NARROW, "act_layer": "relu", "in_chans": 1}),
    # Their embeddings or blocks take no narrow settings, or their blocks no reduction.
    "parallel": ("vit_small_patch16_18x2_224", _NARROW),
    "parallel_scaling": ("vit_base_patch16_xp_224", _NARROW),
    "conv_stem": ("vit_base_mci_224", {"depth": 1}),
    "hybrid_resnetv2": ("vit_tiny_r_s16_p8_224", _BLOCKS),
    "hybrid_resnet": ("vit_small_resnet26d_224", {**_BLOCKS, "img_size": 224}),
}
_ALONE = ("parallel", "parallel_scaling", "conv_stem", "hybrid_resnetv2", "hybrid_resnet")
_BASE: dict[str, Any] = {"cla": False, "clc": False}
_ONCE: dict[str, Any] = {"keep_rate": 0.5, "locations": [0]}
_TWICE: dict[str, Any] = {"keep_rate": 0.5, "locations": [0, 1], "depth": 3}

# The style that each reduction is exported with.
_STYLE_OF = {
    "ats": "deit3",
    "dpcknn": "distilled",
    "dynamicvit": "clip",
    "evit": "quickgelu",
    "patchmerger": "registers",
    "sit": "swiglu",
    "tome": "qk_norm",
    "topk": "beit3",
}


def _kinds() -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {"none": {}}
    for name in SHIPPED:
        placed = _TWICE if name in ("evit", "ats", "tome") else _ONCE
        kinds[name] = {"reduction": name, "style": _STYLE_OF[name], **placed}
    kinds["linear head"] = {"cla_head": "linear", "cla_average": True, "reduction": "topk", **_ONCE}
    kinds["linear head"] |= {"confidence": True}
    kinds["evit, base"] = {"reduction": "evit", **_BASE, **_ONCE}
    for style in _ALONE:
        kinds[style] = {"style": style, **_BASE}
    kinds["test_vit"] = {"style": "test_vit"}
    kinds["rms"] = {"style": "rms", "reduction": "tome", "keep_rate": [0.7, 0.4], "locations": [0, 1], "depth": 3}
    kinds["one_channel"] = {"style": "one_channel", "reduction": "sit", "keep_rate": 1.0, "locations": [0]}
    for pool in ("avg", "avgmax", "map"):
        kinds[f"pool {pool} of padded tokens"] = {"global_pool": pool, "reduction": "ats", "cla": False, **_ONCE}
    kinds["pool map"] = {"global_pool": "map", "reduction": "topk", "cla": False, "img_size": (32, 48), **_ONCE}
    kinds["pool max, three carriers"] = {"global_pool": "max", "num_clr": 3, "cla": False}
    kinds["no carriers"] = {"num_clr": 0, "cla_width": 3, "reduction": "dpcknn", **_ONCE}
    kinds["carriers not averaged"] = {"clc_gap": False, "clc_recover_at_last": False, "reduction": "ats", **_ONCE}
    return kinds


KINDS = _kinds()
INT8 = ("evit", "sit", "hybrid_resnetv2")
"""Kinds that are exported in int8 too: all have the same linear layers."""


def build(
    style: str = "deit", img_size: int | tuple[int, int] = SIZE, confidence: bool = False, **settings: Any
) -> clca.TokenReducedViT:
    """The model of one of `KINDS`, with classes."""
    backbone, extra = STYLES[style]
    model = clca.create_model(backbone, **{"img_size": img_size, **extra, "num_classes": CLASSES, **settings})
    model.classes = [f"class {number}" for number in range(CLASSES)]
    uneven(model).eval()
    if confidence:
        model.confidence = Confidences([calibrated(model)])
    return model


def calibrated(model: clca.TokenReducedViT) -> Confidence:
    """A confidence of a model, set on noise."""
    images = torch.randn(60, model.in_chans, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % model.num_classes
    with torch.no_grad():
        features = model.forward_features(images)
        tokens, logits = read_by_head(model, features), model.forward_head(features)
    return fit_confidence(
        model, model.keep_rate, tokens[:36].numpy(), labels[:36].numpy(), tokens[36:], logits[36:], labels[36:]
    )


def uneven(model: clca.TokenReducedViT, seed: int = 0) -> clca.TokenReducedViT:
    """Give a model random weights that make attention uneven, so that its logits depend on which tokens are kept."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1 and name.endswith("weight"):
                sharper = 2.5 if "qkv" in name else 1.0
                tensor.copy_(sharper * noise / tensor[0].numel() ** 0.5)
            elif name.endswith("gamma"):
                tensor.copy_(0.3 + 0.3 * noise.abs())
            else:
                tensor.add_(0.3 * noise)
    return model
