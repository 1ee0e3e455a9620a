"""Progress of a study: a live display on a terminal, else a line in the log from time to time."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clca.study.results.folder import PRETRAINING, TRAINED, run_folder
from clca.study.run.result import StudyResult
from clca.system.files import objects
from clca.system.forecast import seconds_left
from clca.system.numbers import integer
from clca.training.progress import duration
from clca.training.run_folder import METRICS

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0
_MOST_SHOWN = 12  # running runs
_RECENT = 200  # finished runs that the rate is computed from


class StudyDisplay:
    """Progress of a study.

    Args:
        name: The study's name.
        out: Its folder.
        total: Number of requested runs.
        quiet: Neither show nor log progress.
    """

    def __init__(self, name: str, out: Path, total: int, quiet: bool) -> None:
        self.name, self.out, self.total, self.quiet = name, out, total, quiet
        self.best: dict[str, Any] | None = None
        self.running: dict[str, float] = {}
        self.where = ""
        self._ends: deque[float] = deque(maxlen=_RECENT)
        self._live: Live | None = None
        self._begin = self._line_at = self._shown_at = monotonic()

    def begin(self, where: str, result: StudyResult) -> None:
        """Start the display, once the executor is ready."""
        self.where = where
        self._begin = self._line_at = monotonic()
        done = f", {result.finished} of them finished" if result.finished else ""
        failed = f", {result.failed} failed" if result.failed else ""
        self.log(f"{self.name}: {self.total} runs{done}{failed}; {where}; folder {self.out}")
        console = Console(stderr=True)
        if not self.quiet and console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def log(self, text: str) -> None:
        """Log a line; the command line prints it above the live display."""
        if not self.quiet:
            _log.info("%s", text)

    def started(self, name: str) -> None:
        self.running[name] = monotonic()

    def ended(self, name: str) -> None:
        self.running.pop(name, None)

    def finished(self, row: dict[str, Any]) -> None:
        if str(row["name"]).startswith(PRETRAINING):
            self._begin = monotonic()  # so that the rate does not include the pretraining
            return
        if self.where:
            self._ends.append(monotonic())
        if row.get("top1") is not None and (self.best is None or row["top1"] > self.best["top1"]):
            self.best = row

    def show(self, result: StudyResult, at_once: int, waiting: int, elsewhere: int) -> None:
        """Update the display, or log a line if the last one is old enough."""
        now = monotonic()
        if self.quiet:
            return
        beyond = max(0, len(self.running) - at_once)  # submitted, but not started
        waiting += beyond
        if self._live is not None and now - self._shown_at >= 0.5:
            self._shown_at = now
            self._live.update(self._render(result, len(self.running) - beyond, waiting, elsewhere), refresh=True)
        elif self._live is None and now - self._line_at >= _SECONDS_BETWEEN_LINES:
            self._line_at = now
            self.log(self._line(result, len(self.running) - beyond, elsewhere))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # -- text ---------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        """Finished runs per second, by all drivers, over the most recent ones."""
        if not self._ends:
            return 0.0
        since = self._ends[0] if len(self._ends) == _RECENT else self._begin
        return len(self._ends) / max(1e-9, monotonic() - since)

    def _left(self, result: StudyResult) -> str:
        rate, ended = self._rate(), len(self._ends)
        left = self.total - result.finished - result.failed
        # Runs differ in cost: one or two say little about the others.
        seconds = seconds_left(ended, ended + left, ended / rate) if rate and ended >= min(3, self.total) else None
        return f", {duration(seconds)} left" if seconds is not None and left else ""

    def _line(self, result: StudyResult, running: int, elsewhere: int) -> str:
        failed = f", {result.failed} failed" if result.failed else ""
        other = f", {elsewhere} elsewhere" if elsewhere else ""
        return (
            f"{result.finished} of {self.total} finished{failed}, {running} running{other}; "
            f"{self._speed()}{self._left(result)}{self._best()}"
        )

    def _speed(self) -> str:
        rate = self._rate()
        if not rate:
            return "no rate yet"
        return f"{rate * 60:.1f} runs/min" if rate * 60 >= 1 else f"{rate * 3600:.1f} runs/h"

    def _best(self) -> str:
        return "" if self.best is None else f"; best so far {self.best['top1']:.1%} ({self.best['name']})"

    def _render(self, result: StudyResult, running: int, waiting: int, elsewhere: int) -> Group:
        table = Table(title=None, box=None, padding=(0, 1), expand=True)
        table.add_column("running", no_wrap=True, overflow="ellipsis", ratio=3)
        table.add_column("for", justify="right", no_wrap=True)
        table.add_column("epoch", justify="right", no_wrap=True)
        table.add_column("loss", justify="right", no_wrap=True)
        for name, since in list(self.running.items())[: min(running, _MOST_SHOWN)]:
            epoch, loss = last_step(run_folder(self.out, name) / TRAINED / METRICS)
            table.add_row(name, duration(monotonic() - since), epoch, loss)
        more = running - _MOST_SHOWN
        counts = Text(
            f"{self.name}  {result.finished} of {self.total} finished, {running} running, {waiting} waiting"
            + (f", {elsewhere} elsewhere" if elsewhere else "")
        )
        if result.failed:
            counts.append(f", {result.failed} failed", style="bold red")
        bar = ProgressBar(total=self.total, completed=result.finished + result.failed)
        rest = Text(f"{self._speed()}{self._left(result)}{self._best()}")
        return Group(counts, bar, rest, table, *([Text(f"and {more} more")] if more > 0 else []))


def last_step(path: Path) -> tuple[str, str]:
    """Epoch and loss of the last step in a metrics.jsonl; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "", ""
    for content in objects(reversed(lines)):
        if isinstance(loss := content.get("loss"), float):
            epoch = integer(content.get("epoch"))
            return "" if epoch is None else str(epoch), f"{loss:.3f}"
    return "", ""
