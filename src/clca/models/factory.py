"""Create models by name, or from an existing timm model."""

from __future__ import annotations

import socket
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import VisionTransformer
from torch import nn

from clca.errors import ClcaError
from clca.models.backbones import Backbone, backbone_arguments, build_backbone, check_architecture, has_fc_norm, resolve
from clca.models.config import ModelConfig, validated
from clca.models.leaf_encoder import clca_leaf_tiny
from clca.models.memory import check_memory, may_be_large
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.weights import load_weights
from clca.reductions import reduction_class

__all__ = ["create_model", "reduce_tokens"]

_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Arguments of timm on where and how a model is created; they are not part of the model's settings.
OF_THIS_MACHINE = (
    "cache_dir", "device", "dtype", "exportable", "features_only", "no_jit", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_strict", "scriptable",
)  # fmt: skip
# Errors of timm, torch.hub and huggingface_hub without a network, with an empty cache, or rejected by the hub.
_UNREACHABLE = (OSError, urllib.error.URLError, RuntimeError, ValueError, ImportError)


def create_model(
    backbone: str,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] | None = None,
    reduction: str = "none",
    keep_rate: float | tuple[float, ...] | list[float] | None = None,
    keep_rates: tuple[float, ...] | list[float] | str | None = None,
    locations: tuple[int, ...] | list[int] | None = None,
    cla: bool = True,
    clc: bool = True,
    num_clr: int = 1,
    clc_gap: bool = True,
    clc_recover_at_last: bool = True,
    cla_width: int = 2,
    cla_head: str = "convolution",
    cla_average: bool = False,
    **backbone_kwargs: Any,
) -> TokenReducedViT:
    """A timm ViT with token reduction and Cross-Layer Cache Aggregation.

    Args:
        backbone: Name of a timm model, with or without a pretrained tag, or one of `clca.list_backbones()`.
        pretrained: Download the weights of that name from the hub.
        weights: Start from this local file instead, with parameter names of timm, clca or the published program.
        num_classes: Number of classes K; 0 for features.
        img_size: Height and width in pixels, or one number for both; None for the backbone's default.
        reduction: One of `clca.list_reductions()`.
        keep_rate: Share of tokens kept at every location, or one for each location; None for 1, or for the smallest
            of `keep_rates`.
        keep_rates: Keep rates that the model is to be trained for, or a range such as "0.05..1"; None for one.
        locations: Blocks that reduce, ascending from 0; None for a quarter, half and three quarters of the depth.
        cla: Classify from the CLS tokens of several depths.
        clc: Carry information of earlier layers past every reduction.
        num_clr: Number of learned carrier tokens, R.
        clc_gap: Whether the cache also stores the mean of the tokens.
        clc_recover_at_last: Whether the cache is recovered once more before the last block.
        cla_width: Features per channel in the aggregation head.
        cla_head: "convolution", the published aggregation head; or "linear", one linear layer over all depths.
        cla_average: Whether the aggregation head also reads the average of the patches before the first reduction.
        **backbone_kwargs: Passed to `timm.create_model`.

    Returns:
        The model, in training mode as timm returns it.

    Raises:
        ClcaError: A name, a setting or a file is wrong, or weights cannot be loaded: never silently random weights.
    """
    config = validated(
        backbone=backbone,
        num_classes=num_classes,
        img_size=tuple(img_size) if isinstance(img_size, list) else img_size,
        reduction=reduction,
        **({} if keep_rate is None else {"keep_rate": keep_rate}),
        keep_rates=keep_rates,
        locations=locations,
        cla=cla,
        clc=clc,
        num_clr=num_clr,
        clc_gap=clc_gap,
        clc_recover_at_last=clc_recover_at_last,
        cla_width=cla_width,
        cla_head=cla_head,
        cla_average=cla_average,
        backbone_kwargs=backbone_kwargs,
    )
    return build(config, pretrained=pretrained, weights=weights)


def build(config: ModelConfig, *, pretrained: bool = False, weights: str | None = None) -> TokenReducedViT:
    """`create_model` from validated settings."""
    reduction_class(config.reduction)  # rejects an unknown name before a large backbone is built
    if "checkpoint_path" in config.backbone_kwargs:
        raise ClcaError("checkpoint_path would load into the backbone alone: pass the file with weights=FILE instead")
    if config.backbone_kwargs.get("features_only"):
        raise ClcaError("features_only=True returns feature maps, which reduced tokens cannot form: omit it")
    source = resolve(config.backbone)
    check_architecture(source)
    if may_be_large(config) and torch.get_default_device().type != "meta":
        kwargs = {name: value for name, value in config.backbone_kwargs.items() if name not in OF_THIS_MACHINE}
        check_memory(config.model_copy(update={"backbone_kwargs": kwargs}), build)
    fetch = pretrained and weights is None
    if fetch:
        _check_reachable(source)
    vit = _build_pretrained(source, config) if fetch and source.url is None else build_backbone(source, config)
    kept = {k: v for k, v in config.backbone_kwargs.items() if k not in OF_THIS_MACHINE}
    model = TokenReducedViT(vit, config.model_copy(update={"backbone_kwargs": kept}))
    if weights is not None:
        load_weights(model, weights)
    elif fetch and source.url is not None:
        load_weights(model, _download(source))
        model.pretrained_cfg = {**weights_settings(vit.pretrained_cfg), "url": source.url, "hf_hub_id": None}
    return model


