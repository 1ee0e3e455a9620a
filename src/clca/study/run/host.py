"""Identity of this machine and of its processes, and whether a process still runs."""

import os
import socket
import sys
import time
import uuid
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """An identifier shared by exactly those processes that see each other's ids; "" if it cannot be determined."""
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


def start_time(pid: int) -> str | None:
    """Start time of a process on this machine; None if it has ended, "" if that cannot be determined."""
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


def clock_with_sleep() -> float:
    """Seconds by a clock that also counts while the machine sleeps."""
    if hasattr(time, "clock_gettime"):
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    return time.monotonic()
