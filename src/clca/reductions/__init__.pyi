from . import ats, dpcknn, dynamicvit, evit, patchmerger, sit, tome, topk
from .base import Evidence, KeepSchedule, Reduction, Selection, TokenState
from .registry import list_reductions, reduction_class, register_reduction

__all__ = [
    "Evidence",
    "KeepSchedule",
    "Reduction",
    "Selection",
    "TokenState",
    "ats",
    "dpcknn",
    "dynamicvit",
    "evit",
    "list_reductions",
    "patchmerger",
    "reduction_class",
    "register_reduction",
    "sit",
    "tome",
    "topk",
]
