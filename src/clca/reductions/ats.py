"""ATS (Fayyaz et al., ECCV 2022): sample tokens by their significance, a number that varies by image."""

from __future__ import annotations

import torch
from torch import Tensor

from clca.reductions.base import Evidence, Reduction, Selection, TokenState, behind_prefix, kept_index, padding_bias
from clca.reductions.registry import register_reduction
from clca.reductions.rules import ATSRule


@register_reduction("ats")
class ATS(ATSRule, Reduction):
    """Adaptive token sampling; the batch is padded, and padding is hidden from every image."""

    def sample_points(self, state: TokenState, device: torch.device) -> Tensor:
        """(2i+1) / (2S), i = 0 … m-1, in double precision where the device has it, [m]."""
        precise = torch.float32 if device.type == "mps" else torch.float64
        return (2 * torch.arange(self.num_points(state), dtype=precise, device=device) + 1) / (2 * self.steps(state))

    def select(self, num_tokens: int, evidence: Evidence, state: TokenState) -> Selection:
        assert evidence.cls_attention is not None
        assert evidence.value_norms is not None
        prefix = state.prefix
        scores = (evidence.cls_attention * evidence.value_norms).sum(dim=1)[:, prefix:].detach()  # [B, n]
        if state.valid is not None:
            scores = scores * state.valid[:, prefix:]
        scores = scores / (scores.sum(dim=1, keepdim=True) + 1e-6)
        points = self.sample_points(state, scores.device).to(scores.dtype)
        sampled = torch.zeros_like(scores, dtype=torch.bool)
        sampled = sampled.scatter(
            1, _nearest(scores.cumsum(dim=1), points), 1
        )  # not True, which torch.jit.trace cannot record

        count = sampled.sum(dim=1)  # [B]
        width = min(len(points), num_tokens - prefix)
        if not (
            torch.compiler.is_compiling() or torch.jit.is_tracing() or scores.is_cuda
        ):  # reading the count would make a GPU wait
            width = int(count.max()) if len(count) else 0
        # A stable sort of "not sampled" brings the sampled places to the front in ascending order.
        index = (~sampled).to(torch.uint8).argsort(dim=1, stable=True)[:, :width] + prefix
        real = torch.arange(width, device=count.device) < count.unsqueeze(1)
        state.valid = torch.cat([real.new_ones(count.shape[0], prefix), real], dim=1)
        state.key_bias = padding_bias(state.valid)
        if state.owner is not None:
            moved = kept_index(index, num_tokens, prefix)
            dropped = torch.cat([sampled.new_zeros(count.shape[0], prefix), ~sampled], dim=1)
            state.move(moved.masked_fill(dropped, -1))
        return Selection(behind_prefix(index, prefix))  # a padded place repeats a dropped token, which is masked


def _nearest(cumulative: Tensor, points: Tensor) -> Tensor:
    """For each point the index of the nearest value of `cumulative` [B, n]; of equally near ones the lowest. [B, m]"""
    cumulative = cumulative.contiguous()
    last = cumulative.shape[1] - 1
    points = points.repeat(cumulative.shape[0], 1)
    above = torch.searchsorted(cumulative, points)  # the first value not below the point
    below = (above - 1).clamp(min=0)
    low, high = cumulative.gather(1, below), cumulative.gather(1, above.clamp(max=last))
    take_low = ((points - low).abs() <= (high - points).abs()) | (above > last)
    # Values repeat where scores are 0, as on padding: the first of equal values is the token with a score.
    return torch.searchsorted(cumulative, torch.where(take_low, low, high)).clamp(max=last)
