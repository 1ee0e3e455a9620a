"""Pieces of work that go on at the same time, each on one thread of a process of its own; one bar for each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from clca.errors import ClcaError, WorkError
from clca.system.processes import exit_with_parent, forkserver_context, how_it_ended, leave_ctrl_c_to_parent
from clca.system.signals import first_signal
from clca.training.progress import Display

_SECONDS_BETWEEN_STEPS = 0.2  # that are told
Tell = Callable[[str, Any], None]
"""What a piece says while it works: ("line", text) or ("step", (number done, number in all, a few words))."""


class Stopped(KeyboardInterrupt):
    """The pieces were asked to stop by `signal`, and have saved what they can."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped; the same command goes on from there")
        self.signal = signal_number


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        name: For its bar and its lines.
        work: Does it, in the other process, so it is picklable; is given `Tell`.
        cost: Larger ones begin first.
    """

    name: str
    work: Callable[[Tell], object]
    cost: float = 0.0


class Steps:
    """Tells of a piece's steps, a few times a second."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._told = tell, 0.0

    def __call__(self, done: int, total: int, words: str = "") -> None:
        if done == total or monotonic() - self._told >= _SECONDS_BETWEEN_STEPS:
            self._told = monotonic()
            self._tell("step", (done, total, words))


class RelayedDisplay(Display):
    """The display of a run that is shown by another process."""

    def __init__(self, tell: Tell, epochs: int, steps_per_epoch: int, done: int, show: bool) -> None:
        super().__init__(epochs, steps_per_epoch, done, show=False)
        self._tell, self._steps = tell, Steps(tell)

    def log(self, text: str) -> None:
        self._tell("line", text)

    def step(self, step: int, loss: float, rate: float) -> None:
        self._steps(step, self.total, f"loss {loss:.3f}  {rate:.0f} images/s")


def side_by_side(pieces: Sequence[Piece], at_once: int, console: Console, *, preload: Sequence[str] = ()) -> None:
    """Do all pieces, at most `at_once` at a time, and show how far each is.

    Args:
        pieces: What is to be done; pieces that have been waiting begin as others end.
        at_once: Processes.
        console: Where bars (on a terminal) or lines go.
        preload: Modules that the work needs, loaded once for all.

    Raises:
        ClcaError, WorkError: As the first piece that failed did; the others have saved what they can.
        Stopped: By SIGINT or SIGTERM, likewise.
    """
    work = _SideBySide(sorted(pieces, key=lambda piece: -piece.cost), at_once, console, preload)
    with first_signal(work.ask_to_stop):
        work.until_the_end()


@dataclass
class _Child:
    """A piece at work: its process, whether it has begun, its bar."""

    piece: Piece
    process: Any
    begun: bool = False
    asked: bool = False
    bar: TaskID | None = None


class _SideBySide:
    def __init__(self, waiting: list[Piece], at_once: int, console: Console, preload: Sequence[str]) -> None:
        self.waiting, self.at_once, self.console = waiting, at_once, console
        self.context = forkserver_context(*preload)
        self.children: dict[Connection, _Child] = {}
        self.stop_signal = 0
        self.failure: Exception | None = None
        self.width = max(len(piece.name) for piece in waiting)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeLeft(elapsed_when_finished=False),
        )  # fmt: skip
        self.bars = Progress(*columns, console=console) if console.is_terminal else None

    def ask_to_stop(self, number: int) -> None:
        self.stop_signal = number

    def until_the_end(self) -> None:
        with self.bars or contextlib.nullcontext():
            try:
                while self.children or (self.waiting and not self._is_stopping()):
                    while self.waiting and len(self.children) < self.at_once and not self._is_stopping():
                        self._begin(self.waiting.pop(0))
                    if self._is_stopping():
                        self._ask_all_to_stop()
                    for pipe in wait(list(self.children), timeout=0.3):
                        assert isinstance(pipe, Connection)
                        self._hear(pipe)
            finally:
                for child in self.children.values():
                    child.process.kill()
        if self.stop_signal:
            raise Stopped(self.stop_signal)
        if self.failure is not None:
            raise self.failure

    def _is_stopping(self) -> bool:
        return bool(self.stop_signal or self.failure)

    def _begin(self, piece: Piece) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(theirs, piece.work))
        process.start()
        theirs.close()
        self.children[ours] = child = _Child(piece, process)
        if self.bars is not None:
            child.bar = self.bars.add_task(piece.name.ljust(self.width), total=None, words="")

    def _ask_all_to_stop(self) -> None:
        for child in self.children.values():
            if not child.begun:
                child.process.kill()
            elif not child.asked:
                os.kill(child.process.pid, signal.SIGINT)
            child.asked = True

    def _hear(self, pipe: Connection) -> None:
        """What a child has to say, or that it has ended."""
        child = self.children[pipe]
        try:
            what, content = pipe.recv()
        except (EOFError, OSError):
            what, content = "ended", None
        if what == "begun":
            child.begun = True
        elif what == "line":
            self._say(f"{child.piece.name}: {content}")
        elif what == "step":
            if self.bars is not None and child.bar is not None:
                done, total, words = content
                self.bars.update(child.bar, completed=done, total=total, words=words)
        else:
            self._end(pipe, child, what, content)

    def _end(self, pipe: Connection, child: _Child, how: str, content: Any) -> None:
        del self.children[pipe]
        pipe.close()
        child.process.join()
        if self._is_stopping() or how in ("done", "stopped"):
            if how == "stopped" and not self._is_stopping():  # somebody stopped this process alone
                self.stop_signal = signal.SIGINT
            return
        if how == "failed":
            kind, text, trace = content
            self.failure = ClcaError(text) if kind == "ClcaError" else WorkError(text)
            self.failure.add_note(trace)  # for --debug
        else:
            ended = how_it_ended(child.process.exitcode)
            self.failure = WorkError(f"{child.piece.name}: its process ended ({ended}); the same command goes on")

    def _say(self, text: str) -> None:
        if self.bars is None:  # a bar says as much
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _work(pipe: Connection, work: Callable[[Tell], object]) -> None:
    """What the other process does."""
    leave_ctrl_c_to_parent()

    def tell(what: str, content: Any = None) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: `exit_with_parent` will see to it
            pipe.send((what, content))

    try:
        import torch

        if "fork" in multiprocessing.get_all_start_methods():  # else what reads images would begin as we did
            multiprocessing.set_start_method("fork", force=True)
        torch.set_num_threads(1)
        exit_with_parent(os.getppid())
        tell("begun")
        work(tell)
        tell("done")
    except KeyboardInterrupt:
        tell("stopped")
    except Exception as error:
        known = isinstance(error, (ClcaError, WorkError))
        text = str(error) if known else f"{type(error).__name__}: {error}"
        kind = "ClcaError" if isinstance(error, ClcaError) else "WorkError"
        tell("failed", (kind, text, traceback.format_exc()))
