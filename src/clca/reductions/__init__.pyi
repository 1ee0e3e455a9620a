from . import ats, dpcknn, dynamicvit, evit, patchmerger, sit, tome, topk
from .base import Evidence, Reduction, Selection, TokenState
from .registry import list_reductions, reduction_class, reduction_rule, register_reduction
from .rules import KeepSchedule, ReductionRule, TokenCounts

__all__ = [
    "Evidence",
    "KeepSchedule",
    "Reduction",
    "ReductionRule",
    "Selection",
    "TokenCounts",
    "TokenState",
    "ats",
    "dpcknn",
    "dynamicvit",
    "evit",
    "list_reductions",
    "patchmerger",
    "reduction_class",
    "reduction_rule",
    "register_reduction",
    "sit",
    "tome",
    "topk",
]
