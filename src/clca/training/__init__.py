"""Training, evaluation and prediction: `train(config)`, `evaluate(run)`, `sweep(run, rates)`, `predict(model, …)`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clca.training.config import DataConfig, TrainConfig
    from clca.training.evaluation import Evaluation, evaluate
    from clca.training.loop import RunResult, resume, train
    from clca.training.prediction import Prediction, predict
    from clca.training.signals import Interrupted
    from clca.training.stored_evaluations import StoredEvaluation, evaluations
    from clca.training.sweeping import Sweep, sweep

__all__ = [
    "DataConfig",
    "Evaluation",
    "Interrupted",
    "Prediction",
    "RunResult",
    "StoredEvaluation",
    "Sweep",
    "TrainConfig",
    "evaluate",
    "evaluations",
    "predict",
    "resume",
    "sweep",
    "train",
]

_HOMES = {
    "DataConfig": "config",
    "TrainConfig": "config",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "Interrupted": "signals",
    "RunResult": "loop",
    "resume": "loop",
    "train": "loop",
    "Prediction": "prediction",
    "predict": "prediction",
    "StoredEvaluation": "stored_evaluations",
    "evaluations": "stored_evaluations",
    "Sweep": "sweeping",
    "sweep": "sweeping",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the settings alone need no torch, so `clca --help` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
