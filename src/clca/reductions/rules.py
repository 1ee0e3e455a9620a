"""The rule of each reduction: where it acts, what it reads, how many tokens it leaves, and what that costs.

docs/method.md, "What token reduction does", explains the rules. Every reduction inherits its rule, and its forward pass
counts by it. Rules are plain Python, because the plan of a study asks them for thousands of models and must not wait
for torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


class KeepSchedule:
    """Keep rates by location, and the counts that follow from them.

    Args:
        keep_rate: One rate for all locations, or one per location.
        num_locations: Number of reduction blocks.
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
class TokenCounts:
    """What the number of tokens that a reduction leaves depends on; the part of `TokenState` without tensors.

    Attributes:
        prefix: T, the number of the backbone's own leading tokens, never reduced.
        num_patches: P of the first sequence, from which static counts are computed.
        schedule: Keep rates.
        appended: Number of tokens at the end that came from the cross-layer cache, carriers included.
        cache_on: Whether the cross-layer cache is used.
        training: Whether the model is in training mode.
    """

    prefix: int
    num_patches: int
    schedule: KeepSchedule
    appended: int = 0
    cache_on: bool = False
    training: bool = False


class ReductionRule:
    """What is known about a reduction at one location without running it.

    `tokens_after` and `macs` are optional for a reduction of another package: without them its cost is measured.

    Class attributes:
        place: "inside" the block, between attention and MLP, or "before" it.
        needs: The fields of `Evidence` that the reduction reads.
        alters_attention: Whether later attentions need a key bias or a mask.
        fixed_counts: Whether parameters depend on the keep rate or the number of patches, neither of which can then be
            set at run time.
        pads: Whether the number of tokens varies by image, so that a batch is padded.
        fuses: Whether the result of `select` has a fused token.

    Args:
        dim: Embedding width C.
        index: j, the position of this location among the locations, from 0.
        num_locations: Number of locations.
        num_patches: P at the configured image size.
        schedule: Keep rates at construction; at run time `state.schedule` holds.
    """

    place: ClassVar[Literal["inside", "before"]] = "inside"
    needs: ClassVar[frozenset[str]] = frozenset()
    alters_attention: ClassVar[bool] = False
    fixed_counts: ClassVar[bool] = False
    pads: ClassVar[bool] = False
    fuses: ClassVar[bool] = False

    def __init__(self, dim: int, index: int, num_locations: int, num_patches: int, schedule: KeepSchedule) -> None:
        self.dim, self.index, self.num_locations = dim, index, num_locations

    def keeps_all(self, num_tokens: int, state: TokenCounts) -> bool:
        """Whether nothing would be removed from `num_tokens` tokens, so that the block runs as it is."""
        return False

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        """How many of `num_tokens` tokens are left, prefix and cached tokens included; the most where `pads`."""
        raise NotImplementedError

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        """Multiply-accumulates of the reduction itself for one image, without the evidence that it `needs`.

        Args:
            num_tokens: N, the number of tokens that it is given.
            state: What counts depend on.
            head_dim: d, the width of an attention head and so of the mean keys.
        """
        raise NotImplementedError

    @classmethod
    def has_cost(cls) -> bool:
        """Whether `tokens_after` and `macs` are defined for what this class computes.

        They are not where a subclass overrides `reduce` or `select` alone: what it inherits is the cost of another.
        """
        computes = _owner(cls, "reduce", "select")
        for owner in (_owner(cls, "tokens_after"), _owner(cls, "macs")):
            if owner is ReductionRule:
                return False
            own = issubclass(owner, computes) if computes is not None else True
            mixed_in = computes is not None and owner in computes.__bases__ and not hasattr(owner, "reduce")
            if not (own or mixed_in):
                return False
        return True


def _owner(cls: type, *names: str) -> Any:
    """The class, of `cls` and its parents, whose definition of one of these names counts."""
    return next((parent for parent in cls.__mro__ if any(name in vars(parent) for name in names)), None)


class TopKRule(ReductionRule):
    """ceil(k · candidates) tokens."""

    place = "inside"
    needs = frozenset({"cls_attention"})

    def count(self, candidates: int, state: TokenCounts) -> int:
        """How many of `candidates` tokens are kept."""
        return math.ceil(state.schedule.rate(self.index) * candidates)

    def keeps_all(self, num_tokens: int, state: TokenCounts) -> bool:
        candidates = num_tokens - state.prefix
        return self.count(candidates, state) >= candidates

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        return state.prefix + self.count(num_tokens - state.prefix, state)

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        return 0


class EViTRule(TopKRule):
    """As Top-K, and one fused token, a weighted sum over all N."""

    fuses = True

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        return super().tokens_after(num_tokens, state) + 1

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        return num_tokens * self.dim


