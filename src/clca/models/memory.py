"""The memory that a model needs, known before it is taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil
import torch

from clca.errors import ClcaError
from clca.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

# Below all of these a model of timm is as large as timm made it.
_USUAL_CLASSES, _USUAL_SIDE, _USUAL_WIDTH, _USUAL_CARRIERS = 100_000, 1024, 16, 64


def may_be_large(config: ModelConfig) -> bool:
    """Whether the settings, rather than the backbone's name, decide how large the model is."""
    size = config.img_size or 0
    return (
        bool(config.backbone_kwargs)
        or config.num_classes > _USUAL_CLASSES
        or max(size if isinstance(size, tuple) else (size,)) > _USUAL_SIDE
        or config.cla_width > _USUAL_WIDTH
        or config.num_clr > _USUAL_CARRIERS
    )


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
