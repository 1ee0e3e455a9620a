"""`last.ckpt`: all that a run needs to go on exactly where it stopped."""

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
    """Refuse values of other types than those that are written, and counts below 0.

    Raises:
        TypeError: There are such.
    """
    for field in fields(Progress):
        value, default = getattr(progress, field.name), field.default
        if isinstance(default, (int, float)):
            counts = not isinstance(default, float)
            if type(value) not in ((int,) if counts else (int, float)) or (counts and value < 0):
                raise TypeError(f"{field.name} is {value!r}")
        elif not isinstance(value, str if isinstance(default, str) else (dict, type(None))):
            raise TypeError(f"{field.name} is a {type(value).__name__}")
    return progress
