"""Register `clca_vit` with timm: after `import clca.timm`, `timm.create_model("clca_vit", …)` works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model

from clca.errors import ClcaError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["clca_vit"]

# Read by timm's scripts before they create `clca_vit`: they pass `--img-size` only to a model of fixed input size.
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
    """`clca.create_model` as a model of timm: `timm.create_model("clca_vit", backbone=…, reduction=…)`."""
    # Imported late: this module may be imported while timm itself is, by a module that the factory needs.
    from clca.models.factory import create_model, weights_settings

    cfg = {
        **weights_settings(kwargs.pop("pretrained_cfg", None)),
        **weights_settings(kwargs.pop("pretrained_cfg_overlay", None)),
    }
    if pretrained and cfg.get("file"):  # --pretrained-path of timm's scripts
        kwargs.setdefault("weights", cfg["file"])
    if kwargs.pop("cache_dir", None) is not None:
        raise ClcaError("clca_vit takes no cache_dir: set HF_HOME and TORCH_HOME instead")
    size = kwargs.pop("input_size", None)
    if size is not None and "img_size" not in kwargs:
        kwargs["img_size"] = tuple(size[-2:])
    return create_model(backbone, pretrained=pretrained, **kwargs)
