"""What a processor says of itself, as different systems pass it on."""

import platform

import pytest

from clca.cpu import described, this_cpu

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
    ("told", "name", "family", "flags"),
    [
        (LINUX, "AMD EPYC 9755: all of it", 26, {"fpu", "avx2", "avx512f"}),
        ("cpu family\t: 6\n", platform.machine(), 6, set()),
        (LINUX_ON_ARM, platform.machine(), None, {"fp", "asimd", "bf16"}),
        (WINDOWS, WINDOWS, 25, set()),
        ("arm", "arm", None, set()),
        ("", platform.machine(), None, set()),
    ],
)
def test_a_processor_as_it_is_described(told: str, name: str, family: int | None, flags: set[str]) -> None:
    assert described(told) == (name, family, flags)


def test_this_machines_processor_has_a_name() -> None:
    assert this_cpu().name
    assert this_cpu() is this_cpu()
