"""Pooling over the tokens of a padded batch."""

from __future__ import annotations

import math

from torch import Tensor, nn


def pool_padded(x: Tensor, global_pool: str, attn_pool: nn.Module | None) -> Tensor:
    """Pool tokens as timm does, leaving out padding.

    Args:
        x: Tokens after the final norm, [B, N, C]; padded positions are zero, which a norm never returns.
        global_pool: "avg", "max", "avgmax" or "map".
        attn_pool: The module that "map" pools with.

    Returns:
        [B, C]
    """
    real = x.abs().amax(dim=-1, keepdim=True) > 0  # [B, N, 1]
    if attn_pool is not None:
        return attn_pool(x, attn_mask=real[:, None, None, :, 0])
    mean = x.sum(dim=1) / real.sum(dim=1).clamp(min=1)
    if global_pool == "avg":
        return mean
    largest = x.masked_fill(~real, -math.inf).amax(dim=1)
    return largest if global_pool == "max" else 0.5 * (largest + mean)
