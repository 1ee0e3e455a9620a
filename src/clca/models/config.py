"""What a model is, as data: validated, saved with every run, and enough to build the same model again."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from clca.errors import ClcaError
from clca.system.settings import Settings, explain


def _is_rate(rate: float) -> float:
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise ValueError("a keep rate is a share of tokens above 0 and at most 1, such as 0.25")
    return rate


def _are_locations(locations: tuple[int, ...]) -> tuple[int, ...]:
    if any(block < 0 for block in locations):
        raise ValueError("blocks are numbered from 0")
    if any(a >= b for a, b in pairwise(locations)):
        raise ValueError("locations are distinct block numbers in ascending order, such as 3 6 9")
    return locations


# The upper limits are beyond all use: a typing error, or a file from elsewhere, is refused before memory is taken.
LARGEST_SIDE = 16_384
Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Rate = Annotated[float, AfterValidator(_is_rate)]
Locations = Annotated[tuple[int, ...], AfterValidator(_are_locations)]


class ModelConfig(Settings):
    """Settings of a `TokenReducedViT`; the fields are the arguments of `clca.create_model`."""

    backbone: str = Field(
        description="Name of a timm ViT, such as deit3_small_patch16_224.fb_in1k or vit_small_patch14_dinov2."
    )
    num_classes: int = Field(1000, ge=0, le=1_000_000, description="Number of classes; 0: features instead of logits.")
    img_size: Pixels | tuple[Pixels, Pixels] | None = Field(
        None,
        description="Side of the square images in pixels, a multiple of the patch size. If omitted: the model's own.",
    )
    reduction: str = Field(
        "none",
        description="Token reduction: none, topk, evit, dynamicvit, ats, tome, patchmerger, sit, dpcknn or your own.",
    )
    keep_rate: Rate | tuple[Rate, ...] = Field(
        1.0, description="Share of tokens kept at each location (0.1: a tenth), or one share per location."
    )
    locations: Locations | None = Field(
        None,
        description="Blocks that reduce, numbered from 0. If omitted: after a quarter, half and three quarters of the "
        "depth.",
    )
    cla: bool = Field(True, description="Cross-Layer Aggregation head: classify from the CLS tokens of several depths.")
    clc: bool = Field(True, description="Cross-Layer Cache: carry features of earlier layers past every reduction.")
    num_clr: int = Field(1, ge=0, le=1024, description="Learned carrier tokens (CLR) of the cache.")
    clc_gap: bool = Field(True, description="Cache the average of the tokens too.")
    clc_recover_at_last: bool = Field(True, description="Recover from the cache before the last block as well.")
    cla_width: int = Field(2, ge=1, le=1024, description="Features per channel in the aggregation head.")
    backbone_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further keywords for timm.create_model, such as a depth."
    )

    def to_dict(self) -> dict[str, Any]:
        """The settings by name; PEFT asks it of what a model calls `config`."""
        return self.model_dump()


def spelled(keep_rate: float | tuple[float, ...]) -> str:
    """A keep rate, or one a location, as the command line takes it."""
    rates = keep_rate if isinstance(keep_rate, tuple) else (keep_rate,)
    return " ".join(f"{rate:g}" for rate in rates)


def validated(**fields: Any) -> ModelConfig:
    """Build a `ModelConfig`; a wrong field raises a `ClcaError` of one line in place of pydantic's report."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        raise ClcaError(explain(error, ModelConfig)) from None
