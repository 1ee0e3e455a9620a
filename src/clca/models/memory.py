"""The memory that a model needs, known before it is taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import torch

from clca.errors import ClcaError
from clca.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

_SMALL = 2**30  # bytes; building a model of that size takes longer than counting its parameters before
# What a backbone has at most in timm, where the settings do not say it.
_MOST = {"depth": 64, "embed_dim": 2048, "mlp_ratio": 5.0, "in_chans": 3, "reg_tokens": 16, "patch_size": 8}
_BLOCKS = ("depth", "embed_dim", "mlp_ratio")


def may_be_large(config: ModelConfig) -> bool:
    """Whether the settings, rather than the backbone's name, may make the model large: an estimate from above."""
    kwargs = config.backbone_kwargs
    sizes = {name: kwargs.get(name, most) for name, most in _MOST.items()}
    try:
        side = max(_sides(config.img_size or kwargs.get("img_size", 224)))
        patch, dim = min(_sides(sizes["patch_size"])), sizes["embed_dim"]
        patches = (side / patch) ** 2
        numbers = dim * (patches + sizes["reg_tokens"] + config.num_clr + sizes["in_chans"] * patch**2)
        # Aggregation head, and classifiers of each kind; then reductions with parameters for every patch.
        numbers += dim * config.cla_width * (16 + config.num_classes) + dim * patches
        if any(name in kwargs for name in _BLOCKS):
            numbers += sizes["depth"] * dim**2 * (4 + 3 * sizes["mlp_ratio"])
        return not 4 * numbers <= _SMALL
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):  # no numbers: what follows refuses them
        return True


def _sides(size: Any) -> Any:
    return size if isinstance(size, (tuple, list)) else (size,)


def check_memory(config: ModelConfig, build: Callable[[ModelConfig], nn.Module]) -> None:
    """Refuse a model whose weights alone do not fit into the memory of this machine.

    Args:
        config: The model.
        build: Makes it; it is called on the meta device, where no memory is taken.

    Raises:
        ClcaError: With the number of its parameters, and what they take; or what `build` refuses.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = build(config)
        except ClcaError:
            raise
        except Exception:  # a reduction from elsewhere may read values, which the meta device does not have
            model = build(config.model_copy(update={"reduction": "none", "keep_rate": 1.0}))
    sizes = [(tensor.shape, tensor.element_size()) for tensor in (*model.parameters(), *model.buffers())]
    needed, available = sum(math.prod(shape) * each for shape, each in sizes), psutil.virtual_memory().total
    if needed > available:
        count = sum(math.prod(shape) for shape, _ in sizes)
        raise ClcaError(
            f"{config.backbone} with these settings has {count / 1e9:,.1f} billion parameters, which take "
            f"{needed / 2**30:,.0f} GiB; this machine has {available / 2**30:,.0f} GiB of memory"
        )
