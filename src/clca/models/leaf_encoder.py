"""`clca_leaf_tiny`: a small plain ViT whose weights come with the library, registered with timm.

It was pretrained on synthetic leaves of many cultivars (`benchmarks/leaf_encoder.py`) and is what demo, tutorial and
quick trials start from where nothing can be downloaded. It knows leaves and nothing else.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import HybridEmbed
from timm.models import VisionTransformer, build_model_with_cfg, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

__all__ = ["clca_leaf_tiny"]

WEIGHTS = Path(__file__).with_name("clca_leaf_tiny.safetensors")
"""In half precision, without a head."""

default_cfgs = {
    "clca_leaf_tiny": {
        "architecture": "clca_leaf_tiny",
        "file": str(WEIGHTS),
        "num_classes": 0,
        "input_size": (3, 160, 160),
        "pool_size": None,
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.backbone.0.conv",
        "classifier": "head",
        "license": "mit",
    }
}


@register_model
def clca_leaf_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of 12 blocks, width 128 and 4 heads, pretrained at 160 pixels on synthetic leaves.

    Four convolutions of stride 2 embed its patches of 16 pixels, with which a ViT learns from fewer images (Xiao et
    al., NeurIPS 2021).
    """
    stem = partial(
        HybridEmbed,
        backbone=ConvStem(
            in_chans=kwargs.get("in_chans", 3),
            depth=4,
            channels=(16, 32, 64, kwargs.get("embed_dim", 128)),
            stride=(2, 2, 2, 2),
            act_layer=nn.GELU,
        ),
        proj=False,
    )
    sizes: dict[str, Any] = {"img_size": 160, "patch_size": 1, "embed_dim": 128, "depth": 12, "num_heads": 4}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, "clca_leaf_tiny", pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"}, **{**sizes, "embed_layer": stem, **kwargs},
    )  # fmt: skip
    return model
