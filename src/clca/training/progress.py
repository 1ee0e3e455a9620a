"""What a person sees while a run goes on: a bar on a terminal, a line now and then in a log file."""

from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 30.0


class Display:
    """Progress of a run on stderr.

    Args:
        epochs: Epochs in all.
        steps_per_epoch: Updates an epoch.
        done: Updates done before (of a resumed run).
        show: False for every process but the first, and where the caller wants silence.
        console: Where to; stderr if omitted.
    """

    def __init__(
        self, epochs: int, steps_per_epoch: int, done: int, show: bool, console: Console | None = None
    ) -> None:
        self.epochs, self.steps_per_epoch, self.show = epochs, steps_per_epoch, show
        self.console = console or Console(stderr=True)
        self.total = epochs * steps_per_epoch
        self._begin = self._last_line = monotonic()
        self._first = done
        self._bar: Bar | None = None
        if show and self.console.is_terminal:
            # With the columns of a terminal from which on each is shown: rich would cut all of them, the counts first.
            shown = [
                (0, TextColumn("epoch {task.fields[epoch]}/" + str(epochs))),
                (60, BarColumn(bar_width=None)),
                (0, MofNCompleteColumn()),
                (0, TextColumn("loss {task.fields[loss]}")),
                (80, TextColumn("{task.fields[rate]}")),
                (80, TimeElapsedColumn()),
                (50, TextColumn("left")),
                (50, TimeRemainingColumn(elapsed_when_finished=False)),
            ]
            columns = [column for least, column in shown if self.console.width >= least]
            self._bar = Bar(*columns, console=self.console)
            epoch = min(epochs, done // steps_per_epoch + 1)
            self._task = self._bar.add_task("train", total=self.total, completed=done, epoch=epoch, loss="…", rate="")
            self._bar.start()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.show:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int, loss: float, rate: float) -> None:
        """After update number `step` (from 1), with its loss and the images a second."""
        if not self.show:
            return
        epoch = (step - 1) // self.steps_per_epoch + 1
        if self._bar is not None:
            self._bar.update(self._task, completed=step, epoch=epoch, loss=f"{loss:.3f}", rate=f"{rate:.1f} images/s")
        elif monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            left = (self.total - step) * (monotonic() - self._begin) / max(1, step - self._first)
            self.say(
                f"epoch {epoch}/{self.epochs}  step {step}/{self.total}  loss {loss:.3f}  {rate:.1f} images/s  "
                f"{duration(left)} left"
            )

    def epoch(
        self, epoch: int, train: dict[str, Any], watched: dict[str, Any] | None, split: str, better: bool
    ) -> None:
        """After an epoch (from 1), with its numbers on the training images and on the watched split."""
        line = f"epoch {epoch}/{self.epochs}  train loss {train['loss']:.3f} top-1 {train['top1']:.1%}"
        if watched is not None:
            line += f"  {split} loss {watched['loss']:.3f} top-1 {watched['top1']:.1%}"
        self._last_line = monotonic()
        self.say(line + ("  (best so far)" if better else ""))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
