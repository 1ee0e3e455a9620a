"""The time that work still takes, shown only once it means something: one rule for all displays of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from rich.progress import ProgressColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

LEAST_SHARE, LEAST_UNITS, LEAST_SECONDS = 0.05, 4, 5.0


def seconds_left(done: float, total: float, seconds: float, *, equal_units: bool = False) -> float | None:
    """Seconds that the rest takes at the rate so far; None while that says nothing.

    It says something after 5 seconds, if a twentieth of the work is done, or four units of equal cost.

    Args:
        done, total: Work since the clock was started, and in all: units, or weighted by their cost.
        seconds: Time that what is done has taken, without warming up.
        equal_units: Whether `done` counts units of equal cost.
    """
    if not (done > 0 and total > 0 and seconds >= LEAST_SECONDS):
        return None
    if done < LEAST_SHARE * total and not (equal_units and done >= LEAST_UNITS):
        return None
    left = max(0.0, total - done) * seconds / done
    return left if math.isfinite(left) else None


class Forecast:
    """Time left of work that reports how far it is. The clock starts at the first report: the unit before warms up.

    Args:
        total: All work.
        equal_units: Whether it is counted in units of equal cost, rather than in shares of different work.
        clock: Seconds.
    """

    def __init__(self, total: float, *, equal_units: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self.total, self.equal_units = total, equal_units
        self._clock = clock
        self._start: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None

    def update(self, done: float) -> None:
        """Report that so much is done by now, what was done before the program started included."""
        now = (done, self._clock())
        if self._start is None or done < self._start[0]:
            self._start = now
        if self._last is None or done != self._last[0]:
            self._last = now

    @property
    def left(self) -> float | None:
        """Seconds from now; None while nothing can be said."""
        if self._start is None or self._last is None:
            return None
        first, begin = self._start
        done, end = self._last
        left = seconds_left(done - first, self.total - first, end - begin, equal_units=self.equal_units)
        return None if left is None else max(0.0, left - (self._clock() - end))


class TimeLeftColumn(ProgressColumn):
    """Time left of a bar that counts units of equal cost, by the rule of `seconds_left`; a dash until then."""

    max_refresh = 0.5

    def __init__(self, *, equal_units: bool = True) -> None:
        super().__init__()
        self._equal_units = equal_units
        self._before: dict[TaskID, float] = {}
        self._forecasts: dict[TaskID, Forecast] = {}

    def render(self, task: Task) -> Text:
        """What stands on the bar: 1:02:03, or a dash."""
        if task.finished or task.total is None:
            return Text("" if task.finished else "–", style="progress.remaining")
        if task.completed != self._before.setdefault(task.id, task.completed):
            clock = self._forecasts.setdefault(task.id, Forecast(task.total, equal_units=self._equal_units))
            clock.total = task.total
            clock.update(task.completed)
        forecast = self._forecasts.get(task.id)
        left = forecast.left if forecast is not None else None
        if left is None:
            return Text("–", style="progress.remaining")
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02d}:{seconds:02d}", style="progress.remaining")
