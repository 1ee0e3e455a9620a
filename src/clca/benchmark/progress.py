"""Progress of a measurement: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from clca.system.forecast import Forecast
from clca.training.progress import SECONDS_BETWEEN_LINES, duration

_log = logging.getLogger(__name__)


class Meter:
    """Share of the work that is done, with the time left: a bar on stderr if it is a terminal, else in the log.

    Args:
        deadline: When the work is to end, by the monotonic clock, however much of it is done; None if it has no limit.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.console = Console(stderr=True)
        self._deadline = deadline
        self._last_line = monotonic()
        self._forecast = Forecast(1.0, clock=lambda: monotonic())
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, left="")

    def __enter__(self) -> Meter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, share: float, text: str) -> None:
        """`share` of all, 0 … 1, is done; `text` names what is being done."""
        if share > 0:  # before, nothing has been measured that tells how fast it goes
            self._forecast.update(share)
        left = self._left()
        self._bar.update(self._task, completed=share, description=text, left=left)
        if not self.console.is_terminal and monotonic() - self._last_line >= SECONDS_BETWEEN_LINES and share > 0:
            self._last_line = monotonic()
            _log.info("%s: %.0f%%%s", text, 100 * share, f", {left}" if left else "")

    def _left(self) -> str:
        limit = max(0.0, self._deadline - monotonic()) if self._deadline is not None else None
        left = self._forecast.left
        if left is None:
            return "" if limit is None else f"at most about {duration(limit)} left"
        return f"{duration(left if limit is None else min(left, limit))} left"
