"""What a processor says of itself, as different systems pass it on."""

import platform

import pytest

from clca.system import cpu_info
from clca.system.cpu_info import Cpu, parse_cpu, this_cpu

LINUX = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC 9755: all of it
flags\t\t: fpu avx2 avx512f
bugs\t\t: sysret_ss_attrs

processor\t: 1
cpu family\t: 26
model name\t: AMD EPYC 9755: all of it
flags\t\t: fpu avx2 avx512f
"""
LINUX_ON_ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\n"
WINDOWS = "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"


@pytest.mark.parametrize(
    ("told", "name", "family", "model", "flags"),
    [
        (LINUX, "AMD EPYC 9755: all of it", 26, 2, {"fpu", "avx2", "avx512f"}),
        ("cpu family\t: 6\n", platform.machine(), 6, None, set()),
        (LINUX_ON_ARM, platform.machine(), None, None, {"fp", "asimd", "bf16"}),
        (WINDOWS, WINDOWS, 25, 97, set()),
        ("arm", "arm", None, None, set()),
        ("", platform.machine(), None, None, set()),
    ],
)
def test_a_processor_as_it_is_described(
    told: str, name: str, family: int | None, model: int | None, flags: set[str]
) -> None:
    assert parse_cpu(told) == (name, family, model, flags)


@pytest.mark.parametrize(
    ("family", "model", "wide"),
    [
        (25, 0x11, False),  # Genoa
        (26, 0x02, True),  # Turin
        (26, 0x11, True),  # Turin Dense
        (26, 0x24, False),  # Strix Point
        (26, 0x44, True),  # Granite Ridge, Fire Range
        (26, 0x60, False),  # Krackan Point
        (26, 0x70, True),  # Strix Halo
        (26, None, True),
        (27, 0x24, True),
        (None, None, False),
    ],
)
def test_which_processors_multiply_512_bits_at_once(family: int | None, model: int | None, wide: bool) -> None:
    assert cpu_info.has_wide_avx512(Cpu("AMD", family, model, frozenset())) == wide


def test_this_machines_processor_has_a_name() -> None:
    assert this_cpu().name
    assert this_cpu() is this_cpu()
