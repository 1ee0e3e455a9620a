"""One forward pass that keeps what attention reads in every block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from clca.kernels.dispatch import can_split
from clca.models.block import attend, attention_branch, project
from clca.models.token_reduced_vit import TokenReducedViT
from clca.models.trace import Trace
from clca.reductions import TokenState


@dataclass
class Sight:
    """What one block's attention reads.

    Attributes:
        tokens: After a reduction before the block, and before one inside it, [1, N, C].
        owner: The token of these that holds each patch, -1 where it was dropped, [P].
        key_bias: What the logits of the keys get, [1, 1, 1, N].
    """

    tokens: Tensor
    owner: Tensor
    key_bias: Tensor | None


class _Watched(TokenReducedViT):
    """The same modules in an object of its own, so that others may use the model meanwhile."""

    sights: list[Sight]
    cls_tokens: Tensor | None
    _state: TokenState

    def _run_block(self, index: int, block: nn.Module, x: Tensor, state: TokenState) -> Tensor:
        self._state = state
        return super()._run_block(index, block, x, state)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if function in (attention_branch, project):
            self._look(args[1])
        elif isinstance(function, nn.Module):
            self._look(args[0])
        return super()._call(function, *args)

    def _look(self, x: Tensor) -> None:
        assert self._state.owner is not None
        self.sights.append(Sight(x, self._state.owner[0], self._state.key_bias))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        self.cls_tokens = x if self.cla_head is not None else None
        return super().forward_head(x, pre_logits)


@dataclass
class Watch:
    """What `watch` saw.

    Attributes:
        logits: [K].
        trace: Owners after every block.
        sights: One a block.
        cls_tokens: What the aggregation head read, [G, C]; None without one.
    """

    logits: Tensor
    trace: Trace
    sights: list[Sight]
    cls_tokens: Tensor | None


@torch.no_grad()
def watch(model: TokenReducedViT, image: Tensor) -> Watch:
    """Run one image [1, 3, H, W] through a model in evaluation mode, without gradients."""
    watched: _Watched = copy.copy(model)  # type: ignore[assignment]
    watched.__class__ = _Watched
    watched.sights = []
    logits, trace = watched.forward_trace(image)
    cls_tokens = watched.cls_tokens
    return Watch(logits[0], trace, watched.sights, None if cls_tokens is None else cls_tokens[0])


@torch.no_grad()
def cls_attention(block: Any, sight: Sight) -> Tensor | None:
    """The CLS row of a block's attention, mean over the heads, [N]; None for a block that clca does not know."""
    if not can_split(block):
        return None
    tokens = sight.tokens
    x = tokens if type(block) is ResPostBlock else block.norm1(tokens)
    _, evidence = attend(block.attn, x, sight.key_bias, needs=frozenset({"cls_attention"}))
    assert evidence.cls_attention is not None
    return evidence.cls_attention[0].mean(dim=0)


def scatter(values: Tensor, owner: Tensor) -> Tensor:
    """Values of tokens [N] to those of patches [P]: a token's is split evenly among its patches; 0 where dropped."""
    alive = owner >= 0
    held = torch.bincount(owner[alive], minlength=len(values)).clamp(min=1)
    return torch.where(alive, (values / held)[owner.clamp(min=0)], values.new_zeros(()))
