"""`last.ckpt`: everything needed to resume a run exactly where it stopped."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from clca.errors import WorkError
from clca.models.torch_files import check_torch_file
from clca.system.files import replacing

FORMAT = 1


@dataclass
class Progress:
    """Progress of a run. Random numbers need no entry: they depend on the seed and the step (`loaders.py`).

    Attributes:
        step, epochs_done: Completed updates and epochs (including their evaluation).
        metrics_size: Size of `metrics.jsonl` at that time, in bytes.
        loss_sum, correct, seen: Over the images of the current epoch so far.
        grad_max: Largest absolute gradient since the last line of metrics.
        train, watched: Scores of the last epoch on the training images and on the validation split.
        best, best_epoch: Scores and number (from 1) of the best epoch on val; None before the first.
        stale: Epochs since the best.
        seconds: Time spent, including before it was resumed.
        tracked: Id of the run in the tracker, so that a resumed run continues there; "" without a tracker.
    """

    step: int = 0
    metrics_size: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    seen: float = 0.0
    grad_max: float = 0.0
    epochs_done: int = 0
    train: dict[str, Any] | None = None
    watched: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    best_epoch: int = 0
    stale: int = 0
    seconds: float = 0.0
    tracked: str = ""


def save_checkpoint(path: Path, progress: Progress, states: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file.
        progress: Progress of the run.
        states: State dicts by name (model, optimizer, …): tensors and plain Python values.

    Raises:
        WorkError: The file could not be written.
    """
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, "progress": asdict(progress), **states}, temporary)


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a checkpoint without executing code in it, or allocating more memory than the file has bytes.

    Raises:
        WorkError: It is damaged or not a checkpoint of this program.
    """
    try:
        check_torch_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        return _checked(Progress(**content.pop("progress"))), content
    except Exception as error:  # a damaged file can raise any exception
        raise WorkError(
            f"{path}: is damaged or no checkpoint of this program ({type(error).__name__}); "
            "remove the run folder to start again, or choose another --out"
        ) from error


def _checked(progress: Progress) -> Progress:
    """Reject values of types that are never written, negative counts, and numbers that are not finite.

    Raises:
        TypeError: A value is invalid.
    """
    for field in fields(Progress):
        value, default = getattr(progress, field.name), field.default
        if isinstance(default, int):
            fits = type(value) is int and value >= 0
        elif isinstance(default, float):
            fits = _is_number(value) and (math.isfinite(value) or field.name == "grad_max")  # with fp16 it may be inf
        elif isinstance(default, str):
            fits = isinstance(value, str)
        else:
            fits = value is None or are_scores(value)
        if not fits:
            raise TypeError(f"{field.name} is a {type(value).__name__} that is never written")
    return progress


def are_scores(value: Any) -> bool:
    """Whether a value is a dictionary of numbers with at least loss and top1, as of an epoch or an evaluation."""
    return isinstance(value, dict) and value.keys() >= {"loss", "top1"} and all(map(_is_number, value.values()))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def check_position(progress: Progress, steps_per_epoch: int, epochs: int) -> None:
    """Reject a position that a run with these steps and epochs never reaches.

    Raises:
        ValueError: The position is invalid.
    """
    whole, rest = divmod(progress.step, steps_per_epoch)
    evaluated = progress.epochs_done == whole
    if not evaluated and (rest or progress.epochs_done != whole - 1):
        raise ValueError("the epochs done are not those of the steps done")
    if progress.step > epochs * steps_per_epoch or (progress.train is None) != (progress.epochs_done == 0):
        raise ValueError("more steps than the run has, or an epoch without its numbers")
    if (rest or not evaluated) and progress.seen <= 0:
        raise ValueError("steps without images")


def load_optimizer(optimizer: Any, stored: Any) -> None:
    """Load AdamW's state of each parameter; settings, such as the learning rate, stay those of this run.

    Args:
        optimizer: AdamW, possibly wrapped by accelerate.
        stored: Its `state_dict()` in a checkpoint.

    Raises:
        KeyError, TypeError, ValueError: It is the state of other parameters, or not one of AdamW.
    """
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in stored["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("the optimizer is of other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in stored["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError("the optimizer is of other parameters")
        if moments.keys() != {"step", "exp_avg", "exp_avg_sq"} or not all(map(torch.is_tensor, moments.values())):
            raise ValueError("the state of a parameter is not that of AdamW")
        if any(moments[name].shape != parameters[number].shape for name in ("exp_avg", "exp_avg_sq")):
            raise ValueError("the state of a parameter is of another shape")
        step = moments["step"]
        if not all(value.is_floating_point() for value in moments.values()) or step.ndim or not step >= 0:
            raise ValueError("the state of a parameter is not that of AdamW")
    optimizer.load_state_dict({"state": stored["state"], "param_groups": own})
