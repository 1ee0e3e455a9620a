"""Where runs are made: in this process, or in several on this machine. (`ray_executor` is the third.)"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from clca.study.run.job import Job, Outcome, perform
from clca.system.processes import exit_with_parent, how_it_ended, leave_ctrl_c_to_parent


class Executor(Protocol):
    """Makes runs. The driver gives it jobs as long as there is room, and asks what became of them."""

    def start(self) -> None:
        """Get ready."""

    def room(self) -> int:
        """How many more jobs can be taken now."""

    def at_once(self) -> int:
        """How many runs are made at the same time; jobs beyond these wait."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def wait(self, seconds: float) -> list[Outcome]:
        """What has become of jobs since the last call; waits up to so long for the first."""

    def stop(self) -> None:
        """Let the runs that go on save themselves and end; their outcomes still come."""

    def close(self) -> None:
        """End everything at once."""

    def describe(self) -> str:
        """Where the runs are made, in a few words."""


class InThisProcess:
    """One run after the other, here."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def start(self) -> None:
        pass

    def room(self) -> int:
        return 1 - len(self._jobs)

    def at_once(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        if not self._jobs:
            time.sleep(seconds)
            return []
        return [perform(self._jobs.popleft(), own_process=False)]

    def stop(self) -> None:
        self._jobs.clear()

    def close(self) -> None:
        self._jobs.clear()

    def describe(self) -> str:
        return "in this process"


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and what it does."""

    process: Any
    pipe: Connection
    gpu: str | None
    job: Job | None = None


class LocalProcesses:
    """Several runs at once on this machine, each in a process that makes one after the other.

    A process that dies is replaced; what it did is reported as lost. The processes end when this one does, however it
    ends.

    Args:
        count: How many.
        gpus: The GPUs that they share, as CUDA names them; several processes to a GPU if there are more processes.
    """

    def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
        self.count, self.gpus = count, list(gpus)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._stopping = False

    def start(self) -> None:
        for number in range(self.count):
            self._workers.append(self._new(self.gpus[number % len(self.gpus)] if self.gpus else None))

    def _new(self, gpu: str | None) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work_for, args=(theirs, os.getpid(), gpu), daemon=False)
        process.start()
        theirs.close()
        return _Worker(process, ours, gpu)

    def room(self) -> int:
        return 0 if self._stopping else sum(worker.job is None for worker in self._workers)

    def at_once(self) -> int:
        return self.count

    def submit(self, job: Job) -> None:
        worker = next(worker for worker in self._workers if worker.job is None)
        worker.job = job
        with contextlib.suppress(OSError):  # it has died; `wait` finds that out
            worker.pipe.send(job)

    def wait(self, seconds: float) -> list[Outcome]:
        busy = [worker for worker in self._workers if worker.job is not None]
        if not busy:
            time.sleep(seconds)
            return []
        ready = wait([worker.pipe for worker in busy], timeout=seconds)
        # What reads images for a killed process holds its end of the pipe open for some seconds.
        return [self._outcome(w) for w in busy if w.pipe in ready or not w.process.is_alive()]

    def _outcome(self, worker: _Worker) -> Outcome:
        assert worker.job is not None
        job, worker.job = worker.job, None
        try:
            if worker.pipe.poll(0.1):
                return worker.pipe.recv()
        except (EOFError, OSError):
            pass
        worker.process.join()
        code = worker.process.exitcode
        self._workers.remove(worker)
        worker.pipe.close()
        if not self._stopping:
            self._workers.append(self._new(worker.gpu))
        return Outcome(job.name, "lost", f"its process ended ({how_it_ended(code)})")

    def stop(self) -> None:
        self._stopping = True
        for worker in self._workers:
            if worker.job is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)

    def close(self) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + 5
        for worker in self._workers:
            if worker.job is None:
                worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def describe(self) -> str:
        return ("in a process" if self.count == 1 else f"in {self.count} processes") + (
            f" on GPU {', '.join(self.gpus)}" if self.gpus else ""
        )


def _work_for(pipe: Connection, driver: int, gpu: str | None) -> None:
    """What a worker process does: jobs, one after the other, until its driver has gone."""
    leave_ctrl_c_to_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    exit_with_parent(driver)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            outcome = perform(job)
        except KeyboardInterrupt:  # between two runs
            outcome = Outcome(job.name, "interrupted")
        with contextlib.suppress(OSError):
            pipe.send(outcome)