class ATSRule(ReductionRule):
    """At most one token per sample point."""

    place = "inside"
    needs = frozenset({"cls_attention", "value_norms"})
    alters_attention = True
    pads = True

    def steps(self, state: TokenCounts) -> int:
        """S, the reciprocal of the distance between two sample points."""
        return state.schedule.static_count(state.num_patches, self.index) + 1

    def num_points(self, state: TokenCounts) -> int:
        """m, the number of sample points: at most that many tokens are kept."""
        steps = self.steps(state)
        # In double precision as written: rounding lifts the quotient for some S, and the published counts need it.
        return math.ceil(((2 * steps - 1) / (2 * steps) - 1 / (2 * steps)) / (1 / steps))

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        return state.prefix + min(self.num_points(state), num_tokens - state.prefix)

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        return 0


class ToMeRule(ReductionRule):
    """r tokens merge; similarities of all candidates at even places with all at odd ones."""

    place = "inside"
    needs = frozenset({"mean_keys"})
    alters_attention = True

    def removed(self, num_tokens: int, state: TokenCounts) -> int:
        """r, how many of `num_tokens` tokens merge away at this location."""
        patches, share = state.num_patches, state.schedule.share
        before = patches if self.index == 0 else math.floor(patches * share(self.index - 1))
        return min(before - math.floor(patches * share(self.index)), (num_tokens - state.prefix) // 2)

    def keeps_all(self, num_tokens: int, state: TokenCounts) -> bool:
        return self.removed(num_tokens, state) <= 0

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        return num_tokens - self.removed(num_tokens, state)

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        candidates = num_tokens - state.prefix
        even = (candidates + (state.prefix + 1) % 2) // 2
        return even * (candidates - even) * head_dim


class DynamicViTRule(ReductionRule):
    """A share of the candidates in evaluation, all of them in training; a predictor of four linear layers."""

    place = "before"
    alters_attention = True

    def count(self, candidates: int, state: TokenCounts) -> int:
        """How many of `candidates` tokens are kept in evaluation."""
        if state.cache_on:
            count = math.floor((candidates - 1) * state.schedule.rate(self.index))
        else:
            count = math.floor(state.schedule.share(self.index) * state.num_patches)
        return min(max(count, 1), candidates)

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        candidates = num_tokens - state.prefix
        return state.prefix + (candidates if state.training else self.count(candidates, state))

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        half, quarter = self.dim // 2, self.dim // 4
        each = self.dim**2 + self.dim * half + half * quarter + quarter * 2
        return (num_tokens - state.prefix) * each


class _FixedCountRule(ReductionRule):
    """The candidates become floor(P · share) tokens, a number that parameters depend on."""

    place = "before"
    fixed_counts = True

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        return state.prefix + state.schedule.static_count(state.num_patches, self.index)


class PatchMergerRule(_FixedCountRule):
    """floor(P · share) queries, which attend to all candidates."""

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        queries = state.schedule.static_count(state.num_patches, self.index)
        return 2 * queries * (num_tokens - state.prefix) * self.dim


class SiTRule(_FixedCountRule):
    """floor(P · share) soft clusters, predicted from each candidate by two linear layers."""

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        clusters, half = state.schedule.static_count(state.num_patches, self.index), self.dim // 2
        return (num_tokens - state.prefix) * (self.dim * half + half * clusters + clusters * self.dim)


class DPCKNNRule(ReductionRule):
    """floor(P · share) clusters, from the distances between all patch tokens; a score for each token."""

    place = "before"
    MIN_CLUSTERS: ClassVar[int] = 5
    MAX_ROWS: ClassVar[int] = 1024
    """Rows of distances held at once; of more patch tokens than that the distances are computed again when needed."""

    def clusters(self, patches: int, state: TokenCounts) -> int:
        """How many clusters `patches` patch tokens form."""
        count = state.schedule.static_count(state.num_patches, self.index)
        if self.index < self.num_locations - 1:
            count = max(count, self.MIN_CLUSTERS)
        return min(count, patches)

    def tokens_after(self, num_tokens: int, state: TokenCounts) -> int:
        patches = num_tokens - state.prefix - state.appended
        return num_tokens - patches + self.clusters(patches, state)

    def macs(self, num_tokens: int, state: TokenCounts, head_dim: int) -> int:
        patches = num_tokens - state.prefix - state.appended
        pairs = patches**2
        if patches > self.MAX_ROWS:  # once for the density, once for the nearest denser token, then to the centres
            pairs = 2 * patches**2 + self.clusters(patches, state) * patches
        return (pairs + num_tokens) * self.dim
