"""Which token holds each patch after each block."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clca.reductions import TokenState


@dataclass
class Trace:
    """Which token holds each patch after each block.

    Attributes:
        owner: For each block the index, in its output sequence, of the token that holds each patch
            after the block's reduction, -1 where it was dropped, each [B, P]. A fused or merged token owns all that it
            holds; in a soft merge a token goes to its largest weight.
        fused: For each block whether a patch is in a token that fuses what was dropped, there or before, each [B, P].
        tokens: For each block the number of its output tokens, before the cache recovers any: one number, or [B] where
            it varies by image (ATS).
    """

    owner: list[Tensor] = field(default_factory=list)
    fused: list[Tensor] = field(default_factory=list)
    tokens: list[int | Tensor] = field(default_factory=list)

    def record(self, num_tokens: int, state: TokenState) -> None:
        assert state.owner is not None
        self.owner.append(state.owner)
        self.fused.append(torch.zeros_like(state.owner, dtype=torch.bool) if state.fused is None else state.fused)
        self.tokens.append(num_tokens if state.valid is None else state.valid.sum(dim=1))


def first_owner(batch: int, patches: int, kept: Tensor | None, prefix: int, device: torch.device) -> Tensor:
    """The token that holds each patch before block 0; `kept` [B, M] are those that patch dropout left. [B, P]"""
    if kept is None:
        return torch.arange(prefix, prefix + patches, device=device).expand(batch, -1)
    owner = torch.full((batch, patches), -1, dtype=torch.long, device=device)
    return owner.scatter(1, kept, torch.arange(prefix, prefix + kept.shape[1], device=device).expand(batch, -1))
