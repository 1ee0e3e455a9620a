"""The contribution of each depth's CLS token to the output of the aggregation head.

Before GELU, the published head is linear in the depths, so the share of each depth in these features is exact
(`kernel_shares`); of the linear head the same holds for the logits. GELU mixes the depths; the logit is therefore
attributed by Shapley values, which sum up exactly (Shapley, 1953; Lundberg and Lee, NeurIPS 2017), and which for the
linear head are the products themselves. A depth that is removed is replaced by the mean CLS token of training, which
the first BatchNorm of the head stores; of the linear head by the mean of what its linear layer reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from clca.models.cross_layer import AggregationHead, CrossLayerAggregationHead, LinearAggregationHead

_MAX_EXACT_DEPTHS = 10  # all 1024 subsets are evaluated; for more depths, random orders are sampled
_ORDERS = 128


@dataclass(frozen=True)
class DepthShare:
    """The contribution of one depth.

    Attributes:
        block: The block whose output its CLS token is, or whose input the average of the patches is.
        logit: Its share of `logit - baseline`; the shares of all depths sum up to it.
        kernel: Its share of the output of the depth-wise kernel, in 0 … 1 (sum of magnitudes over all features).
    """

    block: int
    logit: float
    kernel: float
    average: bool = False
    """Whether it is the average of the patches before the first reduction, not a CLS token."""

    @property
    def name(self) -> str:
        """As pictures show it."""
        return f"patches, block {self.block}" if self.average else f"block {self.block}"


@torch.no_grad()
def kernel_shares(head: AggregationHead, cls_tokens: Tensor) -> Tensor:
    """The contribution of each depth to what the head's linear layer over the depths gives, relative to the mean token.

    That are the features before GELU, or of the linear head the logits.

    Args:
        head: The head, in evaluation mode.
        cls_tokens: [G, C], shallowest first.

    Returns:
        [G, width · C], or [G, K]; their sum over the depths is the features, or logits, minus those with the mean CLS
        token at every depth.
    """
    if isinstance(head, LinearAggregationHead):
        change = head(cls_tokens[None], pre_logits=True).view_as(cls_tokens)  # at the mean of training it is zero
        weight = cast(nn.Linear, head.classifier).weight.view(-1, *cls_tokens.shape)  # [K, G, C]
        return torch.einsum("gc,kgc->gk", change, weight)
    both = torch.stack([cls_tokens, mean_cls_tokens(head, len(cls_tokens))])
    normed = head.norm_in(both.transpose(1, 2))  # [2, C, G]
    change = normed[0] - normed[1]
    weight = head.depthwise.weight.view(change.shape[0], -1, change.shape[1])  # [C, width, G]
    shares = (change.unsqueeze(1) * weight).flatten(0, 1)  # [width · C, G]
    norm = head.norm_out
    scale = 1 / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
    return (shares * (scale * norm.weight if norm.affine else scale).unsqueeze(1)).T


@torch.no_grad()
def depth_shares(head: AggregationHead, cls_tokens: Tensor, target: int) -> tuple[Tensor, float]:
    """Shapley value of each depth for one logit: exact up to ten depths, else estimated from 128 random orders.

    Args:
        head: The head, in evaluation mode.
        cls_tokens: [G, C], shallowest first.
        target: The class.

    Returns:
        One value per depth [G], in double precision, and the logit with the mean CLS token at every depth. Together
        they sum up to the logit of `cls_tokens`, also if orders are sampled.
    """
    if isinstance(head, LinearAggregationHead):
        bias = cast(nn.Linear, head.classifier).bias[target]
        return kernel_shares(head, cls_tokens)[:, target].double(), float(bias)
    count = len(cls_tokens)
    baseline = mean_cls_tokens(head, count)

    def logits_of(present: Tensor) -> Tensor:
        """Logits [S] with only the depths in `present` [S, G], the others at the baseline."""
        batches = (torch.where(batch.unsqueeze(-1), cls_tokens, baseline) for batch in present.split(256))
        return torch.cat([head(batch)[:, target] for batch in batches]).double()

    values = torch.zeros(count, dtype=torch.float64, device=cls_tokens.device)
    places = torch.arange(count, device=cls_tokens.device)
    if count <= _MAX_EXACT_DEPTHS:
        subsets = torch.arange(2**count, device=cls_tokens.device)
        present = (subsets.unsqueeze(1) >> places) % 2 == 1
        logits, sizes = logits_of(present), present.sum(dim=1)
        weights = [math.factorial(s) * math.factorial(count - s - 1) / math.factorial(count) for s in range(count)]
        weight = torch.tensor([*weights, 0.0], dtype=torch.float64, device=logits.device)[sizes]
        for g in range(count):
            without = subsets[~present[:, g]]
            values[g] = (weight[without] * (logits[without + 2**g] - logits[without])).sum()
        return values, logits[0].item()
    generator = torch.Generator().manual_seed(0)
    for _ in range(_ORDERS):
        order = torch.randperm(count, generator=generator).to(places.device)
        rank = order.argsort()
        logits = logits_of(rank < torch.arange(count + 1, device=rank.device).unsqueeze(1))  # [G + 1]
        values[order] += logits.diff() / _ORDERS
    return values, logits[0].item()


def mean_cls_tokens(head: CrossLayerAggregationHead, count: int) -> Tensor:
    """The mean CLS token of training, repeated for `count` depths, [G, C]."""
    norm: nn.BatchNorm1d = head.norm_in
    mean = norm.running_mean
    weight = head.depthwise.weight
    return (weight.new_zeros(norm.num_features) if mean is None else mean.to(weight.dtype)).expand(count, -1)
