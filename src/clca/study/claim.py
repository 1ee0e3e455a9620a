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

import errno
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from clca.errors import ClcaError, WorkError, reason

BEAT, PATIENCE, FORGOTTEN = 10.0, 90.0, 3600.0
"""Seconds between heartbeats; of no heartbeat until a claim is stale; behind the file server until it is so at once."""

LOST = 75
"""Exit code of a process that was taken over from (EX_TEMPFAIL: the run goes on, elsewhere)."""

_NAME = re.compile(r"claim\.([1-9][0-9]*)", re.ASCII)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_CLAIM = (0, 0)  # a file time that says "nobody": setting it needs no space, also on a full disk


@dataclass(frozen=True)
class Holder:
    """Who runs a run: host name, process and since when (Unix seconds by the owner's clock).

    A claim that cannot be read is held by host "unknown", process 0, until it is stale.
    """

    host: str
    pid: int
    since: float


@dataclass(frozen=True)
class _Owner:
    """What a claim file says."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    state: str
    time: float

    @classmethod
    def parse(cls, raw: bytes) -> Self | None:
        try:
            owner = cls(**json.loads(raw))
        except (ValueError, TypeError, RecursionError):
            return None
        sound = all(type(getattr(owner, field.name)) is field.type for field in fields(cls))
        return owner if sound and 0 < owner.pid < 2**31 else None

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class _Found(NamedTuple):
    """The newest claim in a folder; no owner: it cannot be read."""

    generation: int
    owner: _Owner | None
    time_ns: int

    @property
    def seen(self) -> tuple[int, int]:
        """What an observer can tell another one: mounts of one folder may show no fractions of a second."""
        return self.generation, self.time_ns // 10**9

    @property
    def released(self) -> bool:
        return self.time_ns == 0 or (self.owner is not None and self.owner.state == "released")


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

    def _holds(self, folder: Path, found: _Found) -> bool:
        """Whether the claim still counts, as far as can be known now."""
        if found.released or _died_here(found.owner):
            return False
        return not (self._quiet(folder, found) or self._old(folder, found))

    def _quiet(self, folder: Path, found: _Found) -> bool:
        now, what = self._clock(), (found.generation, found.time_ns)
        before, looked, unchanged = self._seen.get(folder, (None, now, 0.0))
        unchanged = unchanged + min(now - looked, self.patience / 3) if before == what else 0.0
        self._seen[folder] = (what, now, unchanged)
        return unchanged >= self.patience

    def _old(self, folder: Path, found: _Found) -> bool:
        def behind(now: float) -> bool:
            return now - found.time_ns / 1e9 > self.forgotten

        if not behind(time.time()):  # the usual case, without writing anything
            return False
        try:
            return behind(_server_time(folder))
        except OSError:
            return False


class Claim:
    """A run that this process owns, until `release`, the end of the `with` block, or the end of the process.

    Made by `claim`. A child process that was forked off does not own it.
    """

    def __init__(
        self, folder: Path, generation: int, owner: _Owner, *, beat: float, on_lost: Callable[[], None] | None
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
            _server_time(self.folder)
        try:
            found = _newest(self.folder)
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
                temporary = _write_aside(self.folder, replace(self._owner, state="released"))
                try:
                    os.replace(temporary, self.path)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise
            except OSError:
                with suppress(OSError):
                    os.utime(self.path, _NO_CLAIM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        self.release()
        return False

    def _keep(self) -> None:
        last = _clock_in_sleep()
        while not self._over.wait(min(self._beat, 1.0)):  # short: waiting does not count a machine's sleep
            if _clock_in_sleep() - last >= self._beat:
                last = _clock_in_sleep()
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
        found = _newest(folder)
        if found and found.seen != gone and (watch or Watch())._holds(folder, found):
            return None
        generation = found.generation + 1 if found else 1
        pid = os.getpid()
        owner = _Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=pid,
            started=_start_of(pid) or "",
            state="held",
            time=time.time(),
        )
        if not _create(folder, generation, owner):
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


def _look(folder: Path) -> _Found | None:
    try:
        return _newest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise WorkError(f"{folder}: cannot be read ({reason(error)})") from error


def _newest(folder: Path) -> _Found | None:
    generations = [int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    if not generations:
        return None
    path = folder / f"claim.{max(generations)}"
    try:
        file = os.open(path, os.O_RDONLY)  # opening makes a network file system's client ask for the time anew
        try:
            return _Found(max(generations), _Owner.parse(os.read(file, 2**16)), os.fstat(file).st_mtime_ns)
        finally:
            os.close(file)
    except OSError:
        return _Found(max(generations), None, path.stat().st_mtime_ns)


def _create(folder: Path, generation: int, owner: _Owner) -> bool:
    """Create the claim with its content whole; False: another process was first."""
    path = folder / f"claim.{generation}"
    temporary = _write_aside(folder, owner)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        # A network file system may have made the link, lost the answer and tried again.
        found = _newest(folder)
        return bool(found and found.owner and found.owner.token == owner.token)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        _write(file, owner.dump())  # until this is done others see a claim that cannot be read, which is held
    except OSError:
        with suppress(OSError):
            os.utime(path, _NO_CLAIM)  # not removed: a name must be made only once
        raise
    return True


def _write_aside(folder: Path, owner: _Owner) -> Path:
    temporary = _unused(folder)
    try:
        _write(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666), owner.dump())
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def _write(file: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(file, content) :]
    finally:
        os.close(file)


def _unused(folder: Path) -> Path:
    return folder / f".claim.{uuid.uuid4().hex}.tmp"


def _server_time(folder: Path) -> float:
    """The file server's clock, from a file made and removed; a network client's listing of the folder is then fresh."""
    path = _unused(folder)
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)
        os.unlink(path)


def _died_here(owner: _Owner | None) -> bool:
    """Whether the owner ran on this machine and has ended."""
    if owner is None or not owner.machine or owner.machine != _machine():
        return False
    started = _start_of(owner.pid)
    return started is None or ("" not in (started, owner.started) and started != owner.started)


@cache
def _machine() -> str:
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


def _start_of(pid: int) -> str | None:
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


def _clock_in_sleep() -> float:
    """Seconds by a clock that goes on while the machine sleeps."""
    if hasattr(time, "clock_gettime"):
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    return time.monotonic()
