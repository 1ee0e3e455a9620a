"""Token reductions, one file each."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clca.reductions.registry import SHIPPED, list_reductions, reduction_class, register_reduction

if TYPE_CHECKING:
    from clca.reductions import ats, dpcknn, dynamicvit, evit, patchmerger, sit, tome, topk
    from clca.reductions.base import Evidence, KeepSchedule, Reduction, Selection, TokenState

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


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the names alone need no torch."""
    if name in SHIPPED or name == "base":
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        return getattr(import_module(f"{__name__}.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
