"""Which patches of a batch are left after each reduction: `trace_survivors(model, name, images)`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clca.models.token_reduced_vit import TokenReducedViT


@dataclass(frozen=True)
class SurvivorStage:
    """What is left of a batch of images after one reduction.

    Attributes:
        block: The reduction block.
        tokens: Tokens that it puts out.
        owner: The token that holds each patch, -1 where it was dropped, [B, P].
        fused: Whether a patch is in a token that fuses what was dropped (EViT), there or before, [B, P].
    """

    block: int
    tokens: int
    owner: NDArray[np.int64]
    fused: NDArray[np.bool_]


@dataclass(frozen=True)
class Survivors:
    """What one model did to a batch of images.

    Attributes:
        name: Heading.
        grid: Patches down and across.
        stages: One a reduction location.
        answers: The class given to each image.
        probabilities: Of that class.
    """

    name: str
    grid: tuple[int, int]
    stages: list[SurvivorStage]
    answers: list[str]
    probabilities: list[float]


@torch.inference_mode()
def trace_survivors(model: TokenReducedViT, name: str, images: Tensor) -> Survivors:
    """Run a model on images and record which patches each reduction leaves.

    Args:
        model: With `classes`; put in evaluation mode.
        name: Heading of its columns.
        images: As the model takes them, [B, 3, H, W].
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
