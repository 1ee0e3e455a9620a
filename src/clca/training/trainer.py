"""Training: `train(config)` from the first check to the finished run folder."""

import json
import logging
import math
import os
import shlex
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
from clca.models.cross_layer import LinearAggregationHead
from clca.system.files import left_as_it_was, make_writable, read_json, replacing, write_json
from clca.system.numbers import integer, number, share
from clca.system.processes import is_first_on_its_machine, is_first_process
from clca.system.signals import Interrupted, first_signal
from clca.training.confidence import FEWEST_IMAGES, set_confidence
from clca.training.config import TrainConfig, default_run_folder
from clca.training.device import automatic_precision, make_accelerator
from clca.training.elastic import ElasticStep, evaluate_rates
from clca.training.loaders import (
    end_workers,
    eval_loader,
    reading_processes,
    seed_mixing,
    seed_step,
    train_loader,
)
from clca.training.losses import make_loss, watched_measure
from clca.training.metrics_log import MetricsLog, locked_log
from clca.training.preflight import (
    build_model,
    changes_since_finished,
    check_start,
    open_splits,
    require_same_images,
    verify_images,
)
from clca.training.probing import probe
from clca.training.progress import Display
from clca.training.run_folder import RunFolder
from clca.training.start_from import known_classes
from clca.training.state import RunState
from clca.training.tracking import begin_tracking, end_tracking

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run: the content of `summary.json`.

    Attributes:
        folder: The run folder.
        epochs, steps: How many were done.
        kept: Which weights `model.safetensors` holds: "best on val" or "last".
        kept_epoch: The epoch of these weights, counted from 1.
        train: loss and top1 over the last epoch.
        watched: loss, top1, top5, macro of the kept weights on the watched split; None without one.
        seconds: Total time.
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
    """Train a model and write a run folder.

    The same config and folder resume an interrupted run, and return the result of a finished one at once. Random
    numbers depend on the seed and the step alone, so that on one CPU the result is the same bit for bit.

    Args:
        config: The run.
        quiet: Show no progress bar and log no progress.
        display: Class that shows progress, with the arguments of `Display`.

    Raises:
        ClcaError: The settings, images, weights or folder cannot be used; nothing has been started.
        WorkError: The loss is not finite, or a file could not be written.
        Interrupted: On SIGINT or SIGTERM, after the state has been saved.
    """
    return _train(config, None, quiet, display)


def _train(
    config: TrainConfig, moved_to: str | None, quiet: bool, display: Callable[[int, int, int, bool], Display]
) -> RunResult:
    """As `train`; `moved_to`: where the images of the run in the folder of these settings are now, if not there."""
    folder = config.out or default_run_folder(config)
    config = config.model_copy(update={"out": folder})
    state = RunFolder(folder).state_for(config)
    show = is_first_process() and not quiet
    if state == "finished":
        _finished_with_the_same_images(config, RunFolder(folder), moved_to)
        if show:
            _log.info("%s: already finished", folder)
        return finished_run(folder)
    with left_as_it_was(folder):
        make_writable(folder)
        with locked_log(folder) if is_first_process() else nullcontext() as log:
            run = RunFolder(folder)  # a new one: another process may have trained there before this one had the lock
            if log is not None and run.state_for(config) != state:
                raise ClcaError(f"--out {folder}: another process has just trained there; run the command again")
            return _run(_prepare_run(config, run, log, show, moved_to), display, show)


def _finished_with_the_same_images(config: TrainConfig, run: RunFolder, moved_to: str | None) -> None:
    """Refuse to take a finished run for one of the images of today.

    Raises:
        ClcaError: Images have come, gone or changed since. Images that are no longer there are no reason.
    """
    images, known = run.images, known_classes(config.start_from, run)
    if moved_to is not None:
        splits = open_splits(_at(config, moved_to), None, known)
    else:
        try:
            splits = open_splits(config, images.root if images is not None else None, known)
        except (ClcaError, OSError):
            return
    if changed := changes_since_finished(run, splits):
        again = "clca train --resume" if moved_to is not None else "the same command"
        data = shlex.quote(moved_to or config.data.root)
        raise ClcaError(
            f"{run} is finished, but its images have changed since: {changed}. Two ways on: {again} with a new folder "
            f"(--out NEW) trains anew on all images; clca train {data} --from {shlex.quote(str(run))} --out NEW starts "
            "from the weights of the finished run"
        )
    if moved_to is not None and is_first_process():
        _note_new_place(run, moved_to)


