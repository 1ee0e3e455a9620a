"""ToMe (Bolya et al., ICLR 2023): merge the most similar tokens, and track how many each stands for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clca.reductions.base import Evidence, Reduction, TokenState, descending, exact, take
from clca.reductions.registry import register_reduction
from clca.reductions.rules import ToMeRule

_ROWS = 512
_LAST = 2**20  # a rank after all others


@register_reduction("tome")
class ToMe(ToMeRule, Reduction):
    """Bipartite soft matching on the head-mean keys, with proportional attention from then on."""

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        assert evidence.mean_keys is not None
        batch, num_tokens, _ = x.shape
        r = self.removed(num_tokens, state)
        sources, targets = _match(evidence.mean_keys.detach(), r, state.prefix)  # [B, r] positions in x
        if state.size is None:
            state.size = x.new_ones(batch, num_tokens, dtype=torch.promote_types(x.dtype, torch.float32))
        size = state.size

        # New positions: merged tokens go to their target, the others behind the prefix, even places first.
        position = torch.arange(num_tokens, device=x.device)
        rank = position + num_tokens * (position % 2) * (position >= state.prefix)
        rank = rank.expand(batch, -1).scatter(1, sources, _LAST)
        survivors = rank.argsort(dim=1)[:, : num_tokens - r]  # [B, N - r]
        places = position[: num_tokens - r].expand(batch, -1)
        new_index = torch.zeros_like(rank).scatter(1, survivors, places)
        new_index = new_index.scatter(1, sources, new_index.gather(1, targets))

        weighted = x * size.unsqueeze(-1).to(x.dtype)
        goal = new_index.gather(1, targets)
        total = take(size.unsqueeze(-1), survivors).squeeze(-1).scatter_add(1, goal, size.gather(1, sources))
        summed = take(weighted, survivors)
        summed = summed.scatter_add(1, goal.unsqueeze(-1).expand(-1, -1, x.shape[-1]), take(weighted, sources))
        state.size = total
        state.key_bias = total.log()[:, None, None]
        state.move(new_index)
        return summed / total.unsqueeze(-1).to(x.dtype)


def _match(metric: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Positions [B, r] of the r tokens that merge away, and of the tokens that they merge into.

    Args:
        metric: Features whose similarity is compared, [B, N, d].
        r: Number of pairs that merge.
        prefix: Number of leading tokens that neither merge nor are merged into.
    """
    metric = F.normalize(metric, dim=-1)
    first_even, first_odd = prefix + prefix % 2, prefix + (prefix + 1) % 2
    even, odd = metric[:, first_even::2], metric[:, first_odd::2]
    with exact(metric):
        # In chunks of sources: all pairs at once would take memory quadratic in the tokens.
        pairs = [(rows @ odd.transpose(1, 2)).max(dim=-1) for rows in even.split(_ROWS, dim=1)]
        best, target = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))  # [B, sources]
    merged = descending(best)[:, :r]
    return first_even + 2 * merged, first_odd + 2 * target.gather(1, merged)