def reduce_tokens(
    vit: nn.Module, *, num_classes: int | None = None, weights: str | None = None, **settings: Any
) -> TokenReducedViT:
    """Add token reduction and Cross-Layer Cache Aggregation to an existing timm model; parameters are shared.

    Args:
        vit: A timm VisionTransformer with a CLS token; it is not changed.
        num_classes: Number of classes K; None keeps the model's number and, without CLA, its head.
        weights: Local file to load; it overwrites the shared parameters.
        **settings: As for `create_model`: img_size, reduction, keep_rate, keep_rates, locations, cla, clc, num_clr,
            clc_gap, clc_recover_at_last, cla_width, cla_head, cla_average.

    Raises:
        ClcaError: The model or a setting does not fit.
    """
    cfg = getattr(vit, "pretrained_cfg", None)
    name = getattr(cfg, "architecture", None) or (cfg or {}).get("architecture") or type(vit).__name__
    args = {
        k: v
        for k, v in getattr(vit, "_model_args", {}).items()
        if k not in ("num_classes", "img_size", *OF_THIS_MACHINE)
    }
    size = settings.pop("img_size", None)
    if isinstance(vit, VisionTransformer):
        size = tuple(vit.patch_embed.img_size) if size is None else size
        # timm's reset_classifier records `fc_norm` when it changes the pooling, but not the pooling itself.
        if "fc_norm" in args or vit.global_pool != args.get("global_pool", "token"):
            args |= {"global_pool": vit.global_pool, "fc_norm": has_fc_norm(vit)}
    own = getattr(vit, "num_classes", 1000)
    config = validated(
        backbone=name,
        backbone_kwargs=args,
        num_classes=own if num_classes is None else num_classes,
        img_size=size,
        **settings,
    )
    model = TokenReducedViT(vit, config)  # type: ignore[arg-type]  # raises for other modules
    return model if weights is None else load_weights(model, weights)


def _build_pretrained(source: Backbone, config: ModelConfig) -> VisionTransformer:
    try:
        return build_backbone(source, config, pretrained=True)
    except _UNREACHABLE as error:
        if isinstance(error, ClcaError):
            raise
        if "loading state_dict" in str(error):
            kwargs = backbone_arguments(config)
            raise ClcaError(f"the pretrained weights of {config.backbone} do not fit the settings {kwargs}") from None
        raise ClcaError(_download_hint(source, error)) from None


def _check_reachable(source: Backbone) -> None:
    """Fail fast offline; the hub client retries noisily for about a minute.

    Raises:
        ClcaError: There are no such weights, or they are not in the cache and their host cannot be resolved.
    """
    cfg = timm.get_pretrained_cfg(source.architecture)
    if cfg is not None and cfg.file and Path(cfg.file).is_file():  # comes with the library
        return
    hub_id = _hub_id(cfg, source) if cfg is not None else None
    if source.url is not None:
        address, cached = source.url, _cache_file(source.url).is_file()
    elif hub_id:
        address, cached = ENDPOINT, any(isinstance(try_to_load_from_cache(hub_id, n), str) for n in _HUB_FILES)
    elif cfg is not None and cfg.url:
        address, cached = str(cfg.url), _cache_file(str(cfg.url)).is_file()
    else:
        raise ClcaError(_download_hint(source, OSError()))
    if cached or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(urllib.parse.urlparse(address).hostname, 443)
    except OSError as error:
        raise ClcaError(_download_hint(source, error)) from None


def _hub_id(cfg: Any, source: Backbone) -> str | None:
    return (
        (cfg.hf_hub_id + source.architecture if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id)
        if cfg.hf_hub_id
        else None
    )


def _download_hint(source: Backbone, error: BaseException) -> str:
    if source.url is not None:
        return _manual_download_hint(source, source.url, error)
    cfg = timm.get_pretrained_cfg(source.architecture)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        return (
            f"{source.name} has no pretrained weights in timm: pass a file with weights=FILE (--weights FILE), or "
            "start from random weights with pretrained=False (--no-pretrained)"
        )
    hub_id = _hub_id(cfg, source)
    return _manual_download_hint(
        source, f"{ENDPOINT}/{hub_id}/resolve/main/model.safetensors" if hub_id else str(cfg.url), error
    )


def _manual_download_hint(source: Backbone, file: str, error: BaseException) -> str:
    return (
        f"the weights of {source.name} could not be downloaded ({type(error).__name__}): get {file} on a machine with "
        "a network and pass the file with weights=FILE (on the command line --weights FILE); for a trial on leaves, "
        f"{clca_leaf_tiny.__name__} comes with the library"
    )


def _download(source: Backbone) -> str:
    """The weights file of a backbone that timm does not have, from torch's cache or downloaded."""
    assert source.url is not None
    target = _cache_file(source.url)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source.url, str(target))
        except (OSError, urllib.error.URLError, RuntimeError) as error:
            raise ClcaError(_manual_download_hint(source, source.url, error)) from None
    return str(target)


def _cache_file(url: str) -> Path:
    """The location of a file in torch.hub's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def weights_settings(cfg: Any) -> dict[str, Any]:
    """timm's pretrained config as a dict; timm passes it as a dict, an object or None."""
    return cfg.to_dict() if hasattr(cfg, "to_dict") else cfg if isinstance(cfg, dict) else {}
