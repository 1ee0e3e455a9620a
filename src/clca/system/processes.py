"""Processes on this machine: how many cores they may use, how they start, and how they ended."""

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
from clca.system.numbers import is_whole_number

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


def require_torchrun() -> None:
    """Refuse to be one of several processes that mpirun or srun started, which would not find each other.

    Raises:
        ClcaError: It names the launcher to use instead.
    """
    if "RANK" in os.environ:
        return
    for name in _PROCESSES:
        count = os.environ.get(name, "")
        if is_whole_number(count) and int(count) > 1:
            raise ClcaError(
                f"one of {count} processes that mpirun or srun started ({name}), each of which would train alone; "
                "start one per machine with torchrun --nproc-per-node GPUS -m clca train …"
            )


def forkserver_context(*preload: str) -> Any:
    """A multiprocessing context whose processes are forked from a server that has only imported `preload`.

    On other systems than Linux they are spawned. The first caller in a process decides what is preloaded.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def leave_ctrl_c_to_parent() -> None:
    """Let Ctrl-C on the terminal reach only the parent of this process, which passes it on.

    SIGINT then raises KeyboardInterrupt here even where the parent ignores it, as a command in the background of a
    shell script does: such a process would otherwise never be interrupted.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError, AttributeError):  # already the first of its group; no groups at all
        os.setpgrp()


def exit_with_parent(parent: int) -> None:
    """Watch the process `parent` from a thread: when it has died, this process gets SIGTERM, to save and exit.

    Args:
        parent: `os.getppid()` at the start of this process.
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
    """Let the C library keep freed memory, because the next step asks for it again.

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
