"""Token reductions, one file each; importing this package registers them."""

from clca.reductions import ats, dpcknn, dynamicvit, evit, patchmerger, sit, tome, topk
from clca.reductions.base import Evidence, KeepSchedule, Reduction, Selection, TokenState
from clca.reductions.registry import list_reductions, reduction_class, register_reduction

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
