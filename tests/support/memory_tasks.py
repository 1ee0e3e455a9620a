"""Functions that child processes call, for tests of `clca.system.timing.peak_memory`."""

import torch

MIB = 2**20


def hold(mib: int) -> None:
    """Two buffers of `mib` MiB at the same time, then one."""
    first = torch.ones(mib * MIB, dtype=torch.uint8)
    second = first + 1
    del first
    second.add_(1)


def in_turn(mib: int) -> None:
    for _ in range(3):
        torch.ones(mib * MIB, dtype=torch.uint8)


def fail() -> None:
    raise ValueError("no such\nmodel")


def count_threads(expected: int) -> None:
    assert torch.get_num_threads() == expected, torch.get_num_threads()
