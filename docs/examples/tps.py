# --8<-- [start:imports]
"""TPS: fuse every pruned token into the kept token that is most similar to it.

Wei et al., "Joint Token Pruning and Squeezing Towards More Aggressive
Compression of Vision Transformers", CVPR 2023 (arXiv 2304.10716), section 3.
This is the variant eTPS, whose scores are the attention of the CLS token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

import clca
from clca.reductions import Evidence, TokenCounts, TokenState
from clca.reductions.base import descending, exact, kept_index, take

# --8<-- [end:imports]


# --8<-- [start:class]
@clca.register_reduction("tps")
class TPS(clca.Reduction):
    """Keep the tokens that CLS attends to most; fuse each other token into one of them."""

    place = "inside"
    needs = frozenset({"cls_attention"})
    # --8<-- [end:class]

    # --8<-- [start:count]
    def count(self, candidates: int, state: TokenCounts) -> int:
        """Number of tokens to keep behind the prefix."""
        return math.ceil(state.schedule.rate(self.index) * candidates)

    def keeps_all(self, num_tokens: int, state: TokenCounts) -> bool:
        candidates = num_tokens - state.prefix
        return self.count(candidates, state) >= candidates

    # --8<-- [end:count]

    # --8<-- [start:cost]
    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        return state.prefix + self.count(num_tokens - state.prefix, state)

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        # Similarities of pruned and kept tokens, and weighted sums of the pruned ones.
        candidates = num_tokens - state.prefix
        kept = self.count(candidates, state)
        return 2 * (candidates - kept) * kept * self.dim

    # --8<-- [end:cost]

    # --8<-- [start:reduce]
    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        assert evidence.cls_attention is not None  # [B, H, N]
        prefix, num_tokens = state.prefix, x.shape[1]
        count = self.count(num_tokens - prefix, state)

        # Positions in x, most attended first: kept [B, K] and pruned [B, M].
        scores = evidence.cls_attention.mean(dim=1)[:, prefix:]
        order = descending(scores) + prefix
        kept, pruned = order[:, :count], order[:, count:]
        squeezed, host = squeeze(take(x, kept), take(x, pruned))

        if state.owner is not None:
            # Kept tokens now follow the prefix; pruned tokens belong to their host.
            moved = kept_index(kept, num_tokens, prefix)
            state.move(moved.scatter(1, pruned, host + prefix))
        return torch.cat([x[:, :prefix], squeezed], dim=1)

    # --8<-- [end:reduce]


# --8<-- [start:squeeze]
def squeeze(kept: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """Fuse each pruned token [B, M, C] into the most similar kept token [B, K, C].

    This token is its host. A host has the weight e, since its similarity to itself
    is 1; a pruned token has the weight exp(cosine similarity). The weights are
    divided by their sum.

    Returns:
        The kept tokens after fusion [B, K, C], and the index of each pruned token's
        host among them [B, M].
    """
    # In float32 even under autocast, because small differences of similarity decide.
    with exact(kept):
        precise = torch.promote_types(kept.dtype, torch.float32)
        hosts, guests = kept.to(precise), pruned.to(precise)
        directions = F.normalize(hosts, dim=-1).transpose(1, 2)
        similarity = F.normalize(guests, dim=-1) @ directions  # [B, M, K]

        host = similarity.argmax(dim=-1, keepdim=True)  # the first of equal ones
        weight = similarity.gather(2, host).exp()
        weight = torch.zeros_like(similarity).scatter(2, host, weight)
        total = math.e + weight.sum(dim=1).unsqueeze(-1)  # [B, K, 1]
        squeezed = (math.e * hosts + weight.transpose(1, 2) @ guests) / total
    return squeezed.to(kept.dtype), host.squeeze(-1)


# --8<-- [end:squeeze]
