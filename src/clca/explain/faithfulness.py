"""Faithfulness of evidence maps: is the evidence on the decisive detail, and do the patches with evidence matter?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clca.models.backbones import pixels_per_patch
from clca.models.token_reduced_vit import TokenReducedViT

_STEPS = 16


def detail_share(evidence: NDArray[np.float64], detail: NDArray[np.float64]) -> tuple[float, float]:
    """The share of the positive evidence on the detail, and the share expected by chance.

    Args:
        evidence: Evidence of each patch, [P].
        detail: Share of each patch's area that is detail, [P], from `View.share_of`.

    Returns:
        Both in 0 … 1; the first is NaN if no evidence is positive.
    """
    positive = evidence.clip(min=0)
    total = positive.sum()
    return float((positive * detail).sum() / total) if total > 0 else float("nan"), float(detail.mean())


@dataclass(frozen=True)
class Curves:
    """Areas under the curves of the probability of the target, in 0 … 1 (Petsiuk et al., BMVC 2018).

    Attributes:
        deletion: Area while patches are removed, most important first; lower is better.
        insertion: Area while patches are added to an empty image; higher is better.
    """

    deletion: float
    insertion: float


@torch.no_grad()
def curves(model: TokenReducedViT, image: Tensor, order: NDArray[np.int64], target: int) -> Curves:
    """Compute the deletion and insertion curves of an order of the patches.

    Deleted patches get the mean colour of the image.

    Args:
        model: The model, in evaluation mode.
        image: Preprocessed image, [1, 3, H, W].
        order: Patches, most important first, [P].
        target: Index of the class whose probability is measured.
    """
    patches = len(order)
    rank = np.empty(patches, dtype=np.int64)
    rank[order] = np.arange(patches)
    high, wide = pixels_per_patch(model.patch_embed)
    steps = np.unique(np.linspace(0, patches, min(_STEPS, patches) + 1).round())
    first = torch.from_numpy(rank[None] < steps[:, None])  # [S, P], the most important patches of each step
    mask = first.view(len(steps), 1, image.shape[2] // high, image.shape[3] // wide).to(image)
    mask = F.interpolate(mask, size=image.shape[2:], mode="nearest")
    empty = image.mean(dim=(2, 3), keepdim=True)
    images = torch.cat([image * (1 - mask) + empty * mask, empty * (1 - mask) + image * mask])
    probability = model(images).double().softmax(dim=1)[:, target].cpu().numpy()
    deletion, insertion = probability[: len(steps)], probability[len(steps) :]
    return Curves(float(np.trapezoid(deletion, steps / patches)), float(np.trapezoid(insertion, steps / patches)))
