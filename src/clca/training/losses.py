"""The training loss: cross-entropy, smoothed or on mixed images, from timm."""

from collections.abc import Callable

from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from clca.training.config import TrainConfig


def make_loss(config: TrainConfig, num_classes: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Mixup | None]:
    """The loss function and, if images are mixed, timm's `Mixup`.

    Returns:
        A function of logits [B, K] and targets (classes [B], or probabilities [B, K] after mixing), and a timm `Mixup`
        or None. The trainer adds the model's auxiliary loss.
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
