"""Ultra-fine-grained image recognition at a fraction of the cost: token reduction with cross-layer aggregation."""

from clca.backbones import list_backbones
from clca.config import ModelConfig
from clca.cost import Cost, cost
from clca.errors import ClcaError, WorkError
from clca.factory import create_model, reduce_tokens
from clca.hub import from_pretrained
from clca.model import TokenReducedViT
from clca.reductions import Reduction, list_reductions, register_reduction
from clca.trace import Trace
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
    "from_pretrained",
    "list_backbones",
    "list_reductions",
    "load_published",
    "reduce_tokens",
    "register_reduction",
]
