"""Signals that ask a process to stop, handled so that it can save its state first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """A run was interrupted after it had saved its state.

    Attributes:
        folder: The run folder, from which the run can be resumed.
        step: Steps done.
        signal: Number of the signal.
    """

    def __init__(self, folder: Path, step: int, signal_number: int) -> None:
        super().__init__(
            f"stopped after step {step}; the same command, or clca train --resume {folder}, continues from there"
            if step
            else "stopped in the first step; the same command begins anew"
        )
        self.folder, self.step, self.signal = folder, step, signal_number


@contextmanager
def first_signal(handle: Callable[[int], None]) -> Iterator[None]:
    """Handle the first SIGINT or SIGTERM, so that work can be saved; a second one ends the process at once.

    Args:
        handle: Called with the signal's number. Never called outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def caught(number: int, _: object) -> None:
        handle(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, caught)
    try:
        yield
    finally:
        restore()
