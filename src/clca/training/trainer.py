"""Training: `train(config)` from the first check to the finished run folder."""

import logging
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clca.data.transforms import Normalization
from clca.errors import ClcaError, WorkError
from clca.system.files import left_as_it_was, make_writable, read_json, write_json
from clca.system.numbers import integer, number, share
from clca.system.processes import is_first_on_its_machine, is_first_process
from clca.system.signals import Interrupted, first_signal
from clca.training import run_folder as folder_of
from clca.training.config import TrainConfig, default_run_folder
from clca.training.device import automatic_precision, make_accelerator
from clca.training.loaders import (
    end_workers,
    eval_loader,
    reading_processes,
    seed_mixing,
    seed_step,
    train_loader,
)
from clca.training.losses import make_loss
from clca.training.metrics_log import MetricsLog, claimed
from clca.training.preflight import build_model, open_splits, refuse_other_images, verify_images
from clca.training.progress import Display
from clca.training.state import RunState
from clca.training.tracking import begin_tracking, end_tracking
from clca.training.validation import run_inference

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to: the content of `summary.json`.

    Attributes:
        folder: The run folder.
        epochs, steps: Done.
        kept: Which weights `model.safetensors` holds: "best on val" or "last".
        kept_epoch: The epoch they are from, counted from 1.
        train: loss and top1 over the last epoch.
        watched: loss, top1, top5, macro of the kept weights on the watched split; None without one.
        seconds: Time in all.
    """

    folder: Path
    epochs: int
    steps: int
    kept: str
    kept_epoch: int
    train: dict[str, float]
    watched: dict[str, Any] | None
    seconds: float


def train(
    config: TrainConfig,
    *,
    quiet: bool = False,
    display: Callable[[int, int, int, bool], Display] = Display,
) -> RunResult:
    """Train a model and leave a run folder.

    The same config on the same folder goes on where an interrupted run stopped, and returns at once where it is
    finished. Random numbers follow from the seed and the step alone, so on one CPU the result is the same bit for bit.

    Args:
        config: The run.
        quiet: Show no progress bar and log no progress.
        display: Class that shows progress, built as `Display` is.

    Raises:
        ClcaError: The settings, images, weights or folder cannot be used; nothing was started.
        WorkError: The loss is not finite, or a file could not be written.
        Interrupted: By SIGINT or SIGTERM, once the state is saved.
    """
    folder = config.out or default_run_folder(config)
    config = config.model_copy(update={"out": folder})
    state = folder_of.find_run(folder, config)
    show = is_first_process() and not quiet
    if state == "finished":
        if show:
            _log.info("%s: is finished already", folder)
        return finished_run(folder)
    with left_as_it_was(folder):
        make_writable(folder)
        with claimed(folder) if is_first_process() else nullcontext() as log:
            if log is not None and folder_of.find_run(folder, config) != state:
                raise ClcaError(f"--out {folder}: another process has just trained there; run the command again")
            held = _taken_up(config, folder, log, show)
            return _until_the_end(held, display, show)


def _taken_up(config: TrainConfig, folder: Path, log: MetricsLog | None, show: bool) -> RunState:
    """A run that is ready for its first step here: one that was begun where its checkpoint says, or a new one."""
    begun = (folder / folder_of.CHECKPOINT).is_file()
    own = folder_of.own_images(folder) if begun else None
    splits = open_splits(config, own.root if own is not None else None)
    if begun:
        refuse_other_images(folder, splits)
    # Before the images are read, which takes long: a setting that the model refuses is told at once.
    model = build_model(config, splits.classes, start=not begun)
    if is_first_on_its_machine():  # each machine has a cache of its own, and nobody waits for it in a process group
        verify_images(splits, progress=show)
    precision = folder_of.begun_precision(folder) if begun else "auto"
    accelerator = make_accelerator(config, folder, precision=precision)
    if show and config.precision == "auto" and precision not in ("auto", automatic_precision(config.device)):
        _log.info("%s: continues with precision %s, as it was started; auto differs on this machine", folder, precision)
    return RunState(config, folder, model, splits, accelerator, log)


def _until_the_end(
    held: RunState,
    display: Callable[[int, int, int, bool], Display],
    show: bool,
) -> RunResult:
    config = held.config
    shown = display(config.epochs, held.plan.steps_per_epoch, held.progress.step, show)
    loop = _Loop(held, shown)
    try:
        if config.track != "none":
            begin_tracking(held)
        with first_signal(loop.ask_to_stop):
            result = loop.until_the_end()
    finally:
        shown.close()
        end_tracking(held.accelerator, config, shown)
    return result


def resume(folder: str | Path, *, quiet: bool = False) -> RunResult:
    """Go on with the run in a folder, with the settings it was started with; as `train` otherwise."""
    config = folder_of.stored_config(Path(folder))
    return train(config.model_copy(update={"out": Path(folder)}), quiet=quiet)


def finished_run(folder: Path) -> RunResult:
    """The result of a finished run, from its `summary.json`.

    Raises:
        WorkError: A value is missing, or is not of its type: the file may come from elsewhere.
    """
    path = folder / folder_of.SUMMARY
    summary = read_json(path) or {}
    for name, is_valid in _SUMMARY_CHECKS.items():
        if name not in summary or not is_valid(summary[name]):
            wrong = "lacks" if name not in summary else "has an invalid value of"
            raise WorkError(f"{path}: {wrong} {name}; remove it, and the same command makes it anew")
    return RunResult(folder=folder, **{name: summary[name] for name in _SUMMARY_CHECKS})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and integer(value, low=0) is not None


def _are_scores(value: Any) -> bool:
    """Whether it holds a loss, the share of images right, and beside them only numbers."""
    return (
        isinstance(value, dict)
        and share(value.get("top1")) is not None
        and "loss" in value
        and all(number(each) is not None for each in value.values())
    )


_SUMMARY_CHECKS: dict[str, Callable[[Any], bool]] = {
    "epochs": _is_count,
    "steps": _is_count,
    "kept": lambda value: value in ("last", "best on val"),
    "kept_epoch": _is_count,
    "train": _are_scores,
    "watched": lambda value: value is None or _are_scores(value),
    "seconds": lambda value: number(value, low=0, high=1e12) is not None,
}


class _Loop:
    """What happens in a run, in its order."""

    def __init__(self, state: RunState, display: Display) -> None:
        self.state, self.display = state, display
        self.config, self.plan, self.progress = state.config, state.plan, state.progress
        self.accelerator = state.accelerator
        self.stop_signal = 0
        self.nothing_to_save = False
        self.epoch_just_ended = False
        self.normalize = Normalization(state.bare.preprocess or {})
        self.loss, self.mix = make_loss(state.config, state.bare.num_classes)

    def ask_to_stop(self, number: int) -> None:
        """End after the step, because of this signal; at once in the first, which can compile for minutes.

        Raises:
            Interrupted: All that was done is in the last checkpoint, and no other process waits for this one.
        """
        self.stop_signal = number
        if self.nothing_to_save and self.accelerator.num_processes == 1:
            raise Interrupted(self.state.folder, self.progress.step, number)

    def until_the_end(self) -> RunResult:
        stop = self.config.epochs * self.plan.steps_per_epoch
        reading, watched = self._loaders(stop)
        try:
            self._work_through(iter(reading), watched, stop)
        finally:
            end_workers(reading)
            end_workers(watched)
        return self._finish()

    def _work_through(self, batches: Iterator[list[Tensor]], watched: DataLoader | None, stop: int) -> None:
        """All updates that are left, and what comes after every epoch."""
        state, progress = self.state, self.progress
        begun = progress.step
        if begun:
            self.display.log(f"resuming {state.folder} after step {progress.step} of {stop}")
        if self.config.compile:
            self.display.log("compiling in the first step, which takes minutes")
        self._end_epoch_if_over(watched)  # a run can be interrupted between its last step and its evaluation
        while progress.step < stop and not self._has_stopped_improving():
            self.nothing_to_save = progress.step == state.saved_step == begun
            asked_to_stop = self._one_step(batches)
            self.nothing_to_save = False
            if asked_to_stop:
                state.save()
                self.accelerator.wait_for_everyone()
                raise Interrupted(state.folder, progress.step, self.stop_signal or signal.SIGTERM)
            self._end_epoch_if_over(watched)
            self._save_now_and_then()
        if progress.step < stop:
            self.display.log(f"no better on val for {self.config.patience} epochs: stopped early")

    def _loaders(self, stop: int) -> tuple[DataLoader, DataLoader | None]:
        """Training batches from here to update `stop`, and this process's share of the watched images."""
        state, accelerator = self.state, self.accelerator
        workers = reading_processes(self.config.workers)
        rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        reading = train_loader(state.train_images, self.plan, rank, self.progress.step, stop, workers, device)
        images = state.watched_images
        if images is None:
            return reading, None
        return reading, eval_loader(images, len(images), self.plan.share, rank, processes, workers, device)

    # -- a step ------------------------------------------------------------------------------------------------

    def _one_step(self, batches: Iterator[list[Tensor]]) -> bool:
        """One update of the weights; whether any process was asked to stop."""
        state, accelerator, progress = self.state, self.accelerator, self.progress
        began = monotonic()
        state.schedule.step_update(progress.step)
        state.model.train()
        # On the device, for every look at it makes the next kernels wait: loss × images, right answers, images, and
        # processes asked to stop.
        totals = torch.zeros(4, device=accelerator.device)
        for part in range(self.config.grad_accum):
            images, labels = next(batches)
            totals[:3] += self._forward_backward(images, labels, part)
        totals[3] = float(self.stop_signal > 0)
        totals = accelerator.reduce(totals, "sum")
        largest = self._largest_gradient_entry().to(totals.dtype)
        loss_sum, right, seen, asked_to_stop, grad_max = torch.cat([totals, largest.reshape(1)]).tolist()
        self._refuse_not_finite(loss_sum, "loss")
        if accelerator.scaler is None:  # with fp16 the scaler leaves such a step out and goes on
            self._refuse_not_finite(grad_max, "gradient")
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(state.parameters, self.config.clip_grad)
        lr = max(group["lr"] for group in state.optimizer.param_groups)
        state.optimizer.step()
        state.optimizer.zero_grad()
        progress.step += 1
        if state.ema is not None:
            state.ema.update(state.bare, step=progress.step)
        progress.loss_sum += loss_sum
        progress.correct += right
        progress.seen += seen
        progress.grad_max = max(progress.grad_max, grad_max)
        rate = seen / (monotonic() - began)
        if progress.step % self.config.log_every == 0:
            self._log_step(loss_sum / seen, lr, right / seen, rate)
        self.display.step(progress.step, loss_sum / seen, rate)
        return asked_to_stop > 0

    def _forward_backward(self, images: Tensor, labels: Tensor, part: int) -> Tensor:
        """Add the gradient of one part of the batch; [loss × images, right answers, images] of this process."""
        config, state, accelerator = self.config, self.state, self.accelerator
        images = self.normalize(images, accelerator.device)
        labels = targets = labels.to(accelerator.device, non_blocking=True)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mix is not None:
            seed_mixing(config.seed, self.progress.step, part)
            images, targets = self.mix(images, labels)
        seed_step(config.seed, self.progress.step, part, accelerator.process_index)
        with accelerator.accumulate(state.model):
            logits = state.model(images).float()
            loss = self.loss(logits, targets) + state.bare.auxiliary_loss
            accelerator.backward(loss)
        right = (logits.detach().argmax(1) == labels).sum()
        count = right.new_tensor(len(labels))
        return torch.stack([loss.detach() * count, right, count]).float()

    def _largest_gradient_entry(self) -> Tensor:
        """Its absolute value, [], on the device."""
        self.accelerator.unscale_gradients()
        grads = [parameter.grad for parameter in self.state.parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(grads, math.inf)

    def _refuse_not_finite(self, value: float, what: str, after: int | None = None) -> None:
        """`after`: the update that it was found after; None for during the one that is being made."""
        if math.isfinite(value):
            return
        step, saved = self.progress.step + 1 if after is None else after, self.state.saved_step
        epoch = (step - 1) // self.plan.steps_per_epoch + 1
        if saved:
            last = f"the last good checkpoint is {self.state.folder / folder_of.CHECKPOINT}, after step {saved}"
        else:
            last = "no checkpoint had been saved yet"
        raise WorkError(
            f"the {what} is not finite at step {step} (epoch {epoch}); {last}. "
            "Try a lower --lr, --clip-grad 1 or --precision no"
        )

    def _log_step(self, loss: float, lr: float, accuracy: float, rate: float) -> None:
        progress = self.progress
        line = {
            "step": progress.step,
            "epoch": (progress.step - 1) // self.plan.steps_per_epoch + 1,
            "loss": loss,
            "lr": lr,
            "grad_max": progress.grad_max if math.isfinite(progress.grad_max) else None,
            "accuracy": accuracy,
            "images_per_second": round(rate, 2),
        }
        progress.grad_max = 0.0
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        """To `metrics.jsonl` and the tracker; a tracker that fails is said, once."""
        problem = self.state.write(line)
        if problem is not None:
            self.display.log(problem)

    # -- an epoch ----------------------------------------------------------------------------------------------

    def _end_epoch_if_over(self, watched: DataLoader | None) -> None:
        """Once the last step of an epoch is done: evaluate, log, and keep the weights if they are the best on val."""
        progress, split = self.progress, self.config.watched_split
        if progress.step // self.plan.steps_per_epoch == progress.epochs_done:
            return
        progress.train = {"loss": progress.loss_sum / progress.seen, "top1": progress.correct / progress.seen}
        progress.loss_sum = progress.correct = progress.seen = 0.0
        progress.epochs_done += 1
        line: dict[str, Any] = {"epoch": progress.epochs_done, "step": progress.step, "train": progress.train}
        better = False
        if watched is not None:
            progress.watched = run_inference(self.state.judged, watched, self.accelerator).summary()
            self._refuse_not_finite(progress.watched["loss"], f"{split} loss", after=progress.step)
            line[split] = progress.watched
            better = split == "val" and self._note_if_best(progress.watched)
        if better:
            self.state.save_weights()
        self._write(line)
        self.display.epoch(progress.epochs_done, progress.train, progress.watched, split, better)
        self.epoch_just_ended = True

    def _note_if_best(self, numbers: dict[str, Any]) -> bool:
        """Whether this epoch has the highest top-1 on val so far, or the same with a lower loss."""
        progress = self.progress
        best = progress.best
        better = best is None or (numbers["top1"], -numbers["loss"]) > (best["top1"], -best["loss"])
        if better:
            progress.best, progress.best_epoch = numbers, progress.epochs_done
        progress.stale = 0 if better else progress.stale + 1
        return better

    def _has_stopped_improving(self) -> bool:
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    def _save_now_and_then(self) -> None:
        """After epochs (unless saving takes over a tenth of the time since), every so many minutes and steps."""
        config, since = self.config, monotonic() - self.state.saved_at
        after_epoch = self.epoch_just_ended and since >= 10 * self.state.saving_takes
        after_steps = config.checkpoint_steps is not None and self.progress.step % config.checkpoint_steps == 0
        self.epoch_just_ended = False
        if after_epoch or after_steps or since >= 60 * config.checkpoint_minutes:
            self.state.save()

    # -- the end -----------------------------------------------------------------------------------------------

    def _finish(self) -> RunResult:
        """Write the weights and the summary."""
        state, progress = self.state, self.progress
        best = progress.best
        if best is None:
            state.save_weights()
        state.save()
        assert progress.train is not None
        result = RunResult(
            folder=state.folder,
            epochs=progress.epochs_done,
            steps=progress.step,
            kept="last" if best is None else "best on val",
            kept_epoch=progress.epochs_done if best is None else progress.best_epoch,
            train=progress.train,
            watched=progress.watched if best is None else best,
            seconds=round(state.seconds, 3),
        )
        if state.first:
            content = asdict(result)
            content.pop("folder")
            write_json(state.folder / folder_of.SUMMARY, content)
        self.accelerator.wait_for_everyone()
        return result
