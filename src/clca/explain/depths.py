"""How much each depth's CLS token contributed to a decision of the aggregation head.

Up to GELU the head is linear in the depths, so each depth's share of the features before it is exact (`kernel_shares`).
GELU mixes the depths; the logit is therefore shared out by Shapley's value, which adds up exactly (Shapley, 1953;
Lundberg and Lee, NeurIPS 2017). A depth that is taken away has the mean CLS token of training, which the head's first
BatchNorm keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from clca.models.cross_layer import CrossLayerAggregationHead

_EVERY_SUBSET = 10  # depths; their 1024 subsets are a moment's work, and beyond it random orders stand for all
_ORDERS = 128


@dataclass(frozen=True)
class DepthShare:
    """What one depth contributed.

    Attributes:
        block: The block that its CLS token comes from.
        logit: Its part of `logit - baseline`; over all depths they add up to it.
        kernel: Its part of the features that the depth-wise kernel adds up, in 0 … 1 (magnitudes, of all features).
    """

    block: int
    logit: float
    kernel: float


@torch.no_grad()
def kernel_shares(head: CrossLayerAggregationHead, cls_tokens: Tensor) -> Tensor:
    """What each depth adds to the features before GELU, against the mean CLS token.

    Args:
        head: In evaluation mode.
        cls_tokens: [G, C], shallowest first.

    Returns:
        [G, width · C]; the sum over the depths is the features less those of the mean CLS token at every depth.
    """
    both = torch.stack([cls_tokens, absent(head, len(cls_tokens))])
    normed = head.norm_in(both.transpose(1, 2))  # [2, C, G]
    change = normed[0] - normed[1]
    weight = head.depthwise.weight.view(change.shape[0], -1, change.shape[1])  # [C, width, G]
    shares = (change.unsqueeze(1) * weight).flatten(0, 1)  # [width · C, G]
    norm = head.norm_out
    scale = 1 / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
    return (shares * (scale * norm.weight if norm.affine else scale).unsqueeze(1)).T


@torch.no_grad()
def depth_shares(head: CrossLayerAggregationHead, cls_tokens: Tensor, target: int) -> tuple[Tensor, float]:
    """Shapley's value of each depth for one logit, with up to ten depths exact, beyond from 128 random orders.

    Args:
        head: In evaluation mode.
        cls_tokens: [G, C], shallowest first.
        target: The class.

    Returns:
        One value a depth [G], in double precision, and the logit of the mean CLS token at every depth. Their sum is
        the logit of `cls_tokens`, also where orders are drawn.
    """
    count = len(cls_tokens)
    gone = absent(head, count)

    def worth(present: Tensor) -> Tensor:
        """Logits [S] with the depths that are present [S, G]."""
        pieces = [head(torch.where(some.unsqueeze(-1), cls_tokens, gone))[:, target] for some in present.split(256)]
        return torch.cat(pieces).double()

    values = torch.zeros(count, dtype=torch.float64, device=cls_tokens.device)
    places = torch.arange(count, device=cls_tokens.device)
    if count <= _EVERY_SUBSET:
        subsets = torch.arange(2**count, device=cls_tokens.device)
        present = (subsets.unsqueeze(1) >> places) % 2 == 1
        logits, members = worth(present), present.sum(dim=1)
        ways = [math.factorial(s) * math.factorial(count - s - 1) / math.factorial(count) for s in range(count)]
        weight = torch.tensor([*ways, 0.0], dtype=torch.float64, device=logits.device)[members]
        for g in range(count):
            without = subsets[~present[:, g]]
            values[g] = (weight[without] * (logits[without + 2**g] - logits[without])).sum()
        return values, logits[0].item()
    draw = torch.Generator().manual_seed(0)
    for _ in range(_ORDERS):
        order = torch.randperm(count, generator=draw).to(places.device)
        rank = order.argsort()
        logits = worth(rank < torch.arange(count + 1, device=rank.device).unsqueeze(1))  # [G + 1]
        values[order] += logits.diff() / _ORDERS
    return values, logits[0].item()


def absent(head: CrossLayerAggregationHead, count: int) -> Tensor:
    """The mean CLS token of training at every one of `count` depths, [G, C]."""
    norm: nn.BatchNorm1d = head.norm_in
    mean = norm.running_mean
    like = head.depthwise.weight
    return (like.new_zeros(norm.num_features) if mean is None else mean.to(like.dtype)).expand(count, -1)
