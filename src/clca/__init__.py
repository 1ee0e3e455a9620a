"""Ultra-fine-grained image recognition at a fraction of the cost: token reduction with cross-layer aggregation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clca.errors import ClcaError, WorkError
from clca.timm_watch import register_with_timm

if TYPE_CHECKING:
    from clca import data
    from clca.backbones import list_backbones
    from clca.config import ModelConfig
    from clca.costing import Cost, cost
    from clca.factory import create_model, reduce_tokens
    from clca.hub import from_pretrained
    from clca.linear import prepacked
    from clca.model import TokenReducedViT
    from clca.reductions import Reduction, list_reductions, register_reduction
    from clca.trace import Trace
    from clca.training import evaluate, predict, train
    from clca.weights import load_published

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
    "prepacked",
    "reduce_tokens",
    "register_reduction",
    "train",
]

_HOMES = {
    "Cost": "costing",
    "ModelConfig": "config",
    "Reduction": "reductions",
    "TokenReducedViT": "model",
    "Trace": "trace",
    "cost": "costing",
    "create_model": "factory",
    "evaluate": "training",
    "from_pretrained": "hub",
    "list_backbones": "backbones",
    "list_reductions": "reductions",
    "load_published": "weights",
    "predict": "training",
    "prepacked": "linear",
    "reduce_tokens": "factory",
    "register_reduction": "reductions",
    "train": "training",
}
_MODULES = {"data", *_HOMES.values()}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: torch and timm take seconds, and a plan needs neither."""
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_timm()
