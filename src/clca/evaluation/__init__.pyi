from .evaluator import Evaluation, evaluate
from .keep_rate_sweep import Sweep, sweep
from .predictor import Prediction, predict
from .stored import StoredEvaluation, evaluations

__all__ = [
    "Evaluation",
    "Prediction",
    "StoredEvaluation",
    "Sweep",
    "evaluate",
    "evaluations",
    "predict",
    "sweep",
]
