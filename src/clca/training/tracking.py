"""Start and end the report of metrics to TensorBoard, Weights & Biases or MLflow (`--track`)."""

import json
import os
import uuid
from contextlib import suppress
from importlib import import_module
from time import monotonic
from typing import Any

from clca.errors import ClcaError, reason
from clca.training.config import identity
from clca.training.progress import Display
from clca.training.run_folder import METRICS
from clca.training.state import RunState

START_SECONDS = 10.0
"""In which a tracker must start; its package is imported before."""
END_SECONDS = 10.0

_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "WANDB_INIT_TIMEOUT": "8",
}
"""By default the trackers try for minutes, silently; these give up before our deadline, and name a reason."""


def begin_tracking(state: RunState) -> None:
    """Start the tracker for a new run, or continue with a resumed one.

    Raises:
        ClcaError: The tracker does not start within seconds, for example without a login or network.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    with suppress(ImportError):  # reported by accelerate
        import_module("torch.utils.tensorboard" if state.config.track == "tensorboard" else state.config.track)
    accelerator, config, progress = state.accelerator, state.config, state.progress
    settings = {name: _plain(value) for name, value in identity(config).items()}
    deadline = monotonic() + START_SECONDS
    for known in dict.fromkeys((progress.tracked, "")):
        try:
            started = {config.track: _tracker_settings(state, known)}
            state.tracker_calls.call(
                lambda started=started: accelerator.init_trackers("clca", settings, started),  # type: ignore[misc]
                max(0.1, deadline - monotonic()),
            )
            break
        except Exception as error:
            accelerator.trackers = []
            if known and not isinstance(error, TimeoutError):  # the tracker no longer knows the run: register it again
                continue
            why = " ".join(str(error).split()) or type(error).__name__
            raise ClcaError(
                f"--track {config.track}: could not be started ({why}); set it up, or omit --track"
            ) from error
    for tracker in accelerator.trackers:
        if state.first and config.track == "wandb":
            progress.tracked = tracker.tracker.id
        elif state.first and config.track == "mlflow":
            progress.tracked = tracker.tracker.info.run_id


def _tracker_settings(state: RunState, known: str) -> dict[str, Any]:
    """Arguments to start the tracker with; `known`: its id of a resumed run, or "" for a new one."""
    if state.config.track == "tensorboard":  # purge what was reported after the last checkpoint, which comes again
        return {"purge_step": state.progress.step + 1} if state.progress.step else {}
    if state.config.track == "mlflow":
        return {"run_id": known} if known else {"run_name": state.folder.resolve().name}
    if known:
        return {"id": known, "resume": "allow"}
    # With an explicit id: older versions of accelerate start twice offline, which would leave an empty second run.
    return {"id": uuid.uuid4().hex[:8], "resume": "allow", "name": state.folder.resolve().name}


def end_tracking(state: RunState, display: Display) -> None:
    """End the tracker; its failure neither fails the run nor hides an error of the run."""
    accelerator, config = state.accelerator, state.config
    if not accelerator.trackers:
        return
    try:
        state.tracker_calls.call(accelerator.end_training, END_SECONDS)
    except Exception as error:
        display.log(f"--track {config.track}: did not close properly ({reason(error)}); {METRICS} has all metrics")


def _plain(value: object) -> int | float | str | bool:
    """The value in a type that every tracker accepts."""
    return value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
