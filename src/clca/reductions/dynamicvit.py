"""DynamicViT (Rao et al., NeurIPS 2021): a small predictor at each location decides which tokens are kept."""

from __future__ import annotations

import torch
from torch import Tensor, cat, nn
from torch.nn import functional as F

from clca.reductions.base import (
    Evidence,
    KeepSchedule,
    Reduction,
    TokenState,
    descending,
    init_linear,
    kept_index,
    take,
)
from clca.reductions.registry import register_reduction
from clca.reductions.rules import DynamicViTRule


@register_reduction("dynamicvit")
class DynamicViT(DynamicViTRule, Reduction):
    """Evaluation drops tokens; training masks them with straight-through decisions."""

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        super().__init__(dim, index, num_locations, num_patches, schedule)
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
        )
        self.apply(init_linear)

    def begin(self, x: Tensor, state: TokenState) -> None:
        state.policy = torch.ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        state.recovered_policy = 1.0 if state.training else 0.0

    def log_probabilities(self, z: Tensor, policy: Tensor) -> Tensor:
        """log p of keep (0) and drop (1) for tokens z [B, n, C] under the policy [B, n]. [B, n, 2]"""
        z = self.in_conv(z)
        local, context = z.split([z.shape[-1] - z.shape[-1] // 2, z.shape[-1] // 2], dim=-1)
        weight = policy.unsqueeze(-1)
        mean = (context * weight).sum(dim=1, keepdim=True) / (weight.sum(dim=1, keepdim=True) + 1e-6)
        z = cat([local, mean.to(local.dtype).expand_as(context)], dim=-1)
        z = self.out_conv(z)
        return F.log_softmax(z, dim=-1, dtype=torch.promote_types(z.dtype, torch.float32))

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        assert state.policy is not None
        prefix, num_tokens = state.prefix, x.shape[1]
        policy = state.policy[:, prefix:]
        log_p = self.log_probabilities(x[:, prefix:], policy)
        if state.training:
            return self._mask(x, log_p, policy, state)
        kept = descending(log_p[..., 0])[:, : self.count(num_tokens - prefix, state)] + prefix
        state.policy = cat([state.policy[:, :prefix], state.policy.gather(1, kept)], dim=1)
        if state.owner is not None:
            state.move(kept_index(kept, num_tokens, prefix))
        return cat([x[:, :prefix], take(x, kept)], dim=1)

    def _mask(self, x: Tensor, log_p: Tensor, policy: Tensor, state: TokenState) -> Tensor:
        assert state.policy is not None
        policy = F.gumbel_softmax(log_p, tau=1.0, hard=True)[..., 0] * policy
        state.losses.append(2 * (policy.mean(dim=1) - state.schedule.share(self.index)).square().mean())
        state.policy = cat([torch.ones_like(state.policy[:, : state.prefix]), policy], dim=1)
        state.masked = True
        if state.owner is not None:
            place = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            state.move(place.masked_fill(state.policy == 0, -1))
        return x
