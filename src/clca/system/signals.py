"""Ending in order when asked to."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop and has saved where it is. `signal` is what asked for it, `folder` where to go on."""

    def __init__(self, folder: Path, step: int, signal_number: int) -> None:
        super().__init__(
            f"stopped after step {step}; the same command, or clca train --resume {folder}, goes on from there"
            if step
            else "stopped in the first step; the same command begins anew"
        )
        self.folder, self.step, self.signal = folder, step, signal_number


@contextmanager
def first_signal(tell: Callable[[int], None]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM be told, so that work can be saved, and a second one end it at once.

    Args:
        tell: Called with the signal's number. Outside the main thread, which alone can catch signals, never.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def caught(number: int, _: object) -> None:
        tell(number)
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
