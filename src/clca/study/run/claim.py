"""Who is running a run: a claim on its folder, for many processes on many machines, without file locks.

A claim is a file `claim.<n>` in the run's folder, n = 1, 2, 3 …; the highest n is the owner, and whoever finds that
owner gone creates `claim.<n+1>`. A name can be created once, and **no claim is ever removed**, so one process wins each
generation however late a slow one comes. This asks of the file system only that a name is made once (`link`, or
`O_EXCL` where there are no links), which network file systems keep even where `flock` does nothing.

An owner counts as gone when

* it said so (`release`);
* it ran on this machine and there is no such process (at once);
* the time of its file, which its heartbeat renews, did not change while a `Watch` looked on for `patience` seconds by
  the observer's own monotonic clock, so that no two clocks are compared;
* or that time is more than an hour behind the file server's clock (at once).

An owner that was taken over from (its machine slept, its file server was away) finds the newer claim with its next
heartbeat and stops. Until then, at most a second after it wakes, it may still write: ask `Claim.still_held()` before
what must not be written twice. And look whether a run is finished *after* claiming it: before, another may finish it.
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
from clca.study.run.claim_files import NO_CLAIM, Found, Owner, create, newest, server_time, write_aside
from clca.study.run.host import clock_in_sleep, machine, start_of

BEAT, PATIENCE, FORGOTTEN = 10.0, 90.0, 3600.0
"""Seconds between heartbeats; of no heartbeat until a claim is stale; behind the file server until it is so at once."""

LOST = 75
"""Exit code of a process that was taken over from (EX_TEMPFAIL: the run goes on, elsewhere)."""


@dataclass(frozen=True)
class Holder:
    """Who runs a run: host name, process and since when (Unix seconds by the owner's clock).

    A claim that cannot be read is held by host "unknown", process 0, until it is stale.
    """

    host: str
    pid: int
    since: float


class Watch:
    """Remembers which claims were seen when, to tell those whose owner died on another machine.

    Time counts only while somebody looks: of the time between two looks no more than a third of `patience`, so that an
    observer that was itself away (asleep, waiting for the file server) does not take runs from owners that were too.
    Look at least that often.

    Args:
        patience: Seconds without a heartbeat after which a claim is stale; several times the owners' `beat`.
        forgotten: Seconds behind the file server's clock after which it is stale at first sight.
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
        self._seen: dict[Path, tuple[tuple[int, int], float, float]] = {}  # folder: what, when, unchanged for

    def gone(self, folder: Path) -> tuple[int, int] | None:
        """The claim whose owner is gone, for a `claim` in another process, which has not looked on.

        Returns:
            Its generation and the second of its last heartbeat; None where nobody ever had the run, or somebody has it.

        Raises:
            WorkError: The folder cannot be read.
        """
        found = _look(folder := Path(folder))
        return None if found is None or self._holds(folder, found) else found.seen

    def _holds(self, folder: Path, found: Found) -> bool:
        """Whether the claim still counts, as far as can be known now."""
        if found.released or _died_here(found.owner):
            return False
        return not (self._quiet(folder, found) or self._old(folder, found))

    def _quiet(self, folder: Path, found: Found) -> bool:
        now, what = self._clock(), (found.generation, found.time_ns)
        before, looked, unchanged = self._seen.get(folder, (None, now, 0.0))
        unchanged = unchanged + min(now - looked, self.patience / 3) if before == what else 0.0
        self._seen[folder] = (what, now, unchanged)
        return unchanged >= self.patience

    def _old(self, folder: Path, found: Found) -> bool:
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

    Made by `claim`. A child process that was forked off does not own it.
    """

    def __init__(
        self, folder: Path, generation: int, owner: Owner, *, beat: float, on_lost: Callable[[], None] | None
    ) -> None:
        self.folder = folder
        self.generation = generation
        self.path = folder / f"claim.{generation}"
        self._owner = owner
        self._beat = beat
        self._on_lost = on_lost or self._stop
        self._over = threading.Event()
        self._lock = threading.Lock()  # no heartbeat after the release, which would find the next owner and stop us
        threading.Thread(target=self._keep, name=f"claim on {folder.name}", daemon=True).start()

    def still_held(self) -> bool:
        """Whether no other process has taken the run over. True where it cannot be told (the file server is away)."""
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
        """Let others have the run without waiting. Never raises: on a full disk the file's time says it instead."""
        if os.getpid() != self._owner.pid:
            return
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            if not self.still_held():
                return
            try:
                temporary = write_aside(self.folder, replace(self._owner, state="released"))
                try:
                    os.replace(temporary, self.path)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise
            except OSError:
                with suppress(OSError):
                    os.utime(self.path, NO_CLAIM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self.release()
        return False

    def _keep(self) -> None:
        last = clock_in_sleep()
        while not self._over.wait(min(self._beat, 1.0)):  # short: waiting does not count a machine's sleep
            if clock_in_sleep() - last >= self._beat:
                last = clock_in_sleep()
                if not self._renew():
                    return

    def _renew(self) -> bool:
        with self._lock:
            if self._over.is_set():
                return False
            if self.still_held():
                with suppress(OSError):  # the next one may work, and nobody takes over before `patience`
                    os.utime(self.path)
                return True
            self._over.set()
        self._on_lost()
        return False

    def _stop(self) -> None:
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
    """Become the one process that runs the run in `folder`.

    Call it in the process that does the work: its end is the claim's end.

    Args:
        folder: The run's folder, which exists.
        beat: Seconds between heartbeats; a fraction of every observer's `patience`.
        on_lost: Called once, in the heartbeat's thread, when another process has taken the run over. By default this
            process says so and exits at once with code 75, because nothing may be written any more.
        watch: What was seen before; without one, an owner that died on another machine within the hour is not noticed.
        gone: What a watch in another process said of this folder (`Watch.gone`): this claim, unless its heart beat
            since, does not count.

    Returns:
        The claim; None when another process has it.

    Raises:
        ClcaError: There is no such folder.
        WorkError: Nothing can be written there (a full disk, a read-only folder); nothing is left behind.
    """
    folder = Path(folder)
    try:
        found = newest(folder)
        if found and found.seen != gone and (watch or Watch())._holds(folder, found):
            return None
        generation = found.generation + 1 if found else 1
        pid = os.getpid()
        owner = Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=machine(),
            pid=pid,
            started=start_of(pid) or "",
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
    """Who runs the run in `folder` now; None when nobody does. Costs one listing and one small file.

    Args:
        folder: The run's folder.
        watch: What was seen before; without one, an owner that died on another machine within the hour is not noticed.

    Raises:
        WorkError: The folder cannot be read.
    """
    folder = Path(folder)
    found = _look(folder)
    if found is None or not (watch or Watch())._holds(folder, found):
        return None
    if found.owner is None:
        return Holder("unknown", 0, found.time_ns / 1e9)
    return Holder(found.owner.host, found.owner.pid, found.owner.time)


def _look(folder: Path) -> Found | None:
    try:
        return newest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise WorkError(f"{folder}: cannot be read ({reason(error)})") from error


def _died_here(owner: Owner | None) -> bool:
    """Whether the owner ran on this machine and has ended."""
    if owner is None or not owner.machine or owner.machine != machine():
        return False
    started = start_of(owner.pid)
    return started is None or ("" not in (started, owner.started) and started != owner.started)
