"""The training loss: cross-entropy, smoothed or on mixed images, from timm."""

from collections.abc import Callable

from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from clca.training.config import TrainConfig


def make_loss(config: TrainConfig, num_classes: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Mixup | None]:
    """The loss and, where images are mixed, what mixes them.

    Returns:
        A function of logits (B, K) and targets (classes (B,), or after mixing probabilities (B, K)), and a timm `Mixup`
        or None. The model's auxiliary loss is added by the loop.
    """
    if config.mixup or config.cutmix:
        mix = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.smoothing,
            num_classes=num_classes,
        )
        return SoftTargetCrossEntropy(), mix
    return nn.CrossEntropyLoss(label_smoothing=config.smoothing), None
