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
    take,
)
from clca.reductions.registry import register_reduction
from clca.reductions.rules import DPCKNNRule

_NEIGHBOURS = 5
_CHUNK = 128
_ROWS = DPCKNNRule.MAX_ROWS  # of the distances at once: all of them would grow with the square of the tokens


@register_reduction("dpcknn")
class DPCKNN(DPCKNNRule, Reduction):
    """Density peak clustering; tokens that the cache appended pass unchanged."""

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        super().__init__(dim, index, num_locations, num_patches, schedule)
        self.score = nn.Linear(dim, 1)
        self.apply(init_linear)

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


def assign_clusters(x: Tensor, clusters: int) -> Tensor:
    """The cluster of each token of x [B, n, C], [B, n]; clusters are numbered by falling ρ·δ of their centres."""
    with exact(x):
        n = x.shape[1]
        distances = _Distances(x)
        starts = range(0, n, _ROWS)
        density, largest = zip(*(_density(distances.rows(start, n)) for start in starts), strict=True)
        rho, farthest = torch.cat(density, dim=1), torch.stack(largest, dim=1).amax(dim=1)  # [B, n], [B]
        place = torch.arange(n, device=x.device)
        delta = torch.cat(
            [_to_denser(distances.rows(start, n), rho, place, start, farthest) for start in starts], dim=1
        )
        centres = descending(rho * delta)[:, :clusters]  # [B, M]
        cluster = distances.nearest(centres)  # [B, n]
        own = torch.arange(clusters, device=x.device).expand(x.shape[0], -1)
        return cluster.scatter(1, centres, own)


class _Distances:
    """Euclidean distances / √C between tokens in float32, exactly 0 between equal tokens; some rows at a time.

    A matrix product is many times faster than differences. In single precision its rounding would separate equal
    tokens and so decide ties; in double precision it is far below the last bit that is kept.

    Args:
        x: Tokens, [B, n, C].
    """

    def __init__(self, x: Tensor) -> None:
        precise = x.float() if x.device.type == "mps" else x.double()  # mps has no double precision
        self.x, self.scale, self.dtype = precise, x.shape[2] ** 0.5, torch.promote_types(x.dtype, torch.float32)
        self.norms = precise.square().sum(dim=-1)
        self.whole: Tensor | None = None

    def rows(self, start: int, n: int) -> Tensor:
        """Distances of the tokens from `start` on to all n, [B, rows, n]; stored if they are all there are."""
        if n > _ROWS:
            return self._between(self.x[:, start : start + _ROWS], self.norms[:, start : start + _ROWS])
        if self.whole is None:
            # In chunks that fit the cache of the processor.
            chunks = [
                self._between(some, norms)
                for some, norms in zip(self.x.split(_CHUNK, dim=1), self.norms.split(_CHUNK, dim=1), strict=True)
            ]
            self.whole = torch.cat(chunks, dim=1)
        return self.whole

    def nearest(self, centres: Tensor) -> Tensor:
        """The centre, of those at `centres` [B, M], nearest to each token, the first of equally near ones, [B, n]."""
        if self.whole is not None:
            index = centres.unsqueeze(-1).expand(-1, -1, self.whole.shape[2])
            return self.whole.gather(1, index).argmin(dim=1)
        best, cluster = None, None
        for first in range(0, centres.shape[1], _ROWS):
            some = centres[:, first : first + _ROWS]
            near, which = self._between(take(self.x, some), self.norms.gather(1, some)).min(dim=1)
            if best is None or cluster is None:
                best, cluster = near, which
            else:
                best, cluster = torch.minimum(best, near), torch.where(near < best, which + first, cluster)
        assert cluster is not None
        return cluster

    def _between(self, some: Tensor, norms: Tensor) -> Tensor:
        if some.device.type == "mps":  # without double precision, only differences keep ties
            return torch.cdist(some, self.x, compute_mode="donot_use_mm_for_euclid_dist").div_(self.scale)
        scale = norms.unsqueeze(2) + self.norms.unsqueeze(1)
        squared = torch.baddbmm(scale, some, self.x.transpose(1, 2), alpha=-2).to(self.dtype)
        bound = scale.to(self.dtype).mul_(1e-12)
        return squared.masked_fill_(squared <= bound, 0).sqrt_().div_(self.scale)


def _density(distance: Tensor) -> tuple[Tensor, Tensor]:
    """ρ of some tokens [B, rows] from their distances [B, rows, n] to all, and the largest of these, [B]."""
    nearest = distance.topk(min(_NEIGHBOURS, distance.shape[2]), dim=-1, largest=False).values
    return (-nearest.square().mean(dim=-1)).exp(), distance.flatten(1).amax(dim=1)


def _to_denser(distance: Tensor, density: Tensor, place: Tensor, start: int, largest: Tensor) -> Tensor:
    """δ of the tokens from `start` on, [B, rows]: distance to the nearest denser token, or `largest` [B]."""
    rows = slice(start, start + distance.shape[1])
    mine, other = density[:, rows].unsqueeze(2), density.unsqueeze(1)
    # j is denser than i where its density is larger, or equal and its index lower.
    denser = (other > mine) | ((other == mine) & (place < place[rows].unsqueeze(1)))
    return torch.where(denser, distance, largest[:, None, None]).amin(dim=-1)
