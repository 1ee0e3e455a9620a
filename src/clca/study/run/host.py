"""What tells a process of this machine from all others, and whether it still runs."""

import os
import socket
import sys
import time
import uuid
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """What processes that see each other's ids have in common, and no others; "" where that cannot be told."""
    host = socket.gethostname()
    if sys.platform != "linux":
        return f"{host} {uuid.getnode():x}"
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # the /proc of another process-id namespace
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_of(pid: int) -> str | None:
    """When a process of this machine began; None: it has ended, "": cannot be told."""
    if sys.platform != "linux":
        import psutil

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
        except psutil.NoSuchProcess:
            return None
        except psutil.Error:
            return ""
    # psutil adds the time of the boot, which moves when the clock is set; the kernel's own count does not.
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""  # another user's process that /proc hides (hidepid)
    except OSError:
        return ""
    values = stat[stat.rindex(b")") + 2 :].split()
    state, threads, started = values[0], int(values[17]), values[19].decode()
    return None if state in (b"Z", b"X") and threads <= 1 else started


def clock_in_sleep() -> float:
    """Seconds by a clock that goes on while the machine sleeps."""
    if hasattr(time, "clock_gettime"):
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    return time.monotonic()
