"""What every token reduction shares: the contract, the evidence it can ask for, and the state of the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from clca.kernels.selection import Selection as Selection
from clca.kernels.selection import exact as exact
from clca.kernels.selection import take as take
from clca.reductions.rules import KeepSchedule, ReductionRule, TokenCounts


@dataclass
class Evidence:
    """What a reduction can read from the attention of its block, computed beside the fused kernel.

    Attributes:
        cls_attention: CLS row of the attention, [B, H, N].
        mean_keys: Keys averaged over the heads, [B, N, d].
        value_norms: L2 norm of each head's values, [B, H, N].
    """

    cls_attention: Tensor | None = None
    mean_keys: Tensor | None = None
    value_norms: Tensor | None = None


@dataclass
class TokenState(TokenCounts):
    """What accompanies the tokens through one forward pass; a reduction updates it together with the tokens.

    Attributes:
        key_bias: What later attentions add to the logits of each key, [B, 1, 1, N].
        size: How many tokens each token stands for (ToMe), [B, N].
        valid: False at padded places (ATS), [B, N].
        policy: 1 where a token is kept (DynamicViT), [B, N].
        recovered_policy: The policy with which recovered tokens enter.
        masked: Whether attention and pooling are weighted by `policy` (DynamicViT in training).
        losses: What the reductions add to the training loss, one scalar per location.
        owner: While tracing, the index of the token that holds each patch, -1 where it was dropped, [B, P].
        fused: While tracing, whether a patch went into a fused token, here or at an earlier location, [B, P].
    """

    key_bias: Tensor | None = None
    size: Tensor | None = None
    valid: Tensor | None = None
    policy: Tensor | None = None
    recovered_policy: float = 1.0
    masked: bool = False
    losses: list[Tensor] = field(default_factory=list)
    owner: Tensor | None = None
    fused: Tensor | None = None

    def append(self, count: int, valid: Tensor | None = None) -> None:
        """Extend the state by `count` recovered tokens at the end; `valid` [B, count] is False at padded ones."""
        self.appended += count
        if self.size is not None:
            self.size = _extend(self.size, count, 1.0)
        if self.policy is not None:
            self.policy = _extend(self.policy, count, self.recovered_policy)
        if self.valid is not None:
            real = torch.ones_like(self.valid[:, :1]).expand(-1, count) if valid is None else valid
            self.valid = torch.cat([self.valid, real], dim=1)
            self.key_bias = padding_bias(self.valid)
        elif self.key_bias is not None:
            self.key_bias = _extend(self.key_bias, count, 0.0)

    def move(self, new_index: Tensor) -> None:
        """Update the owners: the token at i moved to `new_index[:, i]`, [B, N], or was dropped (-1)."""
        if self.owner is not None:
            moved = new_index.gather(1, self.owner.clamp(min=0))
            self.owner = torch.where(self.owner < 0, self.owner, moved)

    def note(self, selection: Selection) -> None:
        """Record the patches that the fused token of a selection holds; it may be a single one."""
        if self.owner is not None and selection.fused is not None:
            held = self.owner == selection.kept.shape[1]
            self.fused = held if self.fused is None else self.fused | held


class Reduction(ReductionRule, nn.Module):
    """A token reduction at one location. Subclasses are registered with `clca.register_reduction`.

    A subclass defines `reduce`; or, if it works inside the block and its result is a selection, `select`, and then
    nothing is computed for tokens that are dropped. With `tokens_after` and `macs` the plan of a study computes its
    cost; without them it builds a model and measures it.

    Class attributes and arguments are those of `ReductionRule`.
    """

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        nn.Module.__init__(self)
        ReductionRule.__init__(self, dim, index, num_locations, num_patches, schedule)

    def begin(self, x: Tensor, state: TokenState) -> None:
        """Called once per forward pass, for the reduction of the first location, before block 0. x: [B, N, C]"""

    def select(self, num_tokens: int, evidence: Evidence, state: TokenState) -> Selection:
        """Which of `num_tokens` tokens stay; updates `state`."""
        raise TypeError(f"{type(self).__name__} defines neither reduce(x, evidence, state) nor select")

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        """Reduce the tokens [B, N, C] and update `state`; returns [B, N', C]."""
        selection = self.select(x.shape[1], evidence, state)
        state.note(selection)
        return selection.of(x)

    @property
    def selects(self) -> bool:
        """Whether the reduction is a selection, defined by `select` alone."""
        return type(self).reduce is Reduction.reduce


def descending(scores: Tensor) -> Tensor:
    """Indices that sort `scores` [B, N] from large to small; of equal scores the lower index comes first."""
    return scores.argsort(dim=1, descending=True, stable=True)


def behind_prefix(index: Tensor, prefix: int) -> Tensor:
    """The positions of the prefix, followed by `index` [B, K]: [B, T + K]."""
    own = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([own, index], dim=1)


def kept_index(index: Tensor, num_tokens: int, prefix: int, fill: int = -1) -> Tensor:
    """New position of each of `num_tokens` tokens if `index` [B, M] is kept behind the prefix; else `fill`. [B, N]"""
    batch, kept = index.shape
    moved = torch.full((batch, num_tokens), fill, dtype=torch.long, device=index.device)
    moved[:, :prefix] = torch.arange(prefix, device=index.device)
    return moved.scatter(1, index, torch.arange(prefix, prefix + kept, device=index.device).expand(batch, -1))


def assigned_index(assignment: Tensor, prefix: int) -> Tensor:
    """New position of each token if candidate i joins cluster `assignment[:, i]` behind the prefix. [B, N]"""
    return behind_prefix(assignment + prefix, prefix)


def padding_bias(valid: Tensor) -> Tensor:
    """Key bias [B, 1, 1, N] that hides padded places: 0 where `valid` [B, N], -inf elsewhere."""
    return torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -math.inf)[:, None, None]


def init_linear(module: nn.Module) -> None:
    """timm's initialisation of linear layers, for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _extend(values: Tensor, count: int, fill: float) -> Tensor:
    return torch.cat([values, values.new_full((*values.shape[:-1], count), fill)], dim=-1)
