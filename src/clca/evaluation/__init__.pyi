from .cross_validation import CrossValidation, cross_validate
from .evaluator import Evaluation, evaluate
from .keep_rate_sweep import Sweep, sweep
from .predictor import Prediction, predict
from .stored import StoredEvaluation, evaluations
from .together import GroupPrediction, predict_together

__all__ = [
    "CrossValidation",
    "Evaluation",
    "GroupPrediction",
    "Prediction",
    "StoredEvaluation",
    "Sweep",
    "cross_validate",
    "evaluate",
    "evaluations",
    "predict",
    "predict_together",
    "sweep",
]
