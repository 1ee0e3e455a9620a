"""Training, evaluation and prediction: `train(config)`, `evaluate(run)`, `predict(model, paths)`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clca.training.config import DataConfig, TrainConfig
    from clca.training.loop import Interrupted, RunResult, train

__all__ = ["DataConfig", "Interrupted", "RunResult", "TrainConfig", "train"]

_HOMES = {
    "DataConfig": "config",
    "TrainConfig": "config",
    "Interrupted": "loop",
    "RunResult": "loop",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the settings alone need no torch, so `clca --help` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
