"""Progress of a run: a bar on a terminal, or a line in the log at intervals."""

import logging
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from clca.system.forecast import Forecast, TimeLeftColumn

SECONDS_BETWEEN_LINES = 30.0
_SHORT = 60.0  # seconds; a shorter run needs no forecast

_log = logging.getLogger(__name__)


class Display:
    """Progress of a run: a bar on stderr if it is a terminal, else lines in the log.

    Args:
        epochs: Number of epochs.
        steps_per_epoch: Updates per epoch.
        done: Updates done before the run was resumed.
        show: False to show nothing, as in all processes but the first.
        bar: Draw a bar if stderr is a terminal.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, done: int, show: bool, *, bar: bool = True) -> None:
        self.epochs, self.steps_per_epoch, self.show = epochs, steps_per_epoch, show
        console = Console(stderr=True)
        self.total = epochs * steps_per_epoch
        self._last_line = monotonic()
        # The first step, which may compile, only starts the clock.
        self._steps = Forecast(self.total, equal_units=True, clock=lambda: monotonic())
        self._forecast_logged = False
        self._bar: Bar | None = None
        self._feature_bar: Bar | None = None
        self._features: Forecast | None = None
        if show and bar and console.is_terminal:
            # With the width of the terminal from which each is shown: rich would truncate all of them.
            shown = [
                (0, TextColumn("epoch {task.fields[epoch]}/" + str(epochs))),
                (60, BarColumn(bar_width=None)),
                (0, MofNCompleteColumn()),
                (0, TextColumn("loss {task.fields[loss]}")),
                (80, TextColumn("{task.fields[rate]}")),
                (80, TimeElapsedColumn()),
                (50, TextColumn("left")),
                (50, TimeLeftColumn()),
            ]
            columns = [column for least, column in shown if console.width >= least]
            self._bar = Bar(*columns, console=console)
            epoch = min(epochs, done // steps_per_epoch + 1)
            self._task = self._bar.add_task("train", total=self.total, completed=done, epoch=epoch, loss="…", rate="")

    def start(self) -> None:
        """Show the bar, before the first step, which may take long."""
        if self._bar is not None:
            self._bar.start()

    def log(self, text: str) -> None:
        """Log a line; the command line prints it above the bar."""
        if self.show:
            _log.info("%s", text)

    def features(self, done: int, total: int) -> None:
        """Show how many images have passed the frozen model; the first call has those that were stored before."""
        if not self.show:
            return
        if self._bar is None:
            self._feature_line(done, total)
        else:
            if self._feature_bar is None:
                columns = (
                    TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
                    TimeElapsedColumn(), TextColumn("left"), TimeLeftColumn(),
                )  # fmt: skip
                self._feature_bar = Bar(*columns, console=self._bar.console, transient=True)
                self._feature_bar.add_task("features of the frozen model", total=total, completed=done)
                self._feature_bar.start()
            self._feature_bar.update(self._feature_bar.task_ids[0], completed=done)
            if done == total:
                self._feature_bar.stop()

    def _feature_line(self, done: int, total: int) -> None:
        if self._features is None:
            self._features = Forecast(total, equal_units=True, clock=lambda: monotonic())
            self._last_line = monotonic()
        self._features.update(done)
        if monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            self.log(f"features of the frozen model: image {done}/{total}{left_text(self._features.left)}")

    def step(self, step: int, loss: float, rate: float) -> None:
        """Show update number `step` (from 1), with its loss and the images per second."""
        if not self.show:
            return
        self._steps.update(step)
        self._log_forecast(step)
        epoch = (step - 1) // self.steps_per_epoch + 1
        self.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, epoch=epoch, loss=f"{loss:.3f}", rate=f"{rate:.1f} images/s")
        elif monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            self.log(
                f"epoch {epoch}/{self.epochs}  step {step}/{self.total}  loss {loss:.3f}  {rate:.1f} images/s"
                f"{left_text(self._steps.left)}"
            )

    def _log_forecast(self, step: int) -> None:
        """As soon as it can be foreseen, log how long a long run will take."""
        end = self._steps.left
        if end is not None and not self._forecast_logged and step < self.total:
            self._forecast_logged = True
            epoch = -step % self.steps_per_epoch * end / (self.total - step)
            if end > _SHORT:
                self.log(
                    f"about {duration(end)} of training left, {duration(epoch)} to the end of this epoch, after which "
                    "the run's weights are saved"
                )

    def epoch(
        self, epoch: int, train: dict[str, Any], watched: dict[str, Any] | None, split: str, better: bool
    ) -> None:
        """Log an epoch (from 1), with its scores on the training images and on the validation split."""
        line = f"epoch {epoch}/{self.epochs}  train loss {train['loss']:.3f} top-1 {train['top1']:.1%}"
        if watched is not None:
            line += f"  {split} loss {watched['loss']:.3f} top-1 {watched['top1']:.1%}"
        self._last_line = monotonic()
        self.log(line + ("  (best so far)" if better else ""))

    def close(self) -> None:
        for bar in (self._feature_bar, self._bar):
            if bar is not None:
                bar.stop()
        self._bar = self._feature_bar = None


def left_text(seconds: float | None) -> str:
    """The end of a line of progress; nothing while the time left is not known."""
    return "" if seconds is None else f"  {duration(seconds)} left"


def duration(seconds: float) -> str:
    """A duration as text: 45 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
