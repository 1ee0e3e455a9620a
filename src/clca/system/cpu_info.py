"""Name, family and instruction sets of this machine's processor."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Cpu(NamedTuple):
    """A processor: its name, its family and model (x86 only), and the instruction sets it reports."""

    name: str
    family: int | None
    model: int | None
    flags: frozenset[str]


@cache
def this_cpu() -> Cpu:
    """This machine's processor; the instruction sets are known on Linux alone."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = platform.processor()
    return parse_cpu(text)


def parse_cpu(text: str) -> Cpu:
    """Parse a description of a processor: Linux' /proc/cpuinfo, or Python's `platform.processor`."""
    lines = dict([part.strip() for part in line.split(":", 1)] for line in text.splitlines() if ":" in line)
    family, model = (re.search(rf"\b{what}\s*:?\s*(\d+)", text, re.IGNORECASE) for what in ("family", "model"))
    return Cpu(
        name=lines.get("model name") or (text if "\n" not in text else "") or platform.machine(),
        family=int(family[1]) if family else None,
        model=int(model[1]) if model else None,
        flags=frozenset((lines.get("flags") or lines.get("Features") or "").split()),
    )


ZEN_5 = 26
"""The first family of AMD's processors that executes 512-bit instructions at full width."""
ZEN_5_SPLIT = frozenset([*range(0x20, 0x30), *range(0x60, 0x70)])
"""Models of that family that do not: Strix Point and Krackan Point, for laptops."""


def has_wide_avx512(cpu: Cpu) -> bool:
    """Whether a processor by AMD executes AVX-512 at full width; later families are assumed to."""
    family = cpu.family or 0
    return family > ZEN_5 or (family == ZEN_5 and cpu.model not in ZEN_5_SPLIT)