def _at(config: TrainConfig, root: str) -> TrainConfig:
    """The settings with their images elsewhere."""
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def _note_new_place(run: RunFolder, root: str) -> None:
    """Make the settings of a run name the place that its images are at now."""
    content = json.loads(json.dumps(run.content))
    content["train"]["data"]["root"] = root
    content.setdefault("resolved", {})["started_in"] = os.getcwd()
    write_json(run.config_file, content)


def _prepare_run(
    config: TrainConfig, run: RunFolder, log: MetricsLog | None, show: bool, moved_to: str | None
) -> RunState:
    """A run that is ready for its next step: from its checkpoint if there is one, else a new one."""
    resumed = run.checkpoint.is_file()
    known = known_classes(config.start_from, run)
    if moved_to is not None:
        config = _at(config, moved_to)
        splits = open_splits(config, None, known)
    else:
        images = run.images if resumed else None
        splits = open_splits(config, images.root if images is not None else None, known)
    if resumed or moved_to is not None:
        require_same_images(run, splits)
    if moved_to is not None and log is not None:
        _note_new_place(run, moved_to)
    if not resumed:
        check_start(config, splits)
    # Before the images are read, which takes long, so that a setting that the model rejects is reported at once.
    model = build_model(config, splits.classes, start=not resumed)
    if is_first_on_its_machine():  # each machine has its own cache, and no process group waits for it
        verify_images(splits, progress=show)
    precision = run.precision if resumed else "auto"
    accelerator = make_accelerator(config, run.path, precision=precision)
    if show and config.precision == "auto" and precision not in ("auto", automatic_precision(config.device)):
        _log.info("%s: continues with precision %s, as it was started; auto differs on this machine", run, precision)
    return RunState(config, run, model, splits, accelerator, log)


def _run(state: RunState, display: Callable[[int, int, int, bool], Display], show: bool) -> RunResult:
    """All remaining steps of a run, with its display, tracker and signal handler."""
    config = state.config
    progress_display = display(config.epochs, state.plan.steps_per_epoch, state.progress.step, show)
    trainer = _Trainer(state, progress_display)
    try:
        if config.track != "none":
            begin_tracking(state)
        with first_signal(trainer.request_stop):
            result = trainer.run()
    finally:
        progress_display.close()
        end_tracking(state, progress_display)
    return result


def resume(folder: str | Path, data: str | Path | None = None, *, cache: bool = True, quiet: bool = False) -> RunResult:
    """Continue the run in a folder with the settings it was started with; otherwise as `train`.

    Args:
        folder: The run folder.
        data: Where its images are now, if they were moved; from then on the run's settings name this place.
        cache: False to keep no resized images.
        quiet: As for `train`.

    Raises:
        ClcaError: As for `train`; or the images are others than those that the run was started with.
    """
    changes: dict[str, Any] = {"out": Path(folder)} | ({} if cache else {"cache": False})
    config = RunFolder(folder).config.model_copy(update=changes)
    moved_to = str(data) if data is not None and str(data) != config.data.root else None
    return _train(config, moved_to, quiet, Display)


def finished_run(folder: Path) -> RunResult:
    """The result of a finished run, from its `summary.json`.

    Raises:
        WorkError: A value is missing or of the wrong type: the file may come from elsewhere.
    """
    path = RunFolder(folder).summary
    summary = read_json(path) or {}
    for name, is_valid in _SUMMARY_CHECKS.items():
        if name not in summary or not is_valid(summary[name]):
            wrong = "lacks" if name not in summary else "has an invalid value of"
            raise WorkError(f"{path}: {wrong} {name}; remove it, and the same command writes it again")
    return RunResult(folder=folder, **{name: summary[name] for name in _SUMMARY_CHECKS})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and integer(value, low=0) is not None


def _are_scores(value: Any) -> bool:
    """Whether it holds a loss, a top-1 accuracy, and otherwise only numbers."""
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


