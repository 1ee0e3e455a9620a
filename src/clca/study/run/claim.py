"""Claims on the runs of a study: one process per run, across many machines, without file locks.

A claim is a file `claim.<n>` in the run's folder, n = 1, 2, 3 …; the highest n is the owner, and a process that finds
the owner gone creates `claim.<n+1>`. A name can be created only once, and **no claim is ever removed**, so exactly one
process wins each generation, however late a slow one comes. The only requirement on the file system is that a name is
created once (`link`, or `O_EXCL` without links), which network file systems guarantee even if `flock` does nothing.

An owner counts as gone when

* it has released its claim (`release`);
* it ran on this machine and there is no such process (at once);
* the time of its file, which its heartbeat renews, did not change while a `Watch` observed it for `patience` seconds by
  the observer's own monotonic clock, so that no two clocks are compared;
* or that time is more than an hour behind the file server's clock (at once).

An owner that lost its claim (its machine slept, its file server was unreachable) finds the newer claim with its next
heartbeat and stops. Until then, at most a second after it wakes, it may still write: check `Claim.still_held()` before
writing what must not be written twice. And check whether a run is finished *after* claiming it: before, another process
may still finish it.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from clca.errors import ClcaError, WorkError, reason
from clca.study.run.claim_files import RELEASED_TIME, Found, Owner, create, newest, server_time, write_temporary
from clca.study.run.host import clock_with_sleep, machine, start_time

BEAT, PATIENCE, FORGOTTEN = 10.0, 90.0, 3600.0
"""Seconds between heartbeats; without one until a claim is stale; behind the file server until it is stale at once."""

LOST = 75
"""Exit code of a process that lost its claim (EX_TEMPFAIL: the run continues elsewhere)."""


@dataclass(frozen=True)
class Holder:
    """The owner of a run: host name, process id, and start in Unix seconds by the owner's clock.

    A claim that cannot be read is held by host "unknown", process 0, until it is stale.
    """

    host: str
    pid: int
    since: float


class Watch:
    """Observes claims over time, to detect those whose owner died on another machine.

    Between two observations at most a third of `patience` counts, so that an observer that was itself suspended
    (asleep, waiting for the file server) does not take runs from owners that were suspended too. Observe at least that
    often.

    Args:
        patience: Seconds without a heartbeat after which a claim is stale; several times the owners' `beat`.
        forgotten: Seconds behind the file server's clock after which a claim is stale at once.
        clock: The observer's own clock, in seconds.
    """

    def __init__(
        self,
        patience: float = PATIENCE,
        *,
        forgotten: float = FORGOTTEN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience = patience
        self.forgotten = forgotten
        self._clock = clock
        self._seen: dict[Path, tuple[tuple[int, int], float, float]] = {}  # folder: claim, last observed, unchanged for

    def gone(self, folder: Path) -> tuple[int, int] | None:
        """The claim whose owner is gone, to pass to `claim` in another process, which has not observed it.

        Returns:
            Its generation and the second of its last heartbeat; None if there is no claim, or its owner is not gone.

        Raises:
            WorkError: The folder cannot be read.
        """
        found = _newest_claim(folder := Path(folder))
        return None if found is None or self.is_held(folder, found) else found.seen

    def is_held(self, folder: Path, found: Found) -> bool:
        """Whether the owner of this claim still counts as running, by what has been observed so far."""
        if found.released or _died_on_this_machine(found.owner):
            return False
        return not (self._is_silent(folder, found) or self._is_forgotten(folder, found))

    def _is_silent(self, folder: Path, found: Found) -> bool:
        now, claim = self._clock(), (found.generation, found.time_ns)
        previous, observed, unchanged = self._seen.get(folder, (None, now, 0.0))
        unchanged = unchanged + min(now - observed, self.patience / 3) if previous == claim else 0.0
        self._seen[folder] = (claim, now, unchanged)
        return unchanged >= self.patience

    def _is_forgotten(self, folder: Path, found: Found) -> bool:
        def behind(now: float) -> bool:
            return now - found.time_ns / 1e9 > self.forgotten

        if not behind(time.time()):  # the usual case, without writing anything
            return False
        try:
            return behind(server_time(folder))
        except OSError:
            return False


class Claim:
    """A run that this process owns, until `release`, the end of the `with` block, or the end of the process.

    Made by `claim`. A forked child process does not own it.
    """

    def __init__(
        self, folder: Path, generation: int, owner: Owner, *, beat: float, on_lost: Callable[[], None] | None
    ) -> None:
        self.folder = folder
        self.generation = generation
        self.path = folder / f"claim.{generation}"
        self._owner = owner
        self._beat = beat
        self._on_lost = on_lost or self._exit
        self._released = threading.Event()
        self._lock = (
            threading.Lock()
        )  # no heartbeat after the release: it would find the next owner and stop this process
        threading.Thread(target=self._send_heartbeats, name=f"claim on {folder.name}", daemon=True).start()

    def still_held(self) -> bool:
        """Whether no other process has taken the run over. True if the file server is unreachable."""
        with suppress(OSError):
            server_time(self.folder)
        try:
            found = newest(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        if found is None or found.generation != self.generation:
            return False
        return found.owner is None or found.owner.token == self._owner.token

    def release(self) -> None:
        """Free the run for other processes at once. Never raises: on a full disk the file's time marks the release."""
        if os.getpid() != self._owner.pid:
            return
        with self._lock:
            if self._released.is_set():
                return
            self._released.set()
            if not self.still_held():
                return
            try:
                temporary = write_temporary(self.folder, replace(self._owner, state="released"))
                try:
                    os.replace(temporary, self.path)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise
            except OSError:
                with suppress(OSError):
                    os.utime(self.path, RELEASED_TIME)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self.release()
        return False

    def _send_heartbeats(self) -> None:
        last = clock_with_sleep()
        while not self._released.wait(min(self._beat, 1.0)):  # short, because waiting does not count a machine's sleep
            if clock_with_sleep() - last >= self._beat:
                last = clock_with_sleep()
                if not self._renew():
                    return

    def _renew(self) -> bool:
        with self._lock:
            if self._released.is_set():
                return False
            if self.still_held():
                with suppress(OSError):  # the next one may succeed; no process takes over before `patience`
                    os.utime(self.path)
                return True
            self._released.set()
        self._on_lost()
        return False

    def _exit(self) -> None:
        message = f"clca: {self.folder}: another process took this run over; this one stops and writes nothing more\n"
        with suppress(OSError):
            os.write(2, message.encode(errors="backslashreplace"))
        os._exit(LOST)


