"""Cross-Layer Cache Aggregation (Rios et al., ICASSP 2025): the cache and the heads that read several depths."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clca.errors import ClcaError
from clca.reductions.base import TokenState


class CrossLayerAggregationHead(nn.Module):
    """Classify from the CLS tokens of several depths (docs/method.md, "The cross-layer aggregation head").

    BatchNorm → depth-wise convolution over the depths (C → width · C) → BatchNorm → GELU → point-wise convolution.

    Args:
        dim: Embedding width C.
        depths: G, how many CLS tokens are aggregated.
        num_classes: K; 0 returns the features before the classifier.
        width: Number of features per channel.
    """

    def __init__(self, dim: int, depths: int, num_classes: int, width: int = 2) -> None:
        super().__init__()
        self.num_features = width * dim
        self.norm_in = nn.BatchNorm1d(dim)
        self.depthwise = nn.Conv1d(dim, self.num_features, kernel_size=depths, stride=depths, groups=dim)
        self.norm_out = nn.BatchNorm1d(self.num_features)
        self.act = nn.GELU()
        self.classifier: nn.Module
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """Replace the classifier by a new one for `num_classes` classes."""
        like = self.depthwise.weight
        self.classifier = (
            nn.Conv1d(self.num_features, num_classes, kernel_size=1, device=like.device, dtype=like.dtype)
            if num_classes > 0
            else nn.Identity()
        )

    def forward(self, cls_tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """CLS tokens [B, G, C], shallowest first, to logits [B, K], or to features [B, width · C].

        Raises:
            ClcaError: If there is one image in training, which has no deviation to divide by.
        """
        _require_batch(self.norm_out, cls_tokens)
        x = self.norm_in(cls_tokens.transpose(1, 2))  # [B, C, G]
        # A convolution whose kernel is as long as its input is a sum of products; this avoids a convolution's overhead.
        weight = self.depthwise.weight.view(x.shape[1], -1, x.shape[2])  # [C, width, G]
        x = (x.unsqueeze(2) * weight).sum(dim=-1).flatten(1) + cast(Tensor, self.depthwise.bias)
        x = self.act(self.norm_out(x))  # [B, width · C]
        if pre_logits:
            return x
        if type(self.classifier) is nn.Conv1d:
            return F.linear(x, self.classifier.weight.squeeze(-1), self.classifier.bias)
        return self.classifier(x.unsqueeze(-1)).squeeze(-1)


class LinearAggregationHead(nn.Module):
    """Classify by one linear layer from tokens of several depths: CLS, and perhaps the average of the patches.

    Each token is normalised over its channels, then each feature over the images. Not of the published method: it is
    the head that `clca train --recipe quick` fits, which has a single best solution and suits few photographs.

    Args:
        dim: Embedding width C.
        depths: G, how many tokens are aggregated.
        num_classes: K; 0 returns the features before the classifier.
    """

    def __init__(self, dim: int, depths: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = depths * dim
        self.norm_in = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm = nn.BatchNorm1d(self.num_features, affine=False)
        self.classifier: nn.Module
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """Replace the classifier by a new one for `num_classes` classes, which gives every class the same logit."""
        like = cast(Tensor, self.norm.running_mean)
        self.classifier = nn.Identity()
        if num_classes > 0:
            self.classifier = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def forward(self, cls_tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """CLS tokens [B, G, C], shallowest first, to logits [B, K], or to standardised features [B, G · C].

        Raises:
            ClcaError: If there is one image in training, which has no deviation to divide by.
        """
        _require_batch(self.norm, cls_tokens)
        x = self.norm(self.norm_in(cls_tokens).flatten(1))
        return x if pre_logits else self.classifier(x)


AggregationHead = CrossLayerAggregationHead | LinearAggregationHead


def _require_batch(norm: nn.Module, cls_tokens: Tensor) -> None:
    if norm.training and len(cls_tokens) == 1 and type(norm) is nn.BatchNorm1d:
        raise ClcaError("the aggregation head normalises over the batch: train on at least two images at once")


class CrossLayerCache:
    """Carries the average and the carriers (CLR) of every block past the next reduction.

    docs/method.md, "The cross-layer cache", explains the rule. One object serves one forward pass.

    Args:
        recover_at: Blocks after which cached tokens return, ascending.
        num_clr: R, the number of carriers at the end of the sequence.
        gap: Whether the average of the tokens is stored too.
        num_tokens: N of the first sequence.
    """

    def __init__(self, recover_at: tuple[int, ...], num_clr: int, gap: bool, num_tokens: int) -> None:
        self.recover_at, self.num_clr, self.gap = recover_at, num_clr, gap
        self.num_pooled = num_tokens - num_clr
        self.tokens: list[Tensor] = []
        self.valid: list[Tensor | None] = []  # None: all of them

    def recover_and_store(self, index: int, x: Tensor, state: TokenState) -> Tensor:
        """Recover at a recovery block, then store for the next one; returns x [B, N, C] with what was recovered."""
        if index in self.recover_at:
            self.num_pooled = x.shape[1]
            if self.tokens:
                recovered = torch.cat(self.tokens, dim=1)
                x = torch.cat([x, recovered], dim=1)
                state.append(recovered.shape[1], self._all_valid() if state.valid is not None else None)
                self.tokens, self.valid = [], []
        if index < self.recover_at[-1]:
            self._store(x, state)
        return x

    def _store(self, x: Tensor, state: TokenState) -> None:
        if self.gap:
            self._push(self._average(x, state), None)
        if not self.num_clr:
            return
        if state.valid is None:
            self._push(x[:, -self.num_clr :], None)
            return
        # In a padded batch the last tokens of an image are not at the last positions of its row.
        order = state.valid.to(torch.uint8).argsort(dim=1, stable=True)[:, -self.num_clr :]
        clr = x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        self._push(clr, state.valid.gather(1, order))

    def _push(self, tokens: Tensor, valid: Tensor | None) -> None:
        self.tokens.append(tokens)
        self.valid.append(valid)

    def _all_valid(self) -> Tensor:
        """Which of the stored tokens are real, [B, M]."""
        pairs = zip(self.tokens, self.valid, strict=True)
        return torch.cat([t.new_ones(t.shape[:2], dtype=torch.bool) if v is None else v for t, v in pairs], dim=1)

    def _average(self, x: Tensor, state: TokenState) -> Tensor:
        """Mean of the tokens between the prefix and what was recovered last. [B, 1, C]"""
        first, last = state.prefix, self.num_pooled
        pooled = x[:, first:last]
        if state.masked and state.policy is not None:
            weight = state.policy[:, first:last]
        elif state.valid is not None:
            weight = state.valid[:, first:last]
        else:
            return pooled.mean(dim=1, keepdim=True)
        weight = weight.to(x.dtype).unsqueeze(-1)
        # Weights are 0 or 1: at least one keeps an image without a kept token finite.
        return (pooled * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)
