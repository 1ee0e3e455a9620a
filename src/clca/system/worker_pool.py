"""A pool of worker processes for long tasks, which can be interrupted to save their state.

The executors of `concurrent.futures` fit neither training run: they fail every pending task when one worker dies, and
cannot interrupt a running one. Here a dead worker loses its own task only, and a running task can send messages.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from clca.errors import ClcaError, WorkError
from clca.system.processes import exit_with_parent, how_it_ended, leave_ctrl_c_to_parent

_SECONDS_TO_CLOSE = 5.0

Send = Callable[[Any], None]
"""Sends a message from a running task to the process that submitted it."""
Task = Callable[[Send], Any]
"""Picklable, as the message, the result and the worker's initializer are."""


@dataclass(frozen=True)
class Event:
    """A message from a task, or its end.

    Attributes:
        name: The task's.
        kind: "message", or how the task ended: "result"; "error" (it raised an exception); "interrupted" (it raised
            KeyboardInterrupt); "lost" (its process died).
        value: The message; the result; the exception, a `WorkError` for any but a `ClcaError`, with the traceback as
            a note; None; how the process ended, in words.
    """

    name: str
    kind: Literal["message", "result", "error", "interrupted", "lost"]
    value: Any = None


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and the task that it runs."""

    number: int
    process: Any
    pipe: Connection
    ready: bool = False
    task: str | None = None
    interrupted: bool = False


class WorkerPool:
    """Worker processes on this machine, each running one task at a time.

    Workers start as tasks need them, or all at `start`. One that dies is replaced when the next task needs it. Workers
    receive SIGTERM when this process dies, however it does, and no Ctrl-C from the terminal.

    Args:
        count: Largest number of workers at a time.
        context: From `multiprocessing.get_context` or `forkserver_context`. A worker may start processes of its own.
        initialize: Called once in each worker with its number, from 0 to `count` - 1.
        single_use: Start a new worker for every task.
    """

    def __init__(
        self, count: int, context: Any, *, initialize: Callable[[int], None] | None = None, single_use: bool = False
    ) -> None:
        self.count, self._context = count, context
        self._initialize, self._single_use = initialize, single_use
        self._workers: list[_Worker] = []
        self._stopping = False

    def start(self) -> None:
        """Start all workers now, so that they are ready when the first tasks come."""
        while len(self._workers) < self.count:
            self._new_worker()

    def free(self) -> int:
        """Number of tasks that can be submitted now."""
        return 0 if self._stopping else self.count - len(self._busy())

    def running(self) -> bool:
        """Whether any task is running."""
        return bool(self._busy())

    def submit(self, name: str, task: Task) -> None:
        """Run a task; `free()` must not be 0."""
        worker = self._idle_worker()
        worker.task = name
        with suppress(OSError):  # the worker has died; `wait` reports it
            worker.pipe.send(task)

    def wait(self, seconds: float) -> list[Event]:
        """Events since the last call, in order for each task. Waits up to `seconds` for the first one."""
        busy = self._busy()
        if not busy:
            time.sleep(seconds)
            return []
        ready = wait([worker.pipe for worker in busy], timeout=seconds)
        # Children of a killed worker, such as its data loaders, keep its end of the pipe open for some seconds.
        readable = [worker for worker in busy if worker.pipe in ready or not worker.process.is_alive()]
        return [event for worker in readable for event in self._events(worker)]

    def interrupt(self) -> None:
        """Send SIGINT to the running tasks, so that they save their state; their events still come.

        A worker that has not yet been initialized is killed: it has nothing to save. No task can be submitted any more.
        """
        self._stopping = True
        for worker in self._busy():
            if not worker.ready:
                worker.process.kill()
            elif not worker.interrupted and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
            worker.interrupted = True

    def close(self) -> None:
        """End all workers, killing those that run a task."""
        self._stopping = True
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for worker in self._workers:
            if worker.task is None:
                worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    def _idle_worker(self) -> _Worker:
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.process.is_alive():
                return worker
            self._remove(worker)
        return self._new_worker()

    def _new_worker(self) -> _Worker:
        number = min(set(range(self.count)) - {worker.number for worker in self._workers})
        # A process of a fork server has that server as its parent, which ends with this process.
        parent = None if self._context.get_start_method() == "forkserver" else os.getpid()
        ours, theirs = self._context.Pipe()
        initialize = None if self._initialize is None else partial(self._initialize, number)
        process = self._context.Process(target=_work, args=(theirs, parent, initialize, self._single_use))
        process.start()
        theirs.close()
        worker = _Worker(number, process, ours)
        self._workers.append(worker)
        return worker

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()

    def _events(self, worker: _Worker) -> list[Event]:
        """What a worker has sent; if its process died, the loss of its task as well."""
        events: list[Event] = []
        while (name := worker.task) is not None:
            alive = worker.process.is_alive()  # before looking into the pipe: a dead one has sent all it will
            try:
                if not worker.pipe.poll():
                    if alive:
                        break
                    raise EOFError
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                self._remove(worker)
                worker.task = None
                events.append(Event(name, "lost", how_it_ended(worker.process.exitcode)))
                break
            if kind == "ready":
                worker.ready = True
                continue
            events.append(Event(name, kind, _exception(*value) if kind == "error" else value))
            if kind != "message":
                worker.task = None
                if self._single_use:
                    self._remove(worker)
        return events


def _exception(is_clca_error: bool, text: str, trace: str) -> Exception:
    error = ClcaError(text) if is_clca_error else WorkError(text)
    error.add_note(trace)
    return error


def _work(pipe: Connection, parent: int | None, initialize: Callable[[], None] | None, single_use: bool) -> None:
    """Run tasks in a worker process until the pipe is closed.

    Args:
        pipe: To the process that owns the pool.
        parent: Its id; None if a fork server stands between.
        initialize: Called first.
        single_use: End after one task.
    """
    leave_ctrl_c_to_parent()
    exit_with_parent(os.getppid() if parent is None else parent)
    if initialize is not None:
        initialize()
    _send(pipe, "ready", None)
    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        _run(pipe, task)
        if single_use:
            return


def _run(pipe: Connection, task: Task) -> None:
    try:
        _send(pipe, "result", task(partial(_send, pipe, "message")))
    except KeyboardInterrupt:
        _send(pipe, "interrupted", None)
    except Exception as error:
        known = isinstance(error, (ClcaError, WorkError))
        text = str(error) if known else f"{type(error).__name__}: {error}"
        _send(pipe, "error", (isinstance(error, ClcaError), text, traceback.format_exc()))


def _send(pipe: Connection, kind: str, value: Any) -> None:
    with suppress(OSError):  # the other process has died, and `exit_with_parent` ends this one
        pipe.send((kind, value))
