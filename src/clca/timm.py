"""timm's door to clca: importing this module makes `timm.create_model("clca_vit", …)` work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model

from clca.errors import ClcaError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["clca_vit"]

# What timm's scripts ask before they make `clca_vit`: only a model of fixed size is handed `--img-size`.
default_cfgs = {
    "clca_vit": {
        "architecture": "clca_vit",
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "num_classes": 1000,
    }
}


@register_model
def clca_vit(pretrained: bool = False, backbone: str = "deit3_base_patch16_224.fb_in1k", **kwargs: Any) -> nn.Module:
    """timm's door: `timm.create_model("clca_vit", backbone=…, reduction=…)`, as its own scripts call it."""
    # Only now: this module is imported while timm is, maybe by a module that the factory needs and that wants timm.
    from clca.models.factory import create_model, weights_settings

    cfg = {
        **weights_settings(kwargs.pop("pretrained_cfg", None)),
        **weights_settings(kwargs.pop("pretrained_cfg_overlay", None)),
    }
    if pretrained and cfg.get("file"):  # the scripts' --pretrained-path
        kwargs.setdefault("weights", cfg["file"])
    if kwargs.pop("cache_dir", None) is not None:
        raise ClcaError("clca_vit takes no cache_dir: set HF_HOME and TORCH_HOME instead")
    size = kwargs.pop("input_size", None)
    if size is not None and "img_size" not in kwargs:
        kwargs["img_size"] = tuple(size[-2:])
    return create_model(backbone, pretrained=pretrained, **kwargs)
