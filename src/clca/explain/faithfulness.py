"""Whether an evidence map is right: does it lie on the detail that decides, and does what it points at matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clca.models.token_reduced_vit import TokenReducedViT

_STEPS = 16


def detail_share(evidence: NDArray[np.float64], detail: NDArray[np.float64]) -> tuple[float, float]:
    """The share of the positive evidence that lies on the detail, and the share that chance would put there.

    Args:
        evidence: [P].
        detail: Share of each patch's area that is detail, [P], as `View.share_of` gives it.

    Returns:
        Both in 0 … 1; NaN first where no evidence is positive.
    """
    positive = evidence.clip(min=0)
    total = positive.sum()
    return float((positive * detail).sum() / total) if total > 0 else float("nan"), float(detail.mean())


@dataclass(frozen=True)
class Curves:
    """Areas under the curves of the target's probability, in 0 … 1 (Petsiuk et al., BMVC 2018).

    Attributes:
        deletion: While patches disappear, most important first: the lower, the better the order.
        insertion: While they appear on an empty image: the higher, the better.
    """

    deletion: float
    insertion: float


@torch.no_grad()
def curves(model: TokenReducedViT, image: Tensor, order: NDArray[np.int64], target: int) -> Curves:
    """Delete and insert patches in an order.

    A deleted patch takes the image's mean colour.

    Args:
        model: In evaluation mode.
        image: As the model takes it, [1, 3, H, W].
        order: Patches, most important first, [P].
        target: Class whose probability is followed.
    """
    patches = len(order)
    rank = np.empty(patches, dtype=np.int64)
    rank[order] = np.arange(patches)
    high, wide = model.patch_embed.patch_size
    steps = np.unique(np.linspace(0, patches, min(_STEPS, patches) + 1).round())
    first = torch.from_numpy(rank[None] < steps[:, None])  # [S, P], the most important ones
    mask = first.view(len(steps), 1, image.shape[2] // high, image.shape[3] // wide).to(image)
    mask = F.interpolate(mask, size=image.shape[2:], mode="nearest")
    empty = image.mean(dim=(2, 3), keepdim=True)
    pictures = torch.cat([image * (1 - mask) + empty * mask, empty * (1 - mask) + image * mask])
    probability = model(pictures).double().softmax(dim=1)[:, target].cpu().numpy()
    deletion, insertion = probability[: len(steps)], probability[len(steps) :]
    return Curves(float(np.trapezoid(deletion, steps / patches)), float(np.trapezoid(insertion, steps / patches)))