class _Trainer:
    """The training loop of one run."""

    def __init__(self, state: RunState, display: Display) -> None:
        self.state, self.display = state, display
        self.config, self.plan, self.progress = state.config, state.plan, state.progress
        self.accelerator = state.accelerator
        self.stop_signal = 0
        self.nothing_to_save = False
        self.epoch_just_ended = False
        self.normalize = Normalization(state.bare.preprocess or {})
        self.loss, self.mix = make_loss(state.config, state.bare.num_classes, state.train_images.labels)
        elastic = state.bare.config.keep_rates is not None and state.config.probe != "only"
        self.elastic = ElasticStep(state, self.loss) if elastic else None

    def request_stop(self, number: int) -> None:
        """Stop after the current step because of this signal; at once in the first step, which may compile for minutes.

        Raises:
            Interrupted: The last checkpoint is up to date, and no other process waits for this one.
        """
        self.stop_signal = number
        if self.nothing_to_save and self.accelerator.num_processes == 1:
            raise Interrupted(self.state.folder, self.progress.step, number)

    def run(self) -> RunResult:
        stop = 0 if self.config.probe == "only" else self.config.epochs * self.plan.steps_per_epoch
        loader, watched = self._loaders(stop)
        try:
            if self.config.probe != "none" and not self.state.run.checkpoint.is_file():
                self._probe(watched)
            if stop:
                self._train_steps(iter(loader), watched, stop)
        finally:
            end_workers(loader)
            end_workers(watched)
        return self._finish()

    def _train_steps(self, batches: Iterator[list[Tensor]], watched: DataLoader | None, stop: int) -> None:
        """The remaining updates up to number `stop`, with the evaluation after every epoch."""
        state, progress = self.state, self.progress
        self.display.start()
        start = progress.step
        if start:
            self.display.log(f"resuming {state.folder} after step {progress.step} of {stop}")
        if self.config.compile:
            self.display.log("compiling in the first step, which takes minutes")
        self._end_epoch_if_over(watched)  # a run can be interrupted between its last step and its evaluation
        while progress.step < stop and not self._has_stopped_improving():
            self.nothing_to_save = progress.step == state.saved_step == start
            stop_requested = self._one_step(batches)
            self.nothing_to_save = False
            if stop_requested:
                state.save()
                self.accelerator.wait_for_everyone()
                raise Interrupted(state.folder, progress.step, self.stop_signal or signal.SIGTERM)
            self._end_epoch_if_over(watched)
            self._save_if_due()
        if progress.step < stop:
            self.display.log(f"no improvement on val for {self.config.patience} epochs: stopped early")

    def _loaders(self, stop: int) -> tuple[DataLoader, DataLoader | None]:
        """Training batches up to update `stop`, and this process's share of the watched images."""
        state, accelerator = self.state, self.accelerator
        workers = reading_processes(self.config.workers)
        rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        loader = train_loader(state.train_images, self.plan, rank, self.progress.step, stop, workers, device)
        images = state.watched_images
        if images is None:
            return loader, None
        return loader, eval_loader(images, len(images), self.plan.share, rank, processes, workers, device)

    # -- a step ------------------------------------------------------------------------------------------------

    def _one_step(self, batches: Iterator[list[Tensor]]) -> bool:
        """One update of the weights; returns whether any process was asked to stop."""
        state, accelerator, progress = self.state, self.accelerator, self.progress
        began = monotonic()
        state.schedule.step_update(progress.step)
        state.model.train()
        if self.config.probe == "first" and isinstance(state.bare.cla_head, LinearAggregationHead):
            state.bare.cla_head.eval()  # its statistics stay those that it was fitted with: a batch's are noise
        # [loss × images, correct predictions, images, processes asked to stop], on the device and read once: each read
        # synchronises with the host.
        totals = torch.zeros(4, device=accelerator.device)
        for part in range(self.config.grad_accum):
            images, labels = next(batches)
            totals[:3] += self._forward_backward(images, labels, part)
        totals[3] = float(self.stop_signal > 0)
        totals = accelerator.reduce(totals, "sum")
        largest = self._largest_gradient_entry().to(totals.dtype)
        loss_sum, correct, seen, stop_requested, grad_max = torch.cat([totals, largest.reshape(1)]).tolist()
        self._require_finite(loss_sum, "loss")
        if accelerator.scaler is None:  # with fp16 the scaler skips such a step
            self._require_finite(grad_max, "gradient")
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(state.parameters, self.config.clip_grad)
        lr = max(group["lr"] for group in state.optimizer.param_groups)
        state.optimizer.step()
        state.optimizer.zero_grad()
        progress.step += 1
        if state.ema is not None:
            state.ema.update(state.bare, step=progress.step)
        progress.loss_sum += loss_sum
        progress.correct += correct
        progress.seen += seen
        progress.grad_max = max(progress.grad_max, grad_max)
        rate = seen / (monotonic() - began)
        if progress.step % self.config.log_every == 0:
            self._log_step(loss_sum / seen, lr, correct / seen, rate)
        self.display.step(progress.step, loss_sum / seen, rate)
        return stop_requested > 0

    def _forward_backward(self, images: Tensor, labels: Tensor, part: int) -> Tensor:
        """Add the gradient of one part of the batch; returns this process's [loss × images, correct, images]."""
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
            if self.elastic is not None:
                loss, correct = self.elastic.forward_backward(self.progress.step, images, labels, targets)
            else:
                logits = state.model(images).float()
                loss = self.loss(logits, targets) + state.bare.auxiliary_loss
                accelerator.backward(loss)
                correct = (logits.detach().argmax(1) == labels).sum()
        count = correct.new_tensor(len(labels))
        return torch.stack([loss.detach() * count, correct, count]).float()

    def _largest_gradient_entry(self) -> Tensor:
        """The largest absolute gradient, [], on the device."""
        self.accelerator.unscale_gradients()
        grads = [parameter.grad for parameter in self.state.parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(grads, math.inf)

    def _require_finite(self, value: float, what: str, after: int | None = None) -> None:
        """Raise if a value is not finite; `after`: number of the update that it was computed after, None during one."""
        if math.isfinite(value):
            return
        step, saved = self.progress.step + 1 if after is None else after, self.state.saved_step
        epoch = (step - 1) // self.plan.steps_per_epoch + 1
        if saved:
            last = f"the last good checkpoint is {self.state.run.checkpoint}, after step {saved}"
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
        """Write a line to `metrics.jsonl` and the tracker; the first failure of the tracker is logged."""
        problem = self.state.write(line)
        if problem is not None:
            self.display.log(problem)

    # -- an epoch ----------------------------------------------------------------------------------------------

    def _end_epoch_if_over(self, watched: DataLoader | None) -> None:
        """After the last step of an epoch: evaluate, log, and save the weights if they are the best so far on val."""
        progress, split = self.progress, self.config.watched_split
        if progress.step // self.plan.steps_per_epoch == progress.epochs_done:
            return
        progress.train = {"loss": progress.loss_sum / progress.seen, "top1": progress.correct / progress.seen}
        progress.loss_sum = progress.correct = progress.seen = 0.0
        progress.epochs_done += 1
        line: dict[str, Any] = {"epoch": progress.epochs_done, "step": progress.step, "train": progress.train}
        better = False
        if watched is not None:
            progress.watched, by_rate = evaluate_rates(self.state.evaluated_model, watched, self.accelerator)
            self._require_finite(progress.watched["loss"], f"{split} loss", after=progress.step)
            line[split] = progress.watched
            if by_rate is not None:
                line["rates"] = by_rate
            better = split == "val" and self._note_if_best(progress.watched)
        if better:
            self.state.save_weights()
        self._write(line)
        self.display.epoch(progress.epochs_done, progress.train, progress.watched, split, better)
        self.epoch_just_ended = True

    def _note_if_best(self, numbers: dict[str, Any]) -> bool:
        """Record whether this epoch is the best so far on val; of two as accurate, the one with the lower loss."""
        progress, measure = self.progress, watched_measure(self.config, self.state.train_images.labels)

        def worth(found: dict[str, Any]) -> tuple[float, float]:
            return (-found["loss"] if measure == "loss" else found[measure], -found["loss"])

        best = progress.best
        better = best is None or worth(numbers) > worth(best)
        if better:
            progress.best, progress.best_epoch = numbers, progress.epochs_done
        progress.stale = 0 if better else progress.stale + 1
        return better

    def _has_stopped_improving(self) -> bool:
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    def _save_if_due(self) -> None:
        """Save after an epoch (unless saving takes over a tenth of the time since the last), and at set intervals."""
        config, since = self.config, monotonic() - self.state.saved_at
        after_epoch = self.epoch_just_ended and since >= 10 * self.state.save_seconds
        after_steps = config.checkpoint_steps is not None and self.progress.step % config.checkpoint_steps == 0
        self.epoch_just_ended = False
        if after_epoch or after_steps or since >= 60 * config.checkpoint_minutes:
            self.state.save()

    # -- the probe ---------------------------------------------------------------------------------------------

    def _probe(self, watched: DataLoader | None) -> None:
        """Fit the head to the features of the frozen model, which then is the best so far."""
        state, progress, split = self.state, self.progress, self.config.watched_split
        fit = probe(state, self._show_features)
        left_out = f", top-1 {fit.top1:.1%} on images left out in turn" if fit.top1 is not None else ""
        views = f" in {fit.views} views" if fit.views > 1 else ""
        self.display.log(f"head fitted to {fit.images} images{views} (C {fit.strength:.3g}{left_out})")
        progress.train = {"loss": fit.train_loss, "top1": fit.train_top1}
        line: dict[str, Any] = {"C": fit.strength, "views": fit.views, "loss": fit.loss, "top1": fit.top1}
        if watched is not None:
            progress.watched, by_rate = evaluate_rates(state.evaluated_model, watched, self.accelerator)
            line |= {split: progress.watched} | ({"rates": by_rate} if by_rate is not None else {})
            if self.config.probe == "first" and split == "val":
                self._note_if_best(progress.watched)
        state.save_weights()
        self._write({"step": 0, "epoch": 0, "probe": line})
        if self.config.probe == "only":
            progress.epochs_done = 1
            end = {"epoch": 1, "step": 0, "train": progress.train}
            self._write(end | ({split: progress.watched} if progress.watched is not None else {}))
        self.display.epoch(progress.epochs_done, progress.train, progress.watched, split, False)

    def _show_features(self, done: int, total: int) -> None:
        if self.stop_signal:  # the features so far are stored
            raise Interrupted(self.state.folder, 0, self.stop_signal)
        self.display.features(done, total)

    # -- the end -----------------------------------------------------------------------------------------------

    def _set_confidence(self) -> None:
        """Calibrate the kept weights and write `confidence.safetensors`, or log why there is none."""
        state, split = self.state, self.config.watched_split
        count = len(state.watched_images) if state.watched_images is not None and split == "val" else 0
        if self.config.data.val_split == "none":
            return  # as was asked for
        if count < FEWEST_IMAGES:
            why = f"fewer than {FEWEST_IMAGES} val images ({count})" if count else "no val split is watched"
            self.display.log(f"probabilities are not calibrated, and no image is called unfamiliar: {why}")
            return
        confidences = set_confidence(state, RunFolder(state.folder).load_model(), self._show_confidence)
        with replacing(state.run.confidence) as temporary:
            confidences.save(temporary)
        for one in confidences.each:
            rate, facts = f"keep rate {one.keep_rate}: " if len(confidences.each) > 1 else "", one.facts
            self.display.log(
                f"{rate}probabilities calibrated on {facts.images} val images, temperature "
                f"{one.temperature.item():.2f}: loss {facts.loss:.3f}, now {facts.scaled_loss:.3f}; expected "
                f"calibration error {facts.ece:.3f}, now {facts.scaled_ece:.3f}"
            )

    def _show_confidence(self, done: int, total: int) -> None:
        if self.stop_signal:  # everything else is saved
            raise Interrupted(self.state.folder, self.progress.step, self.stop_signal)
        self.display.features(done, total)

    def _finish(self) -> RunResult:
        """Write the weights and the summary."""
        state, progress = self.state, self.progress
        best = progress.best
        if best is None:
            state.save_weights()
        if self.config.probe != "only":
            state.save()
        if state.first:
            self._set_confidence()
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
            write_json(state.run.summary, content)
        self.accelerator.wait_for_everyone()
        return result
