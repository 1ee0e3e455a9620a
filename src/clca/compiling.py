"""`torch.compile` for a `TokenReducedViT`: one graph without breaks, for every batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
import torch.fx.experimental._config as shape_config
from torch import Tensor, nn


def compiled_call(module: nn.Module, **options: Any) -> Callable[[Tensor], Tensor]:
    """The module's call, compiled by the first images given and again only where what they are changes, not how many.

    Training and evaluation, another precision and another keep rate are compiled once each.

    Args:
        module: Takes images [B, 3, H, W].
        options: For `torch.compile`; `fullgraph` is on if not said otherwise.
    """
    call = torch.compile(module._call_impl, **{"fullgraph": True, **options})

    def run(images: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(images, 0)
        # Without the first a batch of one is a case of its own, and compiled apart; without the second a keep rate that
        # was changed once becomes a variable, and with it the number of tokens.
        with shape_config.patch(backed_size_oblivious=True), dynamo_config.patch(specialize_float=True):
            return call(images)

    return run