def claim(
    folder: Path,
    *,
    beat: float = BEAT,
    on_lost: Callable[[], None] | None = None,
    watch: Watch | None = None,
    gone: tuple[int, int] | None = None,
) -> Claim | None:
    """Claim the run in `folder` for this process.

    Call it in the process that makes the run: the claim ends with that process.

    Args:
        folder: The run's folder, which exists.
        beat: Seconds between heartbeats; a fraction of every observer's `patience`.
        on_lost: Called once, in the heartbeat's thread, when another process has taken the run over. By default this
            process prints a line and exits at once with code 75, because it must not write any more.
        watch: Earlier observations; without them, an owner that died on another machine within the hour counts as
            running.
        gone: From `Watch.gone` in another process: this claim does not count, unless its owner has sent a heartbeat
            since.

    Returns:
        The claim; None if another process has it.

    Raises:
        ClcaError: There is no such folder.
        WorkError: Nothing can be written there (a full disk, a read-only folder); nothing is left behind.
    """
    folder = Path(folder)
    try:
        found = newest(folder)
        if found and found.seen != gone and (watch or Watch()).is_held(folder, found):
            return None
        generation = found.generation + 1 if found else 1
        pid = os.getpid()
        owner = Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=machine(),
            pid=pid,
            started=start_time(pid) or "",
            state="held",
            time=time.time(),
        )
        if not create(folder, generation, owner):
            return None
    except (FileNotFoundError, NotADirectoryError):
        raise ClcaError(f"{folder}: no such folder, so there is no run to claim; make the run's folder first") from None
    except OSError as error:
        raise WorkError(f"{folder}: the run cannot be claimed ({reason(error)})") from error
    return Claim(folder, generation, owner, beat=beat, on_lost=on_lost)


def holder(folder: Path, watch: Watch | None = None) -> Holder | None:
    """The current owner of the run in `folder`; None if there is none. Lists the folder and reads one small file.

    Args:
        folder: The run's folder.
        watch: Earlier observations; without them, an owner that died on another machine within the hour counts as
            running.

    Raises:
        WorkError: The folder cannot be read.
    """
    folder = Path(folder)
    found = _newest_claim(folder)
    if found is None or not (watch or Watch()).is_held(folder, found):
        return None
    if found.owner is None:
        return Holder("unknown", 0, found.time_ns / 1e9)
    return Holder(found.owner.host, found.owner.pid, found.owner.time)


def _newest_claim(folder: Path) -> Found | None:
    try:
        return newest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise WorkError(f"{folder}: cannot be read ({reason(error)})") from error


def _died_on_this_machine(owner: Owner | None) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    if owner is None or not owner.machine or owner.machine != machine():
        return False
    started = start_time(owner.pid)
    return started is None or ("" not in (started, owner.started) and started != owner.started)
