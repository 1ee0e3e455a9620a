"""Progress of a measurement: a bar on a terminal, a line from time to time in a log file."""

from __future__ import annotations

from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clca.training.progress import SECONDS_BETWEEN_LINES, duration


class Meter:
    """Shows the finished share of the work on stderr, with the time left.

    Args:
        console: stderr if omitted.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._begin = self._last_line = monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, share: float, text: str) -> None:
        """Show the finished share, 0 … 1, and what is being done."""
        self._bar.update(self._task, completed=share, description=text)
        if not self.console.is_terminal and monotonic() - self._last_line >= SECONDS_BETWEEN_LINES and share > 0:
            self._last_line = monotonic()
            left = (monotonic() - self._begin) * (1 - share) / share
            self.console.print(f"{text}: {share:.0%}, {duration(left)} left", highlight=False, markup=False)
