"""Small models of every kind that this library exports: each backbone style, reduction, head, pool and keep rate."""

from __future__ import annotations

from typing import Any

import clca
from clca.reductions.registry import SHIPPED

SIZE, CLASSES = 32, 7
NARROW: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 3}

# timm name and further arguments: one for each kind of layer in the timm models that `check_fits` accepts.
STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),  # LayerScale, position table without CLS
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "clip": ("vit_base_patch16_clip_224", {}),  # norm before the blocks
    "quickgelu": ("vit_base_patch16_clip_quickgelu_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {}),
    "averaged": ("vit_tiny_patch16_224", {"qk_norm": True, "global_pool": "avg", "init_values": 0.1}),
    "beit3": ("beit3_base_patch16_224", {}),
    "one_size_or_another": ("test_vit", {}),
    "rms": ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}),
    "gelu_tanh": ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}),
    "silu": ("vit_tiny_patch16_224", {"act_layer": "silu"}),
    "relu": ("vit_tiny_patch16_224", {"act_layer": "relu"}),
    "one_channel": ("vit_tiny_patch16_224", {"in_chans": 1}),
}
# Their embeddings or blocks take no narrow settings, or their blocks no reduction.
_BLOCKS = {"embed_dim": 24, "num_heads": 3, "depth": 3}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "parallel": ("vit_small_patch16_18x2_224", {"patch_size": 8, **_BLOCKS}),
    "parallel_scaling": ("vit_base_patch16_xp_224", {"patch_size": 8, **_BLOCKS}),
    "conv_stem": ("vit_base_mci_224", {"depth": 2}),
    "hybrid_resnetv2": ("vit_tiny_r_s16_p8_224", _BLOCKS),
    "hybrid_resnetv2_stages": ("vit_small_r26_s32_224", _BLOCKS),
    "hybrid_resnet": ("vit_small_resnet26d_224", _BLOCKS),
}
_RATE: dict[str, Any] = {"keep_rate": 0.5, "locations": [1]}


def _kinds() -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {"none": {}}
    for name in SHIPPED:
        kinds[name] = {"reduction": name, **_RATE}
    for name in ("none", "ats", "tome"):
        kinds[f"{name}, plain head"] = {
            "reduction": name,
            "cla": False,
            "clc": False,
            **(_RATE if name != "none" else {}),
        }
    for style in STYLES:
        kinds[f"{style} with evit"] = {"style": style, "reduction": "evit", **_RATE}
    for style in ("registers", *PLAIN):
        kinds[f"{style} alone"] = {"style": style, "cla": False, "clc": False}
    for pool in ("avg", "avgmax", "map"):
        kinds[f"pool {pool}"] = {"global_pool": pool, "reduction": "topk", "cla": False, **_RATE}
        kinds[f"pool {pool} of padded tokens"] = {"global_pool": pool, "reduction": "ats", "cla": False, **_RATE}
    kinds["pool max, three carriers"] = {"global_pool": "max", "num_clr": 3, "cla": False}
    kinds["no carriers"] = {"num_clr": 0, "reduction": "dpcknn", **_RATE}
    kinds["carriers not averaged"] = {"clc_gap": False, "clc_recover_at_last": False, "reduction": "ats", **_RATE}
    kinds["a rate a location"] = {"reduction": "tome", "keep_rate": [0.7, 0.4], "locations": [0, 1]}
    kinds["all kept"] = {"reduction": "sit", "keep_rate": 1.0, "locations": [0, 1]}
    kinds["wide"] = {"reduction": "evit", "img_size": (32, 48), "cla_width": 3, **_RATE}
    return kinds


KINDS = _kinds()


def build(style: str = "deit", img_size: int | tuple[int, int] = SIZE, **settings: Any) -> clca.TokenReducedViT:
    """The model of one of `KINDS`, with classes and preprocessing."""
    backbone, extra = PLAIN[style] if style in PLAIN else (STYLES[style][0], NARROW | STYLES[style][1])
    size = 224 if style == "hybrid_resnet" else img_size
    model = clca.create_model(backbone, img_size=size, num_classes=CLASSES, **{**extra, **settings})
    model.classes = [f"class {number}" for number in range(CLASSES)]
    return model.eval()
