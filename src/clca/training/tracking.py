"""A run's metrics at TensorBoard, Weights & Biases or MLflow too (`--track`): how that begins and ends."""

import json
import uuid
from typing import Any

from accelerate import Accelerator

from clca.errors import ClcaError, reason
from clca.training import run_folder as folder_of
from clca.training.config import TrainConfig, identity
from clca.training.progress import Display
from clca.training.state import RunState


def begin_tracking(held: RunState) -> None:
    """Tell the tracker of the run, or that it goes on.

    Raises:
        ClcaError: The tracker does not begin, as one that wants a login or a network.
    """
    accelerator, config, progress = held.accelerator, held.config, held.progress
    settings = {name: _plain(value) for name, value in identity(config).items()}
    for known in dict.fromkeys((progress.tracked, "")):
        try:
            accelerator.init_trackers("clca", settings, {config.track: _tracker_settings(held, known)})
            break
        except Exception as error:
            accelerator.trackers = []
            if known:  # a store that knows the run no more gets another one
                continue
            why = " ".join(str(error).split()) or type(error).__name__
            raise ClcaError(
                f"--track {config.track}: it did not begin ({why}); set it up, or leave --track away"
            ) from error
    for tracker in accelerator.trackers:
        if held.first and config.track == "wandb":
            progress.tracked = tracker.tracker.id
        elif held.first and config.track == "mlflow":
            progress.tracked = tracker.tracker.info.run_id


def _tracker_settings(held: RunState, known: str) -> dict[str, Any]:
    """What the tracker is begun with, for a run that it knows under this name, or "" for a new one."""
    if held.config.track == "tensorboard":  # what an interrupted run said after its last checkpoint is said again
        return {"purge_step": held.progress.step + 1} if held.progress.step else {}
    if held.config.track == "mlflow":
        return {"run_id": known} if known else {"run_name": held.folder.resolve().name}
    if known:
        return {"id": known, "resume": "allow"}
    # An id of our own, for older versions of accelerate begin twice offline: an empty run would be left beside ours.
    return {"id": uuid.uuid4().hex[:8], "resume": "allow", "name": held.folder.resolve().name}


def end_tracking(accelerator: Accelerator, config: TrainConfig, shown: Display) -> None:
    """A tracker that cannot end in order is no reason for the run to fail, nor to hide why it did."""
    if not accelerator.trackers:
        return
    try:
        accelerator.end_training()
    except Exception as error:
        shown.log(f"--track {config.track}: it did not end in order ({reason(error)}); {folder_of.METRICS} has it all")


def _plain(value: object) -> int | float | str | bool:
    """What every tracker takes as a setting."""
    return value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
