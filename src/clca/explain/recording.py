"""Record the inputs of attention in every block during one forward pass."""

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
class AttentionInput:
    """The input of attention in one block.

    Attributes:
        tokens: Tokens after a reduction before the block, and before a reduction inside it, [1, N, C].
        owner: The token that contains each patch, -1 for dropped patches, [P].
        key_bias: Added to the attention logits of the keys, [1, 1, 1, N].
    """

    tokens: Tensor
    owner: Tensor
    key_bias: Tensor | None


class _Recorder(TokenReducedViT):
    """A recording view of a model: it shares the modules, so other threads can use the model meanwhile."""

    inputs: list[AttentionInput]
    cls_tokens: Tensor | None
    _state: TokenState

    def _run_block(self, index: int, block: nn.Module, x: Tensor, state: TokenState) -> Tensor:
        self._state = state
        return super()._run_block(index, block, x, state)

    def _checkpointed(self, function: Callable[..., Any], *args: Any) -> Any:
        if function in (attention_branch, project):
            self._record(args[1])
        elif isinstance(function, nn.Module):
            self._record(args[0])
        return super()._checkpointed(function, *args)

    def _record(self, x: Tensor) -> None:
        assert self._state.owner is not None
        self.inputs.append(AttentionInput(x, self._state.owner[0], self._state.key_bias))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        self.cls_tokens = x if self.cla_head is not None else None
        return super().forward_head(x, pre_logits)


@dataclass
class ForwardRecord:
    """The result of `record_forward`.

    Attributes:
        logits: [K].
        trace: Owners after each block.
        inputs: Input of attention, one per block.
        cls_tokens: Input of the aggregation head, [G, C]; None without one.
    """

    logits: Tensor
    trace: Trace
    inputs: list[AttentionInput]
    cls_tokens: Tensor | None


@torch.no_grad()
def record_forward(model: TokenReducedViT, image: Tensor) -> ForwardRecord:
    """Run one image [1, 3, H, W] through a model in evaluation mode, without gradients."""
    recorder: _Recorder = copy.copy(model)  # type: ignore[assignment]
    recorder.__class__ = _Recorder
    recorder.inputs = []
    logits, trace = recorder.forward_trace(image)
    cls_tokens = recorder.cls_tokens
    return ForwardRecord(logits[0], trace, recorder.inputs, None if cls_tokens is None else cls_tokens[0])


@torch.no_grad()
def cls_attention(block: Any, inputs: AttentionInput) -> Tensor | None:
    """The CLS row of a block's attention, averaged over the heads, [N]; None for an unknown kind of block."""
    if not can_split(block):
        return None
    tokens = inputs.tokens
    x = tokens if type(block) is ResPostBlock else block.norm1(tokens)
    _, evidence = attend(block.attn, x, inputs.key_bias, needs=frozenset({"cls_attention"}))
    assert evidence.cls_attention is not None
    return evidence.cls_attention[0].mean(dim=0)


def scatter(values: Tensor, owner: Tensor) -> Tensor:
    """Distribute values of tokens [N] evenly among their patches [P]; 0 for dropped patches."""
    alive = owner >= 0
    count = torch.bincount(owner[alive], minlength=len(values)).clamp(min=1)
    return torch.where(alive, (values / count)[owner.clamp(min=0)], values.new_zeros(()))
