"""Top-K: keep the tokens that CLS attends to most, drop the rest."""

from __future__ import annotations

from clca.reductions.base import Evidence, Reduction, Selection, TokenState, behind_prefix, descending, kept_index
from clca.reductions.registry import register_reduction
from clca.reductions.rules import TopKRule


@register_reduction("topk")
class TopK(TopKRule, Reduction):
    """Keep the ceil(k · candidates) of highest head-mean CLS attention, in descending order."""

    def select(self, num_tokens: int, evidence: Evidence, state: TokenState) -> Selection:
        assert evidence.cls_attention is not None
        prefix = state.prefix
        scores = evidence.cls_attention.mean(dim=1)[:, prefix:]
        kept = descending(scores)[:, : self.count(num_tokens - prefix, state)] + prefix  # [B, K]
        if state.owner is not None:
            state.move(kept_index(kept, num_tokens, prefix))
        return Selection(behind_prefix(kept, prefix))
