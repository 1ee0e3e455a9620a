"""What is measured, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from clca.models.config import Rate
from clca.reductions import list_reductions, reduction_class
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


class BenchmarkConfig(BaseModel):
    """What `clca.benchmark.benchmark` measures; everything left away takes about ten minutes on two cores.

    What is named twice is measured once.

    Attributes:
        models: Names of timm ViTs, or run folders, whose own weights and settings are then used.
        img_sizes: Sides of the square images in pixels; a run is measured at its own.
        reductions: Names; all of them if omitted. A run is measured with its own.
        keep_rates: Shares of tokens kept at every location; left away, a run is measured at its own too.
        batch_sizes: Images at once.
        precisions: fp32, or bf16 or fp16 by autocast, as `clca train` and `clca predict` compute.
        modes: eager; cudagraph, captured once as a CUDA graph and replayed; compiled by torch.compile; or onnx,
            exported and run by ONNX Runtime.
        training: Measure training steps (forward, backward, AdamW) instead of inference.
        cla, clc: Cross-Layer Aggregation head and Cross-Layer Cache; a run has its own.
        minutes: Time to fill with rounds.
        rounds: This many instead, however long they take.
        threads: Of the CPU; None for torch's own number.
        memory: Measure peak memory too, each candidate alone in a fresh process.
        device: auto takes the GPU if there is one.
        seed: Of weights, images and the order of the candidates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(("vit_small_patch16_224",), min_length=1)
    img_sizes: Annotated[tuple[PositiveInt, ...], Once] = Field((448,), min_length=1)
    reductions: Annotated[tuple[Annotated[str, AfterValidator(_is_reduction)], ...], Once] = Field(
        default_factory=_all_reductions, min_length=1
    )
    keep_rates: Annotated[tuple[Rate, ...], Once] = Field((0.7, 0.5, 0.25, 0.1), min_length=1)
    batch_sizes: Annotated[tuple[PositiveInt, ...], Once] = Field((8, 1), min_length=1)
    precisions: Annotated[tuple[Precision, ...], Once] = Field(("fp32",), min_length=1)
    modes: Annotated[tuple[Mode, ...], Once] = Field(("eager",), min_length=1)
    training: bool = False
    cla: bool = True
    clc: bool = True
    minutes: float = Field(10.0, gt=0)
    rounds: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    memory: bool = True
    device: Literal["auto", "cpu"] = "auto"
    seed: int = 0


QUICK = {"img_sizes": (224,), "keep_rates": (0.5, 0.1), "batch_sizes": (8, 1), "minutes": 1.0, "memory": False}
"""What `--quick` sets: all reductions in under two minutes on two cores."""

GROWTH = {"img_sizes": (224, 448, 896), "keep_rates": (0.1,), "batch_sizes": (1,)}
"""What `--growth` sets: how time and memory grow with the number of patches."""

TRAINING, GROWTH_TRAINING = {"batch_sizes": (8,)}, {"batch_sizes": (2,)}
"""What `--training` sets, alone and with `--growth`: one image is too few for the aggregation head."""
