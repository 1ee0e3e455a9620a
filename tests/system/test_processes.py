"""What processes of our own are told, and what their end meant."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from clca.system.processes import how_it_ended, usable_cores

pytestmark = pytest.mark.slow

FAULTS = """
import resource, sys
import torch
from clca.system.processes import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**24) for _ in range(4)]  # of 64 MiB: those glibc never keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([step() for _ in range(8)][-1])  # the heap needs a few to become as large as it is to stay
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept() -> None:
    """256 MiB, taken and freed again and again: without it their 65,536 pages are fetched anew each time."""
    faults = {}
    for what in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, text=True, check=True)
        faults[what] = int(done.stdout)
    assert faults["keep"] < 5_000 < 20_000 < faults["leave"]


def test_an_end_in_words() -> None:
    assert how_it_ended(3) == "exit code 3"
    assert how_it_ended(-signal.SIGTERM) == "SIGTERM"
    assert "memory" in how_it_ended(-signal.SIGKILL)
    assert how_it_ended(-40) == "signal 40"  # one that has no name


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_are_those_that_this_process_may_use() -> None:
    one = (
        "import os; from clca.system.processes import usable_cores; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{one}; print(usable_cores())"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
    assert usable_cores() >= 1
