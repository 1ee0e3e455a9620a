"""DPC-KNN (Zeng et al., CVPR 2022): cluster the patch tokens around density peaks and merge each cluster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clca.reductions.base import (
    Evidence,
    KeepSchedule,
    Reduction,
    TokenState,
    assigned_index,
    descending,
    exact,
    init_linear,
)
from clca.reductions.registry import register_reduction

_NEIGHBOURS = 5
_MIN_CLUSTERS = 5


@register_reduction("dpcknn")
class DPCKNN(Reduction):
    """Density peak clustering; what the cache appended passes unchanged (METHOD section 4)."""

    place = "before"

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        super().__init__(dim, index, num_locations, num_patches, schedule)
        self.score = nn.Linear(dim, 1)
        self.apply(init_linear)

    def clusters(self, patches: int, state: TokenState) -> int:
        """How many clusters `patches` patch tokens form."""
        count = state.schedule.static_count(state.num_patches, self.index)
        if self.index < self.num_locations - 1:
            count = max(count, _MIN_CLUSTERS)
        return min(count, patches)

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        end = x.shape[1] - state.appended
        patches = x[:, state.prefix : end]
        clusters = self.clusters(patches.shape[1], state)
        cluster = assign_clusters(patches.detach(), clusters)  # [B, n]

        weight = self.score(x)[:, state.prefix : end].to(torch.promote_types(x.dtype, torch.float32)).exp()  # [B, n, 1]
        total = weight.new_zeros(x.shape[0], clusters, 1).scatter_add(1, cluster.unsqueeze(-1), weight)
        index = cluster.unsqueeze(-1)
        share = (weight / (total.gather(1, index) + 1e-6)).to(x.dtype)
        merged = x.new_zeros(x.shape[0], clusters, x.shape[2])
        merged = merged.scatter_add(1, index.expand_as(patches), patches * share)
        if state.owner is not None:
            first = state.prefix + clusters
            rest = torch.arange(first, first + state.appended, device=x.device).expand(x.shape[0], -1)
            state.move(torch.cat([assigned_index(cluster, state.prefix), rest], dim=1))
        return torch.cat([x[:, : state.prefix], merged, x[:, end:]], dim=1)


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances between the tokens of x [B, n, C] in float32, exactly 0 between equal tokens. [B, n, n]"""
    if x.device.type == "mps":  # has no double precision
        return torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist")
    # A matrix product is many times faster than differences; in single precision its rounding would part equal tokens
    # and so decide the ties, in double what is left of it is far below the last bit that is kept.
    x = x.double()
    norms = x.square().sum(dim=-1)
    scale = norms.unsqueeze(2) + norms.unsqueeze(1)
    squared = torch.baddbmm(scale, x, x.transpose(1, 2), alpha=-2)
    return squared.masked_fill(squared <= 1e-12 * scale, 0).sqrt().float()


def assign_clusters(x: Tensor, clusters: int) -> Tensor:
    """The cluster of each token of x [B, n, C], [B, n]; clusters are numbered by falling ρ·δ of their centres."""
    with exact(x):
        n = x.shape[1]
        distance = _distances(x).to(torch.promote_types(x.dtype, torch.float32)) / x.shape[2] ** 0.5  # [B, n, n]
        nearest = distance.topk(min(_NEIGHBOURS, n), dim=-1, largest=False).values
        density = (-nearest.square().mean(dim=-1)).exp()  # [B, n]

        # j is denser than i where its density is larger, or equal and its index lower.
        mine, other = density.unsqueeze(2), density.unsqueeze(1)
        lower = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
        denser = (other > mine) | ((other == mine) & lower)
        largest = distance.flatten(1).amax(dim=1)[:, None, None]
        delta = torch.where(denser, distance, largest).amin(dim=-1)

        centres = descending(density * delta)[:, :clusters]  # [B, M]
        cluster = distance.gather(1, centres.unsqueeze(-1).expand(-1, -1, n)).argmin(dim=1)  # [B, n]
        own = torch.arange(clusters, device=x.device).expand(x.shape[0], -1)
        return cluster.scatter(1, centres, own)
