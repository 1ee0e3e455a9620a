"""EViT (Liang et al., ICLR 2022): Top-K, and one token that fuses what was dropped."""

from __future__ import annotations

from torch import Tensor, cat

from clca.reductions.base import Evidence, TokenState, descending, kept_index, take
from clca.reductions.registry import register_reduction
from clca.reductions.topk import TopK


@register_reduction("evit")
class EViT(TopK):
    """Keep as Top-K does, then append Σ aᵢ xᵢ over the dropped tokens, aᵢ not renormalised (METHOD section 4)."""

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        assert evidence.cls_attention is not None
        prefix, num_tokens = state.prefix, x.shape[1]
        count = self.count(num_tokens - prefix, state)
        scores = evidence.cls_attention.mean(dim=1)[:, prefix:]
        order = descending(scores)
        kept, dropped = order[:, :count], order[:, count:]
        weights = scores.gather(1, dropped).to(x.dtype)
        fused = weights.unsqueeze(1) @ take(x, dropped + prefix)  # [B, 1, C]
        if state.owner is not None:
            state.move(kept_index(kept + prefix, num_tokens, prefix, fill=prefix + count))
        return cat([x[:, :prefix], take(x, kept + prefix), fused.to(x.dtype)], dim=1)
