from .evaluator import Evaluation, evaluate
from .keep_rate_sweep import Sweep, sweep
from .predictor import Prediction, predict
from .stored import StoredEvaluation, evaluations
from .together import GroupPrediction, predict_together

__all__ = [
    "Evaluation",
    "GroupPrediction",
    "Prediction",
    "StoredEvaluation",
    "Sweep",
    "evaluate",
    "evaluations",
    "predict",
    "predict_together",
    "sweep",
]
