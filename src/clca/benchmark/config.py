"""What is measured, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from clca.models.config import Rate
from clca.reductions import list_reductions, reduction_class
from clca.system.settings import Settings
from clca.training.run_folder import distinct

Precision = Literal["fp32", "bf16", "fp16"]
Mode = Literal["eager", "cudagraph", "compiled", "onnx"]
Once = AfterValidator(lambda values: tuple(dict.fromkeys(values)))
"""Of values that are named twice, the first: none is measured twice."""


def _is_reduction(name: str) -> str:
    reduction_class(name)
    return name


def _all_reductions() -> tuple[str, ...]:
    return tuple(name for name in list_reductions() if name != "none")


class BenchmarkConfig(Settings):
    """What `clca.benchmark.benchmark` measures; the defaults take about ten minutes on two cores.

    A value that is listed twice is measured once.
    """

    models: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        ("vit_small_patch16_224",),
        min_length=1,
        description="timm ViTs, with random weights, or run folders, with their own weights and settings.",
    )
    reductions: Annotated[tuple[Annotated[str, AfterValidator(_is_reduction)], ...], Once] = Field(
        default_factory=_all_reductions,
        min_length=1,
        description="Reductions to measure. If omitted: all. A run is measured with its own.",
    )
    keep_rates: Annotated[tuple[Rate, ...], Once] = Field(
        (0.7, 0.5, 0.25, 0.1),
        min_length=1,
        description="Shares of tokens kept at every location. If omitted, a run is measured at its own rate too.",
    )
    img_sizes: Annotated[tuple[PositiveInt, ...], Once] = Field(
        (448,), min_length=1, description="Sides of the square images in pixels. A run is measured at its own."
    )
    batch_sizes: Annotated[tuple[PositiveInt, ...], Once] = Field((8, 1), min_length=1, description="Images per batch.")
    precisions: Annotated[tuple[Precision, ...], Once] = Field(
        ("fp32",), min_length=1, description="fp32, or bf16 or fp16 by autocast."
    )
    modes: Annotated[tuple[Mode, ...], Once] = Field(
        ("eager",),
        min_length=1,
        description="eager; cudagraph (captured once and replayed, on a GPU); compiled by torch.compile; or onnx (in "
        "ONNX Runtime, in fp32, inference only).",
    )
    training: bool = Field(
        False,
        description="Measure training steps (forward, backward, AdamW) instead of inference; the aggregation head "
        "needs batches of two images at least.",
    )
    cla: bool = Field(True, description="Use the Cross-Layer Aggregation head; a run has its own.")
    clc: bool = Field(True, description="Use the Cross-Layer Cache; a run has its own.")
    minutes: float = Field(10.0, gt=0, description="Time to fill with rounds; at least three rounds are measured.")
    rounds: int | None = Field(None, ge=1, description="Number of rounds, in place of `minutes`.")
    threads: int | None = Field(None, ge=1, description="CPU threads. If omitted: PyTorch's choice.")
    memory: bool = Field(True, description="Measure peak memory too, each candidate alone in a fresh process.")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: the GPU if there is one. cpu: not even then.")
    seed: int = Field(0, description="Seed of the weights, the images and the order of the candidates.")


QUICK = {"img_sizes": (224,), "keep_rates": (0.5, 0.1), "batch_sizes": (8, 1), "minutes": 1.0, "memory": False}
"""What `--quick` sets: all reductions in under two minutes on two cores."""

GROWTH = {"img_sizes": (224, 448, 896), "keep_rates": (0.1,), "batch_sizes": (1,)}
"""What `--growth` sets: how time and memory grow with the number of patches."""

TRAINING, GROWTH_TRAINING = {"batch_sizes": (8,)}, {"batch_sizes": (2,)}
"""What `--training` sets, alone and with `--growth`: one image is too few for the aggregation head."""
