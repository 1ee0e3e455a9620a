"""The flat record of a finished run: a row of the result table."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clca.models.config import ModelConfig, spelled
from clca.system.files import file_objects, part, read_json
from clca.system.numbers import number
from clca.training.config import TrainConfig
from clca.training.run_folder import RunFolder

_VERSIONS = ("clca", "torch", "timm")


def settings_row(name: str, identity: str, labels: dict[str, str], set_name: str, split: str, config: TrainConfig,
                 arm: str) -> dict[str, Any]:  # fmt: skip
    """The columns known before a run begins: its settings."""
    model = config.model
    return {
        "run": identity,
        "name": name,
        "data": set_name,
        "split": split,
        "backbone": model.backbone,
        "reduction": model.reduction,
        "keep_rate": _one_rate(model),
        **by_block(model.reduction, model.keep_rate, model.locations),
        "img_size": model.img_size[0] if isinstance(model.img_size, tuple) else model.img_size,
        "arm": arm,
        "num_clr": model.num_clr,
        "clc_gap": model.clc_gap,
        "clc_recover_at_last": model.clc_recover_at_last,
        "cla_width": model.cla_width,
        "seed": config.seed,
        **{f"axis.{axis}": label for axis, label in labels.items()},
    }


def by_block(
    reduction: str, keep_rate: float | Sequence[float], locations: Sequence[int] | None
) -> dict[str, str | None]:
    """The columns for keep rates that differ between blocks, and for explicit locations.

    Returns:
        `keep_rates`: One rate per block, as "0.75 0.5 0.25"; None if all are equal. `locations`: The blocks, as
        "2 5 8"; None for the default, which follows from the backbone's depth.
    """
    rates = () if reduction == "none" or isinstance(keep_rate, (int, float)) else tuple(keep_rate)
    return {
        "keep_rates": spelled(rates) if len(set(rates)) > 1 else None,
        "locations": None if locations is None else " ".join(map(str, locations)),
    }


def _one_rate(model: ModelConfig) -> float:
    """The keep rate; the mean if there is one per location."""
    if model.reduction == "none":
        return 1.0
    return statistics.fmean(model.keep_rate) if isinstance(model.keep_rate, tuple) else model.keep_rate


def result_row(run: RunFolder, evaluation: Any, threads: int | None) -> dict[str, Any]:
    """The columns known after a run: its results.

    Args:
        run: The folder that training wrote.
        evaluation: The result of `clca.evaluation.evaluate`.
        threads: CPU threads; None for torch's choice.
    """
    summary, resolved = read_json(run.summary) or {}, run.resolved
    training = part(summary, "train")
    gradients = _gradients(run.metrics)
    return {
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "macro": evaluation.macro,
        "loss": evaluation.loss,
        "train_loss": training.get("loss"),
        "train_top1": training.get("top1"),
        "gmacs": evaluation.gmacs,
        "computed_gmacs": evaluation.computed_gmacs,
        "params": evaluation.params,
        "images_per_second": evaluation.images_per_second,
        "train_images": resolved.get("train_images"),
        "train_seconds": summary.get("seconds"),
        "epochs": summary.get("epochs"),
        "steps": summary.get("steps"),
        "grad_max": max(gradients, default=None),
        "grad_median": statistics.median(gradients) if gradients else None,
        "device": resolved.get("device"),
        "precision": resolved.get("precision"),
        "threads": threads,
        "host": platform.node(),
        **{name: part(run.content, "versions").get(name) for name in _VERSIONS},
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _gradients(path: Path) -> list[float]:
    """The largest gradient of every logged step."""
    values = (number(line.get("grad_max")) for line in file_objects(path))
    return [float(value) for value in values if value is not None]
