"""Progress of a measurement: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clca.training.progress import SECONDS_BETWEEN_LINES, duration

_log = logging.getLogger(__name__)


class Meter:
    """Share of the work that is done, with the time left: a bar on stderr if it is a terminal, else in the log."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
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
        """`share` of all, 0 … 1, is done; `text` names what is being done."""
        self._bar.update(self._task, completed=share, description=text)
        if not self.console.is_terminal and monotonic() - self._last_line >= SECONDS_BETWEEN_LINES and share > 0:
            self._last_line = monotonic()
            left = (monotonic() - self._begin) * (1 - share) / share
            _log.info("%s: %.0f%%, %s left", text, 100 * share, duration(left))
