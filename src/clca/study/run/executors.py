"""Where runs are made: in this process, or in several on this machine. `ray_executor` has the one for clusters."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from clca.study.run.job import Job, Outcome, one_line, perform
from clca.system.worker_pool import Event, Send, WorkerPool


class Executor(Protocol):
    """Makes runs. The driver submits jobs while there are free slots, and waits for their outcomes."""

    def start(self) -> None:
        """Prepare for the first job."""

    def free_slots(self) -> int:
        """Number of jobs that can be submitted now."""

    def most_at_once(self) -> int:
        """Number of runs made at the same time; jobs submitted beyond it wait."""

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Outcomes since the last call. Waits up to `seconds` for the first one."""

    def stop(self) -> None:
        """Let the current runs save their state and end; their outcomes still come."""

    def close(self) -> None:
        """End everything at once."""

    def describe(self) -> str:
        """Where the runs are made, in a few words."""


class InThisProcess:
    """Makes one run after the other in this process."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def start(self) -> None:
        pass

    def free_slots(self) -> int:
        return 1 - len(self._jobs)

    def most_at_once(self) -> int:
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


class LocalProcesses:
    """Makes several runs at once on this machine, each worker process one after the other.

    A worker that dies is replaced, and its run is reported as lost. The workers end when this process does, however it
    ends.

    Args:
        count: Number of worker processes.
        gpus: The GPUs that they share, as CUDA names them; with more processes than GPUs, several use the same one.
    """

    def __init__(self, count: int, gpus: Sequence[str] = ()) -> None:
        self.count, self.gpus = count, list(gpus)
        initialize = partial(_use_gpu, self.gpus) if self.gpus else None
        self._pool = WorkerPool(count, multiprocessing.get_context("spawn"), initialize=initialize)

    def start(self) -> None:
        self._pool.start()

    def free_slots(self) -> int:
        return self._pool.free()

    def most_at_once(self) -> int:
        return self.count

    def submit(self, job: Job) -> None:
        self._pool.submit(job.name, partial(_perform, job))

    def wait(self, seconds: float) -> list[Outcome]:
        return [_outcome(event) for event in self._pool.wait(seconds)]

    def stop(self) -> None:
        self._pool.interrupt()

    def close(self) -> None:
        self._pool.close()

    def describe(self) -> str:
        return ("in a process" if self.count == 1 else f"in {self.count} processes") + (
            f" on GPU {', '.join(self.gpus)}" if self.gpus else ""
        )


def _use_gpu(gpus: Sequence[str], worker: int) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]


def _perform(job: Job, send: Send) -> Outcome:
    return perform(job)


def _outcome(event: Event) -> Outcome:
    if event.kind == "result":
        assert isinstance(event.value, Outcome)
        return event.value
    if event.kind == "interrupted":  # before or after the run itself
        return Outcome(event.name, "interrupted")
    detail = one_line(event.value) if event.kind == "error" else f"its process ended ({event.value})"
    return Outcome(event.name, "lost", detail)
