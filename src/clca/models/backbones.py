"""The paper's nine backbones, which timm models fit, and building them."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from clca.errors import ClcaError
from clca.models import leaf_encoder as leaf_encoder  # registers clca_leaf_tiny with timm
from clca.models.config import ModelConfig


@dataclass(frozen=True)
class Backbone:
    """A pretrained backbone.

    Attributes:
        name: What `clca.create_model` takes.
        architecture: timm's name of the model to build.
        url: URL of the weights if timm does not have them, otherwise None.
        source: The publication.
    """

    name: str
    architecture: str
    url: str | None
    source: str


_MOCO_V3 = "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar"

PAPER_BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("vit_base_patch16_224.orig_in21k", "vit_base_patch16_224.orig_in21k", None, "ViT, ICLR 2021"),
        Backbone("vit_base_patch16_224_miil.in21k", "vit_base_patch16_224_miil.in21k", None, "MIIL, NeurIPS 2021"),
        Backbone("deit_base_patch16_224.fb_in1k", "deit_base_patch16_224.fb_in1k", None, "DeiT, ICML 2021"),
        Backbone("deit3_base_patch16_224.fb_in1k", "deit3_base_patch16_224.fb_in1k", None, "DeiT-III, ECCV 2022"),
        Backbone(
            "deit3_base_patch16_224.fb_in22k_ft_in1k",
            "deit3_base_patch16_224.fb_in22k_ft_in1k",
            None,
            "DeiT-III, ECCV 2022",
        ),
        Backbone("vit_base_patch16_224.dino", "vit_base_patch16_224.dino", None, "DINO, ICCV 2021"),
        Backbone("vit_base_patch16_224.mae", "vit_base_patch16_224.mae", None, "MAE, CVPR 2022"),
        Backbone("vit_base_patch16_clip_224.laion2b", "vit_base_patch16_clip_224.laion2b", None, "CLIP, ICML 2021"),
        Backbone("vit_base_patch16_224.mocov3", "vit_base_patch16_224", _MOCO_V3, "MoCo v3, ICCV 2021"),
    )
}

_FORWARD = ("forward", "forward_features", "forward_head", "pool", "_pos_embed")


def list_backbones() -> list[str]:
    """The paper's nine backbones; any other timm ViT with a CLS token works too."""
    return list(PAPER_BACKBONES)


