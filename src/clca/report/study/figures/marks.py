"""Colour, marker and line of every reduction and every arm, the same in all figures of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from clca.plots.figure import Mark
from clca.plots.speedup import STYLES
from clca.reductions import list_reductions

ARMS = ("base", "cla", "clc", "clca")
ARM_NAMES = {"base": "base", "cla": "CLA alone", "clc": "CLC alone", "clca": "CLCA"}
_ARM_MARKS = {
    "base": ("#d55e00", "s", "--", False),
    "cla": ("#009e73", "^", "-.", True),
    "clc": ("#cc79a7", "D", ":", True),
    "clca": ("#0072b2", "o", "-", True),
}
_NONE = ("#777777", "h")


def of_arm(arm: str, label: str | None = None) -> Mark:
    """The mark of an arm: open and dashed for the base model, filled for arms with a module."""
    colour, marker, line, filled = _ARM_MARKS.get(arm, ("#777777", "v", "-", True))
    return Mark(label or ARM_NAMES.get(arm, arm), colour, marker, line, filled)


@cache
def _known() -> tuple[str, ...]:
    """The registered reductions; cached, because this searches the installed packages."""
    return tuple(name for name in list_reductions() if name != "none")


def of_reduction(reduction: str, arm: str = "clca", label: str | None = None) -> Mark:
    """The mark of a reduction: its colour and marker; open and dashed for the base model."""
    known = _known()
    colour, marker = STYLES[known.index(reduction) % len(STYLES)] if reduction in known else _NONE
    _, _, line, filled = _ARM_MARKS.get(arm, ("", "", "-", True))
    return Mark(label or reduction, colour.lower(), marker, line, filled)


def arms_in_order(arms: Iterable[str]) -> list[str]:
    """base, cla, clc, clca, and then any others."""
    there = set(arms)
    return [arm for arm in ARMS if arm in there] + sorted(there - set(ARMS))


def reductions_in_order(reductions: Iterable[str]) -> list[str]:
    """The dense model first, then the registry's order, then those that are not registered here."""
    there = set(reductions)
    known = ["none", *_known()]
    return [name for name in known if name in there] + sorted(there - set(known))


def legend(reductions: Sequence[str], arms: Sequence[str]) -> list[Mark]:
    """A line for each reduction, and one for how base and CLCA differ."""
    marks = [of_reduction(name, label="none (dense)" if name == "none" else name) for name in reductions]
    return [Mark(mark.label, mark.colour, mark.marker, "", True) for mark in marks] + [
        Mark(ARM_NAMES.get(arm, arm), "#6b6b6b", "o", _ARM_MARKS.get(arm, ("", "", "-", True))[2], arm != "base")
        for arm in arms
    ]


def short(name: str, length: int = 26) -> str:
    """A name that fits in a panel's title."""
    return name if len(name) <= length else name[: length - 1] + "…"


def slug(name: str) -> str:
    """A name as part of a file's name and of a page's anchors."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)
