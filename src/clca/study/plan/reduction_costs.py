"""What each reduction leaves of n tokens, and what it computes itself: METHOD section 4 in numbers, without tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from clca.reductions import KeepSchedule, Reduction, TokenState, reduction_class
from clca.reductions.ats import ATS
from clca.reductions.dpcknn import _ROWS as DPCKNN_ROWS
from clca.reductions.dpcknn import DPCKNN
from clca.reductions.dynamicvit import DynamicViT
from clca.reductions.evit import EViT
from clca.reductions.patchmerger import PatchMerger
from clca.reductions.sit import SiT
from clca.reductions.tome import ToMe
from clca.reductions.topk import TopK


@dataclass(frozen=True)
class Widths:
    """Sizes of a backbone: C, T, and of its attention H · d and d."""

    dim: int
    prefix: int
    attn_dim: int
    head_dim: int


def _topk(rule: TopK, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    return own.prefix + rule.count(n - own.prefix, state), own.attn_dim * n


def _evit(rule: EViT, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    kept, attention = _topk(rule, n, state, own)
    return kept + 1, attention + n * own.dim


def _ats(rule: ATS, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    return own.prefix + min(rule.num_points(state), n - own.prefix), own.attn_dim * n


def _tome(rule: ToMe, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    even = (n - own.prefix + (own.prefix + 1) % 2) // 2  # candidates at even places
    return n - rule.removed(n, state), even * (n - own.prefix - even) * own.head_dim


def _dynamicvit(rule: DynamicViT, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    candidates, half, quarter = n - own.prefix, own.dim // 2, own.dim // 4
    kept = candidates if state.training else rule.count(candidates, state)
    return own.prefix + kept, candidates * (own.dim**2 + own.dim * half + half * quarter + quarter * 2)


def _patchmerger(rule: PatchMerger, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    count = state.schedule.static_count(state.num_patches, rule.index)
    return own.prefix + count, 2 * count * (n - own.prefix) * own.dim


def _sit(rule: SiT, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    count, half = state.schedule.static_count(state.num_patches, rule.index), own.dim // 2
    return own.prefix + count, (n - own.prefix) * (own.dim * half + half * count + count * own.dim)


def _dpcknn(rule: DPCKNN, n: int, state: TokenState, own: Widths) -> tuple[int, int]:
    patches = n - own.prefix - state.appended
    count = rule.clusters(patches, state)
    # Distances that are too many to be kept are computed twice, and those to the centres once more.
    pairs = patches**2 if patches <= DPCKNN_ROWS else 2 * patches**2 + count * patches
    return n - patches + count, pairs * own.dim + n * own.dim


# Tokens behind each reduction of n tokens, and the multiply-accumulates of its own.
REDUCED: dict[type[Reduction], Callable[[Any, int, TokenState, Widths], tuple[int, int]]] = {
    ATS: _ats,
    DPCKNN: _dpcknn,
    DynamicViT: _dynamicvit,
    EViT: _evit,
    PatchMerger: _patchmerger,
    SiT: _sit,
    ToMe: _tome,
    TopK: _topk,
}


@cache
def rule_of(name: str, index: int, num_locations: int) -> Reduction:
    """The reduction of one location, of which only its rule of counting is asked: its own width does not matter."""
    cls = reduction_class(name)
    assert cls is not None
    with torch.device("meta"):
        return cls(4, index, num_locations, 1, KeepSchedule(1.0, num_locations))
