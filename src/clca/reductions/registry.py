"""Names of the token reductions; `clca --import`, `CLCA_IMPORT` and the entry points of packages add to them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Set
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from clca.errors import ClcaError
from clca.reductions import plugins

if TYPE_CHECKING:
    from clca.reductions.base import Reduction
    from clca.reductions.rules import ReductionRule

SHIPPED = {
    "ats": "ATS",
    "dpcknn": "DPCKNN",
    "dynamicvit": "DynamicViT",
    "evit": "EViT",
    "patchmerger": "PatchMerger",
    "sit": "SiT",
    "tome": "ToMe",
    "topk": "TopK",
}
"""The class of each reduction of this package, in the module of its name; listing them does not import torch."""

_REDUCTIONS: dict[str, type[Reduction]] = {}
_ENTRY_POINTS = "clca.reductions"


def register_reduction(name: str) -> Callable[[type[Reduction]], type[Reduction]]:
    """Class decorator that registers a `Reduction` under `name`.

    A class that its module defines again, as when a notebook cell or a module is run twice, replaces the earlier one.

    Raises:
        ClcaError: If the name is taken or not a name, the class is not a `Reduction`, or its `place` or `needs` has a
            value that is not allowed.
    """
    if not isinstance(name, str) or not name:
        raise ClcaError(f'a reduction needs a name, as in @clca.register_reduction("mine"), not {name!r}')

    def register(cls: type[Reduction]) -> type[Reduction]:
        from clca.reductions.base import Reduction

        if not (isinstance(cls, type) and issubclass(cls, Reduction)):
            raise ClcaError(f"reduction {name!r}: {cls!r} is not a subclass of clca.Reduction")
        _check_attributes(name, cls)
        shipped = f"{__package__}.{name}", SHIPPED.get(name)
        taken = name in SHIPPED and (cls.__module__, cls.__name__) != shipped
        if name == "none" or taken or _origin(_REDUCTIONS.get(name, cls)) != _origin(cls):
            raise ClcaError(f"reduction {name!r} is already registered: choose another name")
        _REDUCTIONS[name] = cls
        return cls

    return register


def _check_attributes(name: str, cls: type[Reduction]) -> None:
    """Refuse class attributes that would fail only in the forward pass, or be ignored there."""
    from clca.reductions.base import Evidence

    if cls.place not in ("inside", "before"):
        raise ClcaError(f"reduction {name!r}: place must be 'inside' or 'before', not {cls.place!r}")
    known = sorted(Evidence.__dataclass_fields__)
    if not isinstance(cls.needs, Set) or not cls.needs <= set(known):
        raise ClcaError(f"reduction {name!r}: needs must be a set of {', '.join(known)}, not {cls.needs!r}")


def _origin(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def list_reductions() -> list[str]:
    """Every value that `reduction=` takes, "none" first. Imports the modules that `CLCA_IMPORT` names.

    Raises:
        ClcaError: If a module that `CLCA_IMPORT` names cannot be plugins.
    """
    plugins.load(_REDUCTIONS)
    return ["none", *sorted({*SHIPPED, *_REDUCTIONS, *(point.name for point in entry_points(group=_ENTRY_POINTS))})]


def reduction_class(name: str) -> type[Reduction] | None:
    """The class registered under `name`; None for "none".

    Raises:
        ClcaError: If there is no such reduction; the message lists the known ones, and how to add another. Or if
            a module that `CLCA_IMPORT` names cannot be plugins.
    """
    if name == "none":
        return None
    if name in SHIPPED:
        return getattr(import_module(f"{__package__}.{name}"), SHIPPED[name])
    if name not in _REDUCTIONS:
        plugins.load(_REDUCTIONS)
    if name not in _REDUCTIONS:
        for point in entry_points(group=_ENTRY_POINTS, name=name):
            register_reduction(name)(point.load())
    if name not in _REDUCTIONS:
        close = difflib.get_close_matches(name, list_reductions(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ClcaError(
            f"unknown reduction {name!r}{hint}: choose one of {', '.join(list_reductions())}, "
            f"or add your own with clca --import FILE.py or {plugins.VARIABLE}=FILE.py"
        )
    return _REDUCTIONS[name]


def reduction_rule(name: str) -> type[ReductionRule] | None:
    """The rule of the reduction `name`; None for "none". Does not import torch for a reduction of this package.

    Raises:
        ClcaError: As `reduction_class`.
    """
    from clca.reductions import rules

    rule = getattr(rules, f"{SHIPPED[name]}Rule", None) if name in SHIPPED else None
    return rule if rule is not None else reduction_class(name)
