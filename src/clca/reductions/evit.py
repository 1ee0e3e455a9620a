"""EViT (Liang et al., ICLR 2022): Top-K, and one token that fuses the dropped ones."""

from __future__ import annotations

from torch.nn import functional as F

from clca.reductions.base import Evidence, Selection, TokenState, behind_prefix, descending, kept_index
from clca.reductions.registry import register_reduction
from clca.reductions.rules import EViTRule
from clca.reductions.topk import TopK


@register_reduction("evit")
class EViT(EViTRule, TopK):
    """Keep as Top-K does, then append Σ aᵢ xᵢ over the dropped tokens, aᵢ not renormalised."""

    def select(self, num_tokens: int, evidence: Evidence, state: TokenState) -> Selection:
        assert evidence.cls_attention is not None
        prefix = state.prefix
        count = self.count(num_tokens - prefix, state)
        scores = evidence.cls_attention.mean(dim=1)[:, prefix:]
        kept = descending(scores)[:, :count]
        weights = F.pad(scores.scatter(1, kept, 0.0), (prefix, 0))  # [B, N]
        kept = kept + prefix
        if state.owner is not None:
            state.move(kept_index(kept, num_tokens, prefix, fill=prefix + count))
        return Selection(behind_prefix(kept, prefix), fused=weights)
