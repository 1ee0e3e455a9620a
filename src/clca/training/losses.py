"""The training loss: cross-entropy, smoothed or on mixed images, with classes that count by their size or the same."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from clca.training.config import TrainConfig

UNEVEN = 3
"""Ratio of the images of the largest and the smallest class beyond which accuracy is the mean over classes."""


def make_loss(
    config: TrainConfig, num_classes: int, labels: Sequence[int]
) -> tuple[Callable[[Tensor, Tensor], Tensor], Mixup | None]:
    """The loss function and, if images are mixed, timm's `Mixup`.

    Args:
        config: The run.
        num_classes: K.
        labels: Classes of the training images, [N].

    Returns:
        A function of logits [B, K] and targets (classes [B], or probabilities [B, K] after mixing), and a timm `Mixup`
        or None. The trainer adds the model's auxiliary loss.
    """
    weight = torch.from_numpy(class_weights(labels, num_classes)).float() if config.balance == "loss" else None
    if config.mixup or config.cutmix:
        mix = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.smoothing,
            num_classes=num_classes,
        )
        return SoftTargetCrossEntropy() if weight is None else _WeightedSoftTargets(weight), mix
    if weight is not None:
        return _Weighted(weight, config.smoothing), None
    return nn.CrossEntropyLoss(label_smoothing=config.smoothing), None


def class_weights(labels: Sequence[int], num_classes: int) -> np.ndarray:
    """The weight of an image of each class, [K], so that all classes count the same and the mean over images is 1."""
    counts = np.bincount(np.asarray(labels), minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = len(labels) / counts[present] / present.sum()
    return weights


def watched_measure(config: TrainConfig, labels: Sequence[int]) -> str:
    """What is compared on val: "top1", "macro" or "loss"; `labels` are the classes of the training images, [N]."""
    if config.watch != "auto":
        return config.watch
    counts = np.bincount(np.asarray(labels))
    return "macro" if counts.max() > UNEVEN * counts[counts > 0].min() else "top1"


class _Weighted:
    """The mean of weight × cross-entropy over a batch; torch's own is divided by the weights of the batch's classes.

    With label smoothing the weight is that of the true class.
    """

    def __init__(self, weight: Tensor, smoothing: float) -> None:
        self.weight, self.smoothing = weight, smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
        return (losses * self.weight.to(logits.device)[targets]).mean()


class _WeightedSoftTargets:
    """The same for mixed images, whose targets are probabilities [B, K]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets * self.weight.to(logits.device) * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