def resolve(name: str) -> Backbone:
    """The backbone of that name, one of the paper's or any of timm's.

    Raises:
        ClcaError: If there is no such model, or no such pretrained tag; the message suggests similar names.
    """
    if name in PAPER_BACKBONES:
        return PAPER_BACKBONES[name]
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or architecture == "clca_vit":
        known = [n for n in timm.list_models() if n != "clca_vit"]
        close = difflib.get_close_matches(architecture, known, n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ": see timm.list_models('vit*')"
        raise ClcaError(f"unknown model {name!r}{hint}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        hint = f"choose one of {', '.join(tags)}" if tags else "it has no pretrained weights"
        raise ClcaError(f"unknown pretrained weights {tag!r} of {architecture}: {hint}")
    return Backbone(name, name, None, "timm")


@cache
def check_architecture(backbone: Backbone) -> None:
    """Check that a timm model fits, before its weights are allocated.

    Raises:
        ClcaError: If it does not; the message gives the reason.
    """
    # The meta device allocates nothing, so that checking a very large model takes milliseconds.
    with torch.device("meta"):
        model = timm.create_model(backbone.architecture.partition(".")[0])
    check_fits(model, backbone.name)


def check_fits(model: nn.Module, name: str) -> None:
    """Check that a model is a plain timm VisionTransformer with a CLS token.

    Raises:
        ClcaError: If it does not; the message gives the reason.
    """
    if not isinstance(model, VisionTransformer):
        kind = type(model)
        of_timm = "timm " if kind.__module__.startswith("timm.") else ""
        raise ClcaError(
            f"{name} does not fit: it is a {of_timm}{kind.__name__}{_why_not(model)}, and clca needs a "
            "VisionTransformer of timm with a CLS token and absolute position embedding"
        )
    base = VisionTransformerDistilled if isinstance(model, VisionTransformerDistilled) else VisionTransformer
    changed = [method for method in _FORWARD if getattr(type(model), method) is not getattr(base, method)]
    if changed:
        raise ClcaError(f"{name} does not fit: {type(model).__name__} has its own {changed[0]}(), which would be lost")
    if model.cls_token is None:
        raise ClcaError(f"{name} does not fit: it has no CLS token, which ranks the tokens and is what is classified")


def has_fc_norm(model: nn.Module) -> bool:
    """Whether the final norm of a model follows the pooling; its position is a setting of timm."""
    return not isinstance(model.fc_norm, nn.Identity)


def _why_not(model: nn.Module) -> str:
    if not isinstance(model, nn.Module):
        return ""
    layers = {type(module).__name__.lower() for module in model.modules()}
    if any("rope" in name or "rotary" in name for name in layers):
        return " with rotary positions"
    if "swin" in type(model).__name__.lower():
        return " with shifted windows"
    if any("rel_pos" in name or "relative_position" in name for name, _ in model.named_parameters()):
        return " with relative positions"
    return ""


def check_img_size(name: str, size: tuple[int, int], patch_embed: Any) -> None:
    """Check that patches tile an image size.

    Raises:
        ClcaError: If they do not; the message names the nearest sizes that fit.
    """
    for pixels, patch in zip(size, pixels_per_patch(patch_embed), strict=True):
        if pixels < patch or pixels % patch:
            below = max(patch, pixels // patch * patch)
            near = str(below) if pixels < patch else f"{below} or {below + patch}"
            raise ClcaError(f"{name}: image size {pixels} is not a multiple of the patch size {patch}: use {near}")


def pixels_per_patch(patch_embed: Any) -> tuple[int, int]:
    """Height and width in pixels of the patch of a token; a convolutional stem in front makes it larger."""
    ratio = patch_embed.feat_ratio(as_scalar=False) if hasattr(patch_embed, "feat_ratio") else patch_embed.patch_size
    high, wide = (ratio, ratio) if isinstance(ratio, int) else tuple(ratio)
    return high, wide


def backbone_arguments(config: ModelConfig) -> dict[str, Any]:
    """The arguments of `timm.create_model` for the backbone of a model with these settings."""
    size = {} if config.img_size is None else {"img_size": config.img_size}
    # With CLA the backbone's head is left out: none is made, and none is fetched.
    return {**config.backbone_kwargs, **size, "num_classes": 0 if config.cla else config.num_classes}


def build_backbone(source: Backbone, config: ModelConfig, *, pretrained: bool = False) -> VisionTransformer:
    """The timm model of a backbone, with its settings.

    Args:
        source: From `resolve`.
        config: Settings of the model that the backbone becomes part of.
        pretrained: Whether timm fetches its weights; errors of fetching are passed on.

    Raises:
        ClcaError: If the backbone does not take these settings.
    """
    kwargs = backbone_arguments(config)
    if config.img_size is not None:
        _check_size_before(source, config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return timm.create_model(source.architecture, pretrained=pretrained, **kwargs)  # type: ignore[return-value]
    except (TypeError, ZeroDivisionError) as error:
        raise ClcaError(f"{config.backbone} does not take these settings: {error}") from None
    except KeyError as error:  # timm's tables of layers
        raise ClcaError(f"{config.backbone} does not take these settings: timm has no layer {error}") from None
    except AssertionError as error:
        raise ClcaError(f"{config.backbone} does not take these settings: {str(error) or kwargs}") from None
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        if pretrained:
            raise
        raise ClcaError(f"{config.backbone} cannot be made with {kwargs}: {error}") from None


def _check_size_before(source: Backbone, config: ModelConfig) -> None:
    """Patches must tile the image; timm itself would silently cut off the rest."""
    patch = config.backbone_kwargs.get("patch_size")
    try:
        embedding = _patch_embedding(
            source.architecture.partition(".")[0], tuple(patch) if isinstance(patch, list) else patch
        )
    except (TypeError, ZeroDivisionError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        shown = {} if patch is None else {"patch_size": patch}
        raise ClcaError(f"{config.backbone} does not take these settings: {shown} ({first})") from None
    size = config.img_size
    assert size is not None
    check_img_size(config.backbone, (size, size) if isinstance(size, int) else size, embedding)


@lru_cache(256)
def _patch_embedding(architecture: str, patch_size: Any) -> Any:
    """The patch embedding of a timm model, without memory; `patch_size` None for the model's own."""
    settings = {} if patch_size is None else {"patch_size": patch_size}
    with torch.device("meta"):
        return timm.create_model(architecture, depth=1, **settings).patch_embed
