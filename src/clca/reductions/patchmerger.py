"""PatchMerger (Renggli et al., 2022): learned queries attend to all tokens and replace them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clca.reductions.base import Evidence, KeepSchedule, Reduction, TokenState, assigned_index, exact
from clca.reductions.registry import register_reduction
from clca.reductions.rules import PatchMergerRule


@register_reduction("patchmerger")
class PatchMerger(PatchMergerRule, Reduction):
    """softmax(Q zᵀ) z with z = LayerNorm(x) over all tokens but the prefix."""

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        super().__init__(dim, index, num_locations, num_patches, schedule)
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(schedule.static_count(num_patches, index), dim))

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        z = self.norm(x[:, state.prefix :])
        with exact(x):  # scores are sums over C of unit variance, too large for half precision
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            weights = (self.queries.to(z.dtype) @ z.transpose(1, 2)).softmax(dim=-1)  # [B, M, n]
            merged = weights @ z
        if state.owner is not None:
            state.move(assigned_index(weights.argmax(dim=1), state.prefix))
        return torch.cat([x[:, : state.prefix], merged.to(x.dtype)], dim=1)
