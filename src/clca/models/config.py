"""What a model is, as data: validated, saved with every run, and enough to build the same model again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from clca.errors import ClcaError
from clca.models.keep_rates import MOST_RATES, distinct_rates, parsed_rates
from clca.models.limits import LARGEST_SIDE, SIZES
from clca.reductions import reduction_rule
from clca.system.settings import Settings, explain


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


def _are_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, bounds in SIZES.items():
        value = kwargs.get(name)
        if isinstance(value, (int, float)) and not abs(value) <= bounds.most_in_python:
            raise ValueError(f"{name} should be at most {bounds.most_in_python:,}")
    return kwargs


Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Name = Annotated[str, AfterValidator(_is_short)]
Rate = Annotated[float, AfterValidator(_is_rate)]
Locations = Annotated[tuple[int, ...], Field(max_length=1024), AfterValidator(_are_locations)]
Rates = Annotated[tuple[Rate, ...], Field(max_length=1024)]
TrainedRates = Annotated[tuple[Rate, ...], Field(max_length=MOST_RATES), AfterValidator(distinct_rates)]


class ModelConfig(Settings):
    """Settings of a `TokenReducedViT`; the fields are the arguments of `clca.create_model`."""

    backbone: Name = Field(
        description="Name of a timm ViT, such as deit3_small_patch16_224.fb_in1k or vit_small_patch14_dinov2."
    )
    num_classes: int = Field(1000, ge=0, le=1_000_000, description="Number of classes; 0: features instead of logits.")
    img_size: Pixels | tuple[Pixels, Pixels] | None = Field(
        None,
        description="Side of the square images in pixels, a multiple of the patch size. If omitted: the model's own.",
    )
    reduction: Name = Field(
        "none",
        description="Token reduction: none, topk, evit, dynamicvit, ats, tome, patchmerger, sit, dpcknn or your own.",
    )
    keep_rate: Rate | Rates = Field(
        1.0, description="Share of tokens kept at each location (0.1: a tenth), or one share per location."
    )
    keep_rates: TrainedRates | None = Field(
        None,
        description="Keep rates that one model is trained for: a list, or a range such as 0.05..1, of which five are "
        "taken. Statistics of the head are stored for each, and interpolated between them.",
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
    cla_head: Literal["convolution", "linear"] = Field(
        "convolution",
        description="Aggregation head: convolution, as published; or linear, one linear layer over all depths, which "
        "suits few photographs.",
    )
    cla_average: bool = Field(
        False,
        description="The aggregation head also reads the average of the patches before the first reduction (not in the "
        "published method).",
    )
    backbone_kwargs: Annotated[dict[str, Any], AfterValidator(_are_arguments)] = Field(
        default_factory=dict, description="Further keywords for timm.create_model, such as a depth."
    )

    @field_validator("keep_rates", mode="before")
    @classmethod
    def _range_of_rates(cls, value: Any) -> Any:
        return parsed_rates(value)

    @model_validator(mode="before")
    @classmethod
    def _smallest_rate_first(cls, given: Any) -> Any:
        """The rate in use is the smallest of `keep_rates` unless it is given."""
        if not isinstance(given, dict) or given.get("keep_rates") is None or "keep_rate" in given:
            return given
        try:
            return {**given, "keep_rate": min(map(float, parsed_rates(given["keep_rates"])))}
        except (TypeError, ValueError):
            return given  # the field's own validation names what is wrong

    @field_validator("keep_rates")
    @classmethod
    def _reduces(cls, rates: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if rates is not None and info.data.get("reduction") == "none":
            raise ValueError("reduction none keeps every token; choose one that reduces, such as evit")
        return rates

    def to_dict(self) -> dict[str, Any]:
        """The settings by name; PEFT asks it of what a model calls `config`."""
        return self.model_dump()

    def resolved(self, depth: int, *, global_pool: str = "token", opaque_block: str | None = None) -> ResolvedConfig:
        """Where these settings reduce and recover tokens, on a backbone of `depth` blocks.

        Args:
            depth: Number of blocks, L.
            global_pool: How the backbone's own head pools, as timm names it.
            opaque_block: Description of a block inside which no tokens can be reduced; None if there is none.

        Raises:
            ClcaError: If the settings do not fit together, or do not fit the backbone.
        """
        locations = self._locations(depth)
        if not isinstance(self.keep_rate, float) and len(self.keep_rate) != len(locations):
            raise ClcaError(
                f"keep_rate has {len(self.keep_rate)} rates for the {len(locations)} locations {list(locations)}: "
                "give one rate, or one a location"
            )
        rule = reduction_rule(self.reduction)
        if rule is not None:
            if not locations:
                raise ClcaError(f"reduction {self.reduction!r} has no locations: name at least one block")
            if opaque_block is not None and (rule.place == "inside" or rule.alters_attention):
                raise ClcaError(
                    f"{self.backbone}: reduction {self.reduction!r} works inside attention, and {opaque_block} is "
                    "not one it knows: choose patchmerger, sit or dpcknn, or another backbone"
                )
            if self.keep_rates is not None and rule.fixed_counts:
                raise ClcaError(
                    f"keep_rates: the parameters of {self.reduction} depend on the keep rate, so one model cannot have "
                    "several: choose topk, evit, tome, ats, dynamicvit or dpcknn, or train a model for each rate"
                )
            if rule.pads and not self.cla and global_pool == "prr":
                raise ClcaError(f"{self.backbone}: 'prr' pooling cannot leave out the padding of {self.reduction}")
        return ResolvedConfig(
            locations=locations,
            recover_at=self._recovery_blocks(locations, depth),
            num_clr=self.num_clr if self.clc else 0,
        )

    def _locations(self, depth: int) -> tuple[int, ...]:
        if self.locations is None:
            proposed = {depth // 4, depth // 2, 3 * depth // 4}
            return tuple(sorted(b for b in proposed if not (self.cla and b == depth - 1)))
        for block in self.locations:
            if block >= depth:
                raise ClcaError(
                    f"location {block} is outside {self.backbone}, whose blocks are 0 to {depth - 1}: "
                    f"choose locations below {depth - 1}"
                )
            if self.cla and block == depth - 1:
                raise ClcaError(
                    f"location {block} is the last block, whose CLS token the aggregation head reads anyway: "
                    f"choose locations below {depth - 1}, or cla=False"
                )
        return self.locations

    def _recovery_blocks(self, locations: tuple[int, ...], depth: int) -> tuple[int, ...]:
        if not self.clc:
            return ()
        if not self.num_clr and not self.clc_gap:
            raise ClcaError(
                "clc needs something to carry: num_clr of at least 1, or clc_gap; or turn it off with clc=False"
            )
        last = {depth - 2} if self.clc_recover_at_last and depth >= 2 else set()
        if not last | set(locations):
            raise ClcaError("clc has no block to recover at: name a location, or turn on clc_recover_at_last")
        return tuple(sorted(last | set(locations)))


@dataclass(frozen=True)
class ResolvedConfig:
    """What `ModelConfig.resolved` finds for a backbone of a given depth; blocks are numbered from 0.

    Attributes:
        locations: Blocks that reduce.
        recover_at: Blocks after which the cache returns its tokens; empty without the cache.
        num_clr: R, the number of carriers; 0 without the cache.
    """

    locations: tuple[int, ...]
    recover_at: tuple[int, ...]
    num_clr: int


def spelled(keep_rate: float | tuple[float, ...]) -> str:
    """A keep rate, or one a location, as the command line takes it."""
    rates = keep_rate if isinstance(keep_rate, tuple) else (keep_rate,)
    return " ".join(f"{rate:g}" for rate in rates)


def by_rate(keep_rate: float | tuple[float, ...]) -> tuple[float, tuple[float, ...]]:
    """A key that sorts keep rates, and tuples of them by their mean."""
    rates = keep_rate if isinstance(keep_rate, tuple) else (keep_rate,)
    return sum(rates) / len(rates), rates


def validated(**fields: Any) -> ModelConfig:
    """Build a `ModelConfig`; a wrong field raises a `ClcaError` of one line in place of pydantic's report."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        raise ClcaError(explain(error, ModelConfig)) from None
