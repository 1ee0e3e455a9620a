"""What a model is, as data: validated, saved with every run, and enough to build the same model again."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clca.errors import ClcaError


def _is_rate(rate: float) -> float:
    if not (math.isfinite(rate) and 0 < rate <= 1):
        raise ValueError("a keep rate is a share of tokens above 0 and at most 1, such as 0.25")
    return rate


def _is_short(text: str) -> str:
    if len(text) > 4096:  # not by max_length, for which pydantic refuses a path that is no UTF-8
        raise ValueError(f"has {len(text):,} characters; at most 4,096 are read")
    return text


def _are_locations(locations: tuple[int, ...]) -> tuple[int, ...]:
    if any(block < 0 for block in locations):
        raise ValueError("blocks are numbered from 0")
    if any(a >= b for a, b in pairwise(locations)):
        raise ValueError("locations are distinct block numbers in ascending order, such as 3 6 9")
    return locations


# The upper limits are beyond all use: a slip of the keyboard, or a stranger's file, is refused before memory is taken.
LARGEST_SIDE = 16_384
LARGEST_ARGUMENTS = {
    "depth": 256,
    "embed_dim": 100_000,
    "num_heads": 1000,
    "mlp_ratio": 1000,
    "in_chans": 1000,
    "reg_tokens": 10_000,
}
"""Of the arguments of timm that say how large a model is."""


def _are_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, most in LARGEST_ARGUMENTS.items():
        value = kwargs.get(name)
        if isinstance(value, (int, float)) and not abs(value) <= most:
            raise ValueError(f"{name} should be at most {most:,}")
    return kwargs


Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Name = Annotated[str, AfterValidator(_is_short)]
Rate = Annotated[float, AfterValidator(_is_rate)]
Locations = Annotated[tuple[int, ...], Field(max_length=1000), AfterValidator(_are_locations)]


class ModelConfig(BaseModel):
    """Settings of a `TokenReducedViT`; the fields are the arguments of `clca.create_model`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Name
    num_classes: int = Field(1000, ge=0, le=1_000_000)
    img_size: Pixels | tuple[Pixels, Pixels] | None = None
    reduction: Name = "none"
    keep_rate: Rate | Annotated[tuple[Rate, ...], Field(max_length=1000)] = 1.0
    locations: Locations | None = None
    cla: bool = True
    clc: bool = True
    num_clr: int = Field(1, ge=0, le=1024)
    clc_gap: bool = True
    clc_recover_at_last: bool = True
    cla_width: int = Field(2, ge=1, le=1024)
    backbone_kwargs: Annotated[dict[str, Any], AfterValidator(_are_arguments)] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name; PEFT asks it of what a model calls `config`."""
        return self.model_dump()


def spelled(keep_rate: float | tuple[float, ...]) -> str:
    """A keep rate, or one a location, as the command line takes it."""
    rates = keep_rate if isinstance(keep_rate, tuple) else (keep_rate,)
    return " ".join(f"{rate:g}" for rate in rates)


def validated(**fields: Any) -> ModelConfig:
    """Build a `ModelConfig`; a wrong field raises a `ClcaError` of one line instead of pydantic's report."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        raise ClcaError(one_line(error)) from None


def one_line(error: ValidationError) -> str:
    """Pydantic's report as one line that names each field, its value and what is allowed.

    Args:
        error: What pydantic raised.

    Returns:
        `field = value: what is allowed`, several joined by semicolons.
    """
    lines: dict[str, str] = {}
    depths: dict[str, int] = {}
    for item in error.errors():
        # A union reports one error a branch; the field is one, and the last says the most general thing, unless it
        # points into a tuple.
        field = ".".join(str(part) for part in item["loc"] if isinstance(part, str) and not _is_branch(part))
        reason = item["msg"].removeprefix("Value error, ")
        if item["type"] != "value_error" and len(item["loc"]) <= depths.get(field, 0):
            continue
        depths[field] = len(item["loc"])
        lines[field] = f"{field or 'settings'} = {_short(item['input'])}: {reason}"
    return "; ".join(lines.values())


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 200 else f"{told[:200]} …"


_BRANCHES = ("tuple[", "list[", "function-", "dict[", "constrained-")


def _is_branch(part: str) -> bool:
    return part in ("int", "float", "str", "bool", "none") or part.startswith(_BRANCHES)
