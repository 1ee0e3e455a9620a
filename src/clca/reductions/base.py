"""What every token reduction shares: the contract, the keep schedule, and what follows each token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from clca.kernels.selection import Selection as Selection
from clca.kernels.selection import exact as exact
from clca.kernels.selection import take as take


class KeepSchedule:
    """Keep rates by location, and the counts of METHOD section 4 that follow from them.

    Args:
        keep_rate: One rate for all locations, or one a location.
        num_locations: How many reduction blocks there are.
    """

    def __init__(self, keep_rate: float | Iterable[float], num_locations: int) -> None:
        self._single = float(keep_rate) if isinstance(keep_rate, int | float) else None
        self.rates = [self._single] * num_locations if self._single is not None else [float(k) for k in keep_rate]  # type: ignore[union-attr]

    def rate(self, j: int) -> float:
        """The keep rate of the j-th location."""
        return self.rates[j]

    def share(self, j: int) -> float:
        """The share of the first sequence that is left at the j-th location, in double precision."""
        # One rate is raised to a power first: a running product would round differently and move a floor.
        return self._single ** (j + 1) if self._single is not None else math.prod(self.rates[: j + 1])

    def static_count(self, num_patches: int, j: int) -> int:
        """floor(P · share), at least 1."""
        return max(1, math.floor(num_patches * self.share(j)))


@dataclass
class Evidence:
    """What a reduction may ask of the attention of its block, computed beside the fused kernel.

    Attributes:
        cls_attention: CLS row of the attention, [B, H, N].
        mean_keys: Keys averaged over the heads, [B, N, d].
        value_norms: L2 norm of each head's values, [B, H, N].
    """

    cls_attention: Tensor | None = None
    mean_keys: Tensor | None = None
    value_norms: Tensor | None = None


@dataclass
class TokenState:
    """What follows the tokens through one forward pass; a reduction updates it together with the tokens.

    Attributes:
        prefix: T, the number of the backbone's own leading tokens, never reduced.
        num_patches: P of the first sequence, from which static counts are computed.
        schedule: Keep rates.
        appended: How many tokens at the end came from the cross-layer cache, carriers included.
        cache_on: Whether the cross-layer cache is used.
        training: Whether the model is in training mode.
        key_bias: What later attentions add to the logits of each key, [B, 1, 1, N].
        size: How many tokens each token stands for (ToMe), [B, N].
        valid: False at padded places (ATS), [B, N].
        policy: 1 where a token is kept (DynamicViT), [B, N].
        recovered_policy: The policy with which recovered tokens enter.
        masked: Whether attention and pooling are weighted by `policy` (DynamicViT in training).
        losses: What the reductions add to the training loss, one scalar a location.
        owner: While tracing, the index of the token that holds each patch, -1 where it was dropped, [B, P].
        fused: While tracing, whether a patch went into a fused token, here or at an earlier location, [B, P].
    """

    prefix: int
    num_patches: int
    schedule: KeepSchedule
    appended: int = 0
    cache_on: bool = False
    training: bool = False
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
        """Follow `count` recovered tokens, of which `valid` [B, count] says which are real, to the end."""
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
        """Follow the owners: the token at i went to `new_index[:, i]`, -1 where it was dropped. [B, N]"""
        if self.owner is not None:
            moved = new_index.gather(1, self.owner.clamp(min=0))
            self.owner = torch.where(self.owner < 0, self.owner, moved)

    def note(self, selection: Selection) -> None:
        """Remember whose content the fused token of a selection holds, which may be a single patch."""
        if self.owner is not None and selection.fused is not None:
            held = self.owner == selection.kept.shape[1]
            self.fused = held if self.fused is None else self.fused | held


class Reduction(nn.Module):
    """A token reduction at one location. Subclasses are registered with `clca.register_reduction`.

    A subclass defines `reduce`; or, where it works inside the block and its result is a selection, `select`, and then
    nothing is computed for tokens that are dropped.

    Class attributes:
        place: "inside" the block, between attention and MLP, or "before" it.
        needs: The fields of `Evidence` that `reduce` reads.
        alters_attention: Whether later attentions need a key bias or a mask.
        fixed_counts: Whether parameters depend on the keep rate or the number of patches, of which then neither can
            be set at run time.
        pads: Whether the number of tokens varies by image, so that a batch is padded.
        fuses: Whether what `select` gives has a fused token.

    Args:
        dim: Embedding width C.
        index: j, the position of this location among the locations, from 0.
        num_locations: How many locations there are.
        num_patches: P at the configured image size.
        schedule: Keep rates at construction; at run time `state.schedule` rules.
    """

    place: ClassVar[Literal["inside", "before"]] = "inside"
    needs: ClassVar[frozenset[str]] = frozenset()
    alters_attention: ClassVar[bool] = False
    fixed_counts: ClassVar[bool] = False
    pads: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        super().__init__()
        self.dim, self.index, self.num_locations = dim, index, num_locations

    def begin(self, x: Tensor, state: TokenState) -> None:
        """Called once a forward pass, at the first location's reduction, before block 0. x: [B, N, C]"""

    def keeps_all(self, num_tokens: int, state: TokenState) -> bool:
        """Whether nothing would be removed from `num_tokens` tokens, so that the block runs as it is."""
        return False

    def select(self, num_tokens: int, evidence: Evidence, state: TokenState) -> Selection:
        """Which of `num_tokens` tokens stay; updates `state`."""
        raise TypeError(f"{type(self).__name__} does not define reduce(x, evidence, state), nor select")

    def reduce(self, x: Tensor, evidence: Evidence, state: TokenState) -> Tensor:
        """Reduce the tokens [B, N, C] and update `state`; returns [B, N', C]."""
        selection = self.select(x.shape[1], evidence, state)
        state.note(selection)
        return selection.of(x)

    @property
    def selects(self) -> bool:
        """Whether `select` is all there is to it."""
        return type(self).reduce is Reduction.reduce


def descending(scores: Tensor) -> Tensor:
    """Indices that sort `scores` [B, N] from large to small; of equal scores the lower index comes first."""
    return scores.argsort(dim=1, descending=True, stable=True)


def behind_prefix(index: Tensor, prefix: int) -> Tensor:
    """The positions of the prefix, then `index` [B, K]: [B, T + K]."""
    own = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([own, index], dim=1)


def kept_index(index: Tensor, num_tokens: int, prefix: int, fill: int = -1) -> Tensor:
    """Where each of `num_tokens` tokens went when `index` [B, M] followed the prefix; `fill` elsewhere. [B, N]"""
    batch, kept = index.shape
    moved = torch.full((batch, num_tokens), fill, dtype=torch.long, device=index.device)
    moved[:, :prefix] = torch.arange(prefix, device=index.device)
    return moved.scatter(1, index, torch.arange(prefix, prefix + kept, device=index.device).expand(batch, -1))


def assigned_index(assignment: Tensor, prefix: int) -> Tensor:
    """Where each token went when candidate i joined cluster `assignment[:, i]` behind the prefix. [B, N]"""
    return behind_prefix(assignment + prefix, prefix)


def padding_bias(valid: Tensor) -> Tensor:
    """Key bias [B, 1, 1, N] that hides padded places: 0 where `valid` [B, N], -inf elsewhere."""
    return torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -math.inf)[:, None, None]


def init_linear(module: nn.Module) -> None:
    """timm's initialisation of linear layers; pass to `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _extend(values: Tensor, count: int, fill: float) -> Tensor:
    return torch.cat([values, values.new_full((*values.shape[:-1], count), fill)], dim=-1)
