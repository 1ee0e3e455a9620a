"""Expand a configuration into candidates, and list the combinations that cannot be measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from clca.benchmark.candidates import DENSE, Candidate, check, is_run
from clca.benchmark.config import BenchmarkConfig
from clca.errors import ClcaError
from clca.evaluation.stored import by_rate
from clca.models.pretrained import from_pretrained
from clca.training.run_folder import unique_labels


def requested(config: BenchmarkConfig, device: str) -> tuple[list[list[Candidate]], list[str]]:
    """The candidates of each model and batch size, and a line for every combination that is left out.

    Args:
        config: What to measure.
        device: "cpu" or "cuda".

    Raises:
        ClcaError: A model, size or setting is invalid, a package is not installed, or no combination is left.
    """
    if "fp16" in config.precisions and device == "cpu":
        raise ClcaError("--precisions fp16 needs a GPU; on a CPU choose fp32 or bf16")
    if "cudagraph" in config.modes and device == "cpu":
        raise ClcaError("--modes cudagraph needs an NVIDIA GPU; on a CPU choose eager, compiled or onnx")
    left_out: dict[str, None] = {}  # as a set that keeps the order
    labels = unique_labels(config.models)
    groups = [
        list(_candidates(config, model, labels[model], batch, device, left_out))
        for model, batch in product(config.models, config.batch_sizes)
    ]
    if not any(groups):
        raise ClcaError("; ".join(left_out))
    everything = [candidate for group in groups for candidate in group]
    if any(candidate.mode == "onnx" for candidate in everything):
        from clca.export.onnx_file import require_onnx

        require_onnx()
    seen = set[Any]()
    for candidate in everything:
        key = candidate.model, candidate.img_size, candidate.reduction, candidate.keep_rate
        if key not in seen:
            seen.add(key)
            check(candidate)
    return [group for group in groups if group], [f"left out: {why}" for why in left_out]


def _candidates(
    config: BenchmarkConfig, model: str, label: str, batch: int, device: str, left_out: dict[str, None]
) -> Iterator[Candidate]:
    """The candidates of a group, in the order of the table."""
    sizes: tuple[int, ...] = config.img_sizes
    reductions, cla, clc = config.reductions, config.cla, config.clc
    rates: tuple[Any, ...] = config.keep_rates
    if is_run(model):
        own = from_pretrained(model)
        height, width = own.patch_embed.img_size
        if height != width:
            raise ClcaError(f"{model}: has rectangular images, {height}×{width}; only square ones are measured")
        sizes, reductions, cla, clc = (height,), (own.config.reduction,), own.config.cla, own.config.clc
        if any(getattr(reduction, "fixed_counts", False) for reduction in own.reductions):
            rates = (own.keep_rate,)
        elif "keep_rates" not in config.model_fields_set:  # the defaults include the run's own
            rates = tuple(sorted({*rates, own.keep_rate}, key=by_rate, reverse=True))
    for size, precision in product(sizes, config.precisions):
        modes = []
        for mode in config.modes:
            why = _cannot(precision, mode, config.training, cla and batch == 1)
            if why is None:
                modes.append(mode)
            else:
                left_out[why] = None
        # timm's eager dense model is always a baseline.
        for mode in modes if "eager" in modes or not modes else ["eager", *modes]:
            dense = Candidate(model, size, batch, DENSE, 1.0, precision, mode, config.training, cla, clc, device, label)
            yield dense
            if mode not in modes:
                continue
            yield dense.own_dense
            for reduction in reductions:
                for rate in rates if reduction != "none" else (1.0,):
                    yield replace(dense, reduction=reduction, keep_rate=rate)


def _cannot(precision: str, mode: str, training: bool, lone: bool) -> str | None:
    """Why a combination cannot be measured, if so; `lone`: one image per batch with the aggregation head."""
    if mode == "onnx" and training:
        return "--training and --modes onnx cannot be combined: ONNX Runtime does not train"
    if mode == "onnx" and precision != "fp32":
        return f"--precisions {precision} and --modes onnx cannot be combined: ONNX Runtime is measured in fp32"
    if training and lone:
        return (
            "--training and --batch-sizes 1 cannot be combined: the aggregation head normalises over the batch; "
            "take 2 or more, or a model without that head (--no-cla)"
        )
    return None
