"""Costs measured with torch and timm: of a backbone on the meta device, and of a whole model by `clca.cost`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from clca.errors import ClcaError
from clca.kernels.dispatch import can_split
from clca.models.backbones import check_architecture, check_img_size, resolve
from clca.models.block import attention_branch, mlp_branch
from clca.models.config import ModelConfig, validated
from clca.models.cost import cost, flop_counter
from clca.models.factory import build
from clca.models.token_reduced_vit import TokenReducedViT
from clca.reductions import reduction_class
from clca.study.plan.backbone_cost import BackboneCost, Quadratic


def backbone_cost(config: ModelConfig) -> BackboneCost | None:
    """Cost of a backbone at the image size of `config`, measured once for each architecture, settings and size.

    Returns:
        The cost; None if the backbone cannot be built, does not take that size, or is not a sum of such parts.

    Raises:
        ClcaError: There is no backbone of that name.
    """
    key = (_variant(config.backbone), repr(sorted(config.backbone_kwargs.items())))
    measured = _measured_backbone(_Backbone(key, config.backbone, config.backbone_kwargs))
    if measured is None:
        return None
    parts, model = measured
    own: Any = model.patch_embed
    size = config.img_size if config.img_size is not None else tuple(own.img_size)
    size = (size, size) if isinstance(size, int) else size
    try:
        check_img_size(config.backbone, size, own)
    except ClcaError:
        return None
    embedding, patches = _embedding(model, size)
    return replace(parts, embedding=embedding, patches=patches)


def measured_gmacs(config: ModelConfig, num_classes: int) -> float:
    """What `clca.cost` measures for the model of `config` with `num_classes` classes.

    Raises:
        ClcaError: The model cannot be built.
    """
    config = config.model_copy(update={"num_classes": num_classes})
    cls = reduction_class(config.reduction)
    with torch.random.fork_rng(devices=[]):  # planning leaves the random numbers of its process alone
        if cls is None or not cls.pads:
            try:
                with torch.device("meta"):
                    return cost(build(config)).gmacs
            except RuntimeError:
                pass  # a reduction that reads values cannot run on the meta device
        return cost(build(config)).gmacs


@dataclass(frozen=True)
class _Backbone:
    """A backbone and its settings, compared by `key`, because a dictionary has no hash."""

    key: tuple[Any, ...]
    name: str = field(compare=False)
    kwargs: dict[str, Any] = field(compare=False)


@cache
def _variant(backbone: str) -> tuple[Any, ...]:
    """What decides the shape of a backbone; the pretrained tags of most architectures differ in weights alone.

    Raises:
        ClcaError: If there is no such backbone.
    """
    architecture = resolve(backbone).architecture
    cfg = timm.get_pretrained_cfg(architecture)
    return architecture.partition(".")[0], *(getattr(cfg, name, None) for name in ("input_size", "fixed_input_size"))


@cache
def _measured_backbone(backbone: _Backbone) -> tuple[BackboneCost, TokenReducedViT] | None:
    """The parts of a backbone, still without its patch embedding, and the model on the meta device; None on failure.

    It does not use `clca.models.factory`, which builds a backbone twice and initialises its weights, but explains what
    cannot be built: the caller turns to it on failure.
    """
    config = validated(backbone=backbone.name, backbone_kwargs=backbone.kwargs, num_classes=1, cla=False, clc=False)
    try:
        source = resolve(backbone.name)
        if backbone.kwargs:
            check_architecture(source)  # settings do not make a backbone fit
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = {"weight_init": "skip", **backbone.kwargs, "num_classes": 1}
            vit: Any = timm.create_model(source.architecture, **settings)
            model = TokenReducedViT(vit, config).eval().requires_grad_(False)
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None
    block: Any = model.blocks[0]  # all blocks are alike
    prefix, dim = model.num_prefix_tokens, model.embed_dim
    opaque = next((type(each).__name__ for each in model.blocks if not can_split(each)), None)
    attention = _fitted(lambda x: attention_branch(block, x)[0] if opaque is None else block(x), prefix, dim)
    mlp = _fitted(lambda x: mlp_branch(block, x) if opaque is None else x, prefix, dim)
    pool = _fitted(lambda x: model.forward_head(x, pre_logits=True), prefix, dim)
    head = _fitted(model.forward_head, prefix, dim)
    if attention is None or mlp is None or pool is None or head is None:
        return None
    parts = BackboneCost(
        dim=dim,
        prefix=prefix,
        attn_dim=block.attn.num_heads * block.attn.head_dim if opaque is None else 0,
        head_dim=block.attn.head_dim if opaque is None else 0,
        depth=len(model.blocks),
        patches=0,
        embedding=0,
        attention=attention,
        mlp=mlp,
        pool=pool,
        classifier=Quadratic(head.a - pool.a, head.b - pool.b, head.c - pool.c),
        global_pool=model.global_pool,
        patch_drop=float(getattr(model.patch_drop, "prob", 0.0)),
        opaque_block=opaque,
    )
    return parts, model


_STEP = 8


def _fitted(run: Callable[[Tensor], object], prefix: int, dim: int) -> Quadratic | None:
    """The quadratic through the counts at three lengths; None if a fourth is not on it."""
    lengths = [prefix + _STEP * i for i in (1, 2, 3, 4)]
    f1, f2, f3, f4 = (_macs(run, torch.empty(1, n, dim, device="meta")) for n in lengths)
    c = (f3 - 2 * f2 + f1) / (2 * _STEP**2)
    b = (f2 - f1) / _STEP - c * (lengths[0] + lengths[1])
    fitted = Quadratic(f1 - b * lengths[0] - c * lengths[0] ** 2, b, c)
    return fitted if fitted(lengths[3]) == f4 else None


def _macs(run: Callable[[Tensor], object], x: Tensor) -> int:
    counter = flop_counter()
    with torch.no_grad(), counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(x)
    return counter.get_total_flops() // 2


@cache
def _embedding(model: TokenReducedViT, size: tuple[int, int]) -> tuple[int, int]:
    """Multiply-accumulates of the patch embedding of an image of that size, and P."""
    patch_embed: nn.Module = copy.copy(model.patch_embed)
    if size != tuple(model.patch_embed.img_size):
        patch_embed.set_input_size(img_size=size)  # type: ignore[operator]
    patches: list[Tensor] = []
    macs = _macs(lambda x: patches.append(patch_embed(x)), torch.empty(1, model.in_chans, *size, device="meta"))
    return macs, patches[0].numel() // model.embed_dim
