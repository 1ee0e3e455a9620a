"""Processes of our own on this machine: how many may be at work, how they begin, and what their end meant."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

from clca.errors import ClcaError
from clca.system.numerals import is_whole_number

_SECONDS_TO_SAVE = 120.0
_PROCESSES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def is_first_process() -> bool:
    """Whether this process is alone or the first of those that torchrun or accelerate launched."""
    return launched_number("RANK", 0) == 0


def is_first_on_its_machine() -> bool:
    """Whether this process is alone or the first of those that torchrun or accelerate launched on this machine."""
    return launched_number("LOCAL_RANK", launched_number("RANK", 0)) == 0


def launched_number(name: str, default: int) -> int:
    """A number that torchrun or accelerate gives its processes.

    Args:
        name: Environment variable, such as `RANK`.
        default: Result if the variable is not set.

    Raises:
        ClcaError: The variable is no whole number from 0.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    if not is_whole_number(text):
        raise ClcaError(f"{name} is {text[:60]!r}: needs a whole number, as torchrun sets it")
    return int(text)


def refuse_strangers() -> None:
    """Refuse to be one of several processes that mpirun or srun began: none would know of the others.

    Raises:
        ClcaError: With what to begin them with.
    """
    if "RANK" in os.environ:
        return
    for name in _PROCESSES:
        count = os.environ.get(name, "")
        if is_whole_number(count) and int(count) > 1:
            raise ClcaError(
                f"one of {count} processes that mpirun or srun began ({name}), which would each train on their own; "
                "begin one on each machine, as torchrun --nproc-per-node GPUS -m clca train …"
            )


def forked_fresh(*preload: str) -> Any:
    """A multiprocessing context whose processes are forked from one that has loaded `preload` and done nothing else.

    Where there is no such thing they begin from nothing. The first caller in a process decides what is preloaded.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def leave_ctrl_c_to_parent() -> None:
    """Let Ctrl-C on the terminal reach the parent of this process alone, which will tell it."""
    with contextlib.suppress(OSError, AttributeError):  # already the first of its group; no groups at all
        os.setpgrp()


def end_with(parent: int) -> None:
    """Once the process `parent` has died, let this one save what it does and end; returns at once.

    Args:
        parent: What `os.getppid()` was at the beginning.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_SAVE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def how_it_ended(code: int | None) -> str:
    """The exit code of a process in words."""
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:  # most real-time signals have none
            return f"signal {-code}"
        return f"{name}, which the system sends when memory runs out" if name == "SIGKILL" else name
    return f"exit code {code}"


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step will ask for it again.

    glibc gives the end of its heap back to the system once 64 MiB of it are free, and takes it anew page by page: in
    training on a CPU hundreds of megabytes a step, in inference the widest tensors of every batch. The most that this
    process held stays its own until it ends. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_M_MMAP_THRESHOLD, 2**30):
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
