"""`last.ckpt`: all that a run needs to go on exactly where it stopped."""

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
    """Where a run is. Random numbers need no entry: they follow from the seed and the step (`batches.py`).

    Attributes:
        step, epochs_done: Updates and epochs (their evaluation included) done.
        metrics_size: Bytes of `metrics.jsonl` written by then.
        loss_sum, correct, seen: Over the images of the current epoch so far.
        grad_max: Largest gradient entry since the last line of metrics.
        train, watched: Numbers of the last epoch on the training images and on the watched split.
        best, best_epoch: Numbers and number (from 1) of the best epoch on val; None before the first.
        stale: Epochs since then.
        seconds: Time spent, over all parts of the run.
        tracked: What the tracker calls the run, so that a resumed one goes on there; "" without one.
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
    """Write a checkpoint whole or not at all.

    Args:
        path: The file; replaced only once the new one is on disk.
        progress: Where the run is.
        states: State dicts by name (model, optimizer, …): tensors and plain Python values.

    Raises:
        WorkError: It could not be written.
    """
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, "progress": asdict(progress), **states}, temporary)


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a checkpoint without executing anything in it, or making more of it than it has bytes.

    Raises:
        WorkError: It is damaged or not one of ours.
    """
    try:
        check_torch_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise KeyError("format")
        return _checked(Progress(**content.pop("progress"))), content
    except Exception as error:  # a damaged file makes the reader fail in any way there is
        raise WorkError(
            f"{path}: is damaged or no checkpoint of this program ({type(error).__name__}); "
            "remove the run folder to begin again, or choose another --out"
        ) from error


def _checked(progress: Progress) -> Progress:
    """Refuse values of other types than those that are written, counts below 0, and numbers that are not finite.

    Raises:
        TypeError: There are such.
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
            fits = value is None or is_measured(value)
        if not fits:
            raise TypeError(f"{field.name} is a {type(value).__name__} that is never written")
    return progress


def is_measured(value: Any) -> bool:
    """Whether a value holds numbers by name, loss and top1 among them, as an epoch or an evaluation leaves them."""
    return isinstance(value, dict) and value.keys() >= {"loss", "top1"} and all(map(_is_number, value.values()))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def check_place(progress: Progress, steps_per_epoch: int, epochs: int) -> None:
    """Refuse a place that a run of so many steps and epochs never comes to.

    Raises:
        ValueError: It is one.
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
    """Load what AdamW holds for each parameter; settings, such as the learning rate, stay as this run's were made.

    Args:
        optimizer: AdamW, wrapped by accelerate or not.
        stored: Its `state_dict()` in a checkpoint.

    Raises:
        KeyError, TypeError, ValueError: It is of other parameters, or no such state.
    """
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in stored["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("the optimizer is of other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, held in stored["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError("the optimizer is of other parameters")
        if held.keys() != {"step", "exp_avg", "exp_avg_sq"} or not all(map(torch.is_tensor, held.values())):
            raise ValueError("the state of a parameter is not that of AdamW")
        if any(held[name].shape != parameters[number].shape for name in ("exp_avg", "exp_avg_sq")):
            raise ValueError("the state of a parameter is of another shape")
        if not all(value.is_floating_point() for value in held.values()) or held["step"].ndim or not held["step"] >= 0:
            raise ValueError("the state of a parameter is not that of AdamW")
    optimizer.load_state_dict({"state": stored["state"], "param_groups": own})
