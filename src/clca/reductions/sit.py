"""SiT (Zong et al., ECCV 2022): self-slimmed learning, soft clusters predicted from each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clca.reductions.base import Evidence, KeepSchedule, Reduction, TokenState, assigned_index, init_linear
from clca.reductions.registry import register_reduction
from clca.reductions.rules import SiTRule


@register_reduction("sit")
class SiT(SiTRule, Reduction):
    """M learned soft clusters of all tokens but the prefix."""

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        super().__init__(dim, index, num_locations, num_patches, schedule)
        clusters = schedule.static_count(num_patches, index)
        self.weight = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, clusters)
        )
        self.scale = nn.Parameter(torch.ones(1, 1, 1))
        self.apply(init_linear)

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        tokens = x[:, state.prefix :]
        weights = (self.weight(tokens) * self.scale).softmax(dim=1)  # [B, n, M], over tokens
        if state.owner is not None:
            state.move(assigned_index(weights.argmax(dim=2), state.prefix))
        # Not `@`, which reads the batch size, so that a compiled model would be specialised to it.
        merged = torch.bmm(weights.transpose(1, 2).to(x.dtype), tokens)
        return torch.cat([x[:, : state.prefix], merged.to(x.dtype)], dim=1)
