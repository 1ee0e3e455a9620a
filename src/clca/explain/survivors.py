"""`trace_survivors(model, name, images)`: the patches that each reduction keeps, for a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clca.models.token_reduced_vit import TokenReducedViT


@dataclass(frozen=True)
class SurvivorStage:
    """The tokens of a batch of images after one reduction.

    Attributes:
        block: The reduction block.
        tokens: Number of tokens after it.
        owner: The token that contains each patch, -1 for dropped patches, [B, P].
        fused: Whether each patch is in a token that fuses dropped patches (EViT), here or in an earlier stage, [B, P].
    """

    block: int
    tokens: int
    owner: NDArray[np.int64]
    fused: NDArray[np.bool_]


@dataclass(frozen=True)
class Survivors:
    """The stages and predictions of one model for a batch of images.

    Attributes:
        name: Title of the model.
        grid: Number of rows and columns of patches.
        stages: One per reduction location.
        answers: The predicted class of each image.
        probabilities: Probability of that class.
    """

    name: str
    grid: tuple[int, int]
    stages: list[SurvivorStage]
    answers: list[str]
    probabilities: list[float]


@torch.inference_mode()
def trace_survivors(model: TokenReducedViT, name: str, images: Tensor) -> Survivors:
    """Run a model on images and record which patches each reduction keeps.

    Args:
        model: A model with `classes`; it is set to evaluation mode.
        name: Title of the model.
        images: Preprocessed images, [B, 3, H, W].
    """
    logits, trace = model.eval().forward_trace(images)
    stages = [
        SurvivorStage(
            block, _count(trace.tokens[block]), trace.owner[block].cpu().numpy(), trace.fused[block].cpu().numpy()
        )
        for block in (model.locations if model.config.reduction != "none" else ())
    ]
    best = logits.float().softmax(dim=1).max(dim=1)
    classes = model.classes or [str(k) for k in range(logits.shape[1])]
    height, width = model.patch_embed.grid_size
    return Survivors(
        name,
        (int(height), int(width)),
        stages,
        [classes[k] for k in best.indices.tolist()],
        best.values.tolist(),
    )


def _count(tokens: int | Tensor) -> int:
    return tokens if isinstance(tokens, int) else round(tokens.float().mean().item())
