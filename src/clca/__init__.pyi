from . import data
from .errors import ClcaError as ClcaError
from .errors import WorkError as WorkError
from .evaluation.cross_validation import cross_validate
from .evaluation.evaluator import evaluate
from .evaluation.predictor import predict
from .kernels.dispatch import fast_kernels
from .kernels.prepack import prepacked
from .models.backbones import list_backbones
from .models.config import ModelConfig
from .models.cost import Cost, cost
from .models.factory import create_model, reduce_tokens
from .models.pretrained import from_pretrained
from .models.token_reduced_vit import TokenReducedViT
from .models.trace import Trace
from .models.weights import load_published
from .reductions import Reduction, list_reductions, register_reduction
from .training.trainer import train

__version__: str

__all__ = [
    "Cost",
    "ModelConfig",
    "Reduction",
    "TokenReducedViT",
    "Trace",
    "cost",
    "create_model",
    "cross_validate",
    "data",
    "evaluate",
    "fast_kernels",
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
