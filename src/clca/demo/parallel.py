"""Tasks that run at the same time, each on one thread of its own process, with a progress bar for each."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from clca.errors import WorkError
from clca.system.forecast import TimeLeftColumn
from clca.system.processes import forkserver_context
from clca.system.signals import first_signal
from clca.system.worker_pool import Event, Send, WorkerPool
from clca.training.progress import Display

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_STEPS = 0.2  # that a task sends


class Stopped(KeyboardInterrupt):
    """The tasks were stopped by `signal`, after they had saved what they could."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped; the same command continues from there")
        self.signal = signal_number


@dataclass(frozen=True)
class Task:
    """A task for another process.

    Attributes:
        name: Shown with its bar and its log lines.
        function: Picklable; called with `Send`, which takes a text to log or `StepsDone`.
        cost: Tasks of higher cost start first.
    """

    name: str
    function: Callable[[Send], object]
    cost: float = 0.0


class StepsDone(NamedTuple):
    """How far a task is, with a few words beside its bar."""

    done: int
    total: int
    words: str = ""


class StepSender:
    """Sends the steps of a task, a few times a second."""

    def __init__(self, send: Send) -> None:
        self._send, self._last = send, 0.0

    def __call__(self, done: int, total: int, words: str = "") -> None:
        if done == total or monotonic() - self._last >= _SECONDS_BETWEEN_STEPS:
            self._last = monotonic()
            self._send(StepsDone(done, total, words))


class RelayedDisplay(Display):
    """The display of a training run whose progress another process shows."""

    def __init__(self, send: Send, epochs: int, steps_per_epoch: int, done: int, show: bool) -> None:
        super().__init__(epochs, steps_per_epoch, done, show=False)
        self._send, self._send_step = send, StepSender(send)

    def log(self, text: str) -> None:
        self._send(text)

    def features(self, done: int, total: int) -> None:
        self._send_step(done, total, "images")

    def step(self, step: int, loss: float, rate: float) -> None:
        self._send_step(step, self.total, f"loss {loss:.3f}  {rate:.0f} images/s")


def run_tasks(tasks: Sequence[Task], processes: int, *, preload: Sequence[str] = ()) -> None:
    """Run tasks in parallel, with a bar for each on stderr if it is a terminal, else lines in the log.

    Args:
        tasks: At least one; those that wait start as others end.
        processes: Largest number of processes at a time.
        preload: Modules that the tasks need, imported once for all.

    Raises:
        ClcaError, WorkError: The error of the first task that failed; the others have saved what they can.
        Stopped: By SIGINT or SIGTERM, likewise.
    """
    pool = WorkerPool(processes, forkserver_context(*preload), initialize=_use_one_thread, single_use=True)
    run = _ParallelRun(sorted(tasks, key=lambda task: -task.cost), pool)
    with first_signal(run.ask_to_stop), run.bars, contextlib.closing(pool):
        run.wait()
    if run.stop_signal:
        raise Stopped(run.stop_signal)
    if run.failure is not None:
        raise run.failure


class _ParallelRun:
    """The state of one `run_tasks`."""

    def __init__(self, waiting: list[Task], pool: WorkerPool) -> None:
        self.waiting, self.pool = waiting, pool
        self.bars = _Bars(max(len(task.name) for task in waiting))
        self.stop_signal = 0
        self.failure: Exception | None = None

    def ask_to_stop(self, number: int) -> None:
        self.stop_signal = number

    def wait(self) -> None:
        while self.pool.running() or (self.waiting and not self._is_stopping()):
            if self._is_stopping():
                self.pool.interrupt()
            while self.waiting and self.pool.free():
                task = self.waiting.pop(0)
                self.bars.add(task.name)
                self.pool.submit(task.name, task.function)
            for event in self.pool.wait(0.3):
                self._handle(event)

    def _is_stopping(self) -> bool:
        return bool(self.stop_signal or self.failure)

    def _handle(self, event: Event) -> None:
        if event.kind == "message":
            self.bars.show(event.name, event.value)
        elif self._is_stopping() or event.kind == "result":
            return
        elif event.kind == "interrupted":  # only this process received a signal
            self.stop_signal = signal.SIGINT
        elif event.kind == "error":
            self.failure = event.value
        else:
            self.failure = WorkError(f"{event.name}: its process ended ({event.value}); the same command continues")


class _Bars:
    """A bar for each task on stderr if it is a terminal; else what the tasks log goes to the log."""

    def __init__(self, width: int) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeLeftColumn(),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console) if console.is_terminal else None
        self._ids: dict[str, TaskID] = {}
        self._width = width

    def __enter__(self) -> None:
        if self._progress is not None:
            self._progress.start()

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def add(self, name: str) -> None:
        if self._progress is not None:
            self._ids[name] = self._progress.add_task(name.ljust(self._width), total=None, words="")

    def show(self, name: str, message: Any) -> None:
        """Show what a task has sent: `StepsDone` on its bar, a text in the log if there is no bar."""
        if isinstance(message, StepsDone):
            if self._progress is not None:
                done, total, words = message
                self._progress.update(self._ids[name], completed=done, total=total, words=words)
        elif self._progress is None:
            _log.info("%s: %s", name, message)


def _use_one_thread(worker: int) -> None:
    """Prepare a worker process: PyTorch on one thread, data loaders by fork."""
    import torch

    if "fork" in multiprocessing.get_all_start_methods():  # data loaders would use this process's method otherwise
        multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
