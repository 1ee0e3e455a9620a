"""What this machine's processor says of itself."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Cpu(NamedTuple):
    """A processor: its name, its family and model where it has them (x86), and the instruction sets it says it has."""

    name: str
    family: int | None
    model: int | None
    flags: frozenset[str]


@cache
def this_cpu() -> Cpu:
    """This machine's processor; outside Linux no instruction sets are told."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = platform.processor()
    return described(told)


def described(told: str) -> Cpu:
    """A processor as Linux' /proc/cpuinfo or Python's `platform.processor` describes it."""
    lines = dict([part.strip() for part in line.split(":", 1)] for line in told.splitlines() if ":" in line)
    family, model = (re.search(rf"\b{what}\s*:?\s*(\d+)", told, re.IGNORECASE) for what in ("family", "model"))
    return Cpu(
        name=lines.get("model name") or (told if "\n" not in told else "") or platform.machine(),
        family=int(family[1]) if family else None,
        model=int(model[1]) if model else None,
        flags=frozenset((lines.get("flags") or lines.get("Features") or "").split()),
    )
