"""Ultra-fine-grained image recognition at a fraction of the cost: token reduction with cross-layer aggregation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clca.backbones import list_backbones
from clca.config import ModelConfig
from clca.costing import Cost, cost
from clca.errors import ClcaError, WorkError
from clca.factory import create_model, reduce_tokens
from clca.hub import from_pretrained
from clca.model import TokenReducedViT
from clca.reductions import Reduction, list_reductions, register_reduction
from clca.trace import Trace
from clca.weights import load_published

if TYPE_CHECKING:
    from clca import data
    from clca.training import evaluate, predict, train

__version__ = "0.1.0"

__all__ = [
    "ClcaError",
    "Cost",
    "ModelConfig",
    "Reduction",
    "TokenReducedViT",
    "Trace",
    "WorkError",
    "cost",
    "create_model",
    "data",
    "evaluate",
    "from_pretrained",
    "list_backbones",
    "list_reductions",
    "load_published",
    "predict",
    "reduce_tokens",
    "register_reduction",
    "train",
]

_ON_DEMAND = {"evaluate": "clca.training", "predict": "clca.training", "train": "clca.training"}


def __getattr__(name: str) -> Any:
    """Load what only training and images need when it is first asked for: a model alone needs neither."""
    if name == "data":
        return import_module("clca.data")
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
