"""Training: `train(config)` from the first check to the finished run folder."""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors import SafetensorError
from timm.utils import ModelEmaV3

from clca.errors import ClcaError, WorkError
from clca.training import run_folder as folder_of
from clca.training.batch_norm import normalise_over_processes
from clca.training.batches import Plan, default_workers, eval_loader, seed_mixing, seed_step, train_loader
from clca.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from clca.training.config import TrainConfig, default_run_folder
from clca.training.device import is_first_process, make_accelerator, versions
from clca.training.losses import make_loss
from clca.training.metrics import answer
from clca.training.optim import freeze_backbone, make_optimizer, make_schedule
from clca.training.preflight import Splits, build_model, image_size, open_splits, set_transforms, verify_images
from clca.training.progress import Display


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop and has saved where it is. `signal` is what asked for it, `folder` where to go on."""

    def __init__(self, folder: Path, step: int, signal_number: int) -> None:
        super().__init__(
            f"stopped after step {step}; the same command, or clca train --resume {folder}, goes on from there"
        )
        self.folder, self.step, self.signal = folder, step, signal_number


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


def train(config: TrainConfig, *, quiet: bool = False, console: Console | None = None) -> RunResult:
    """Train a model and leave a run folder.

    The same config on the same folder goes on where an interrupted run stopped, and returns at once where it is
    finished. Random numbers follow from the seed and the step alone, so on one CPU the result is the same bit for bit.

    Args:
        config: The run.
        quiet: Show nothing.
        console: Where progress goes; stderr if left away.

    Raises:
        ClcaError: The settings, images, weights or folder cannot be used; nothing was started.
        WorkError: The loss is not finite, or a file could not be written.
        Interrupted: By SIGINT or SIGTERM, once the state is saved.
    """
    console = console or Console(stderr=True)
    folder = config.out or default_run_folder(config)
    config = config.model_copy(update={"out": folder})
    state = folder_of.find_run(folder, config)
    if state == "finished":
        return finished_run(folder)
    folder_of.make_writable(folder)
    splits = open_splits(config)
    if is_first_process():
        verify_images(splits, None if quiet else console)
    accelerator = make_accelerator(config, folder)
    run = _Run(config, folder, splits, accelerator, quiet, console)
    try:
        with _catching_signals(run):
            return run.until_the_end()
    finally:
        run.close()


def finished_run(folder: Path) -> RunResult:
    """The result of a finished run, from its `summary.json`."""
    import json

    summary = json.loads((folder / folder_of.SUMMARY).read_text())
    return RunResult(
        **{**{name: summary[name] for name in RunResult.__dataclass_fields__ if name != "folder"}, "folder": folder}
    )


@contextmanager
def _catching_signals(run: "_Run") -> Iterator[None]:
    """Let the first SIGINT or SIGTERM end the run after its step, and a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask_to_stop(number: int, _: object) -> None:
        run.stop_signal = number
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for number in previous:
        signal.signal(number, ask_to_stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Run:
    """One training run on one process: what it holds, and the order in which things happen."""

    def __init__(
        self, config: TrainConfig, folder: Path, splits: Splits, accelerator: Accelerator, quiet: bool, console: Console
    ) -> None:
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.first = accelerator.is_main_process
        self.stop_signal = 0
        self.log: folder_of.MetricsLog | None = None
        self.plan = Plan.fitting(
            len(splits.train), config.batch_size, config.grad_accum, accelerator.num_processes, config.seed
        )
        model = build_model(config, splits.classes)
        if config.freeze_backbone:
            freeze_backbone(model)
        size = sum(parameter.numel() for parameter in model.parameters()) * 4
        folder_of.need_space(
            folder, size * (8 + 2 * (config.ema is not None))
        )  # old and new: weights, two moments, model
        self.train_images, self.watched_images = set_transforms(splits, image_size(model), config.augmentation)
        self._prepare(model, len(splits.classes))
        self.progress = Progress()
        self._resume()
        self.display = Display(
            config.epochs, self.plan.steps_per_epoch, self.progress.step, self.first and not quiet, console
        )

    def _prepare(self, model: Any, num_classes: int) -> None:
        config, accelerator = self.config, self.accelerator
        model.to(accelerator.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        if accelerator.num_processes > 1:
            model = normalise_over_processes(model, accelerator.device)
        self.loss, self.mix = make_loss(config, num_classes)
        optimizer = make_optimizer(model, config)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare = accelerator.unwrap_model(self.model)
        self.schedule = make_schedule(optimizer, config, self.plan.steps_per_epoch)
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]

    # -- state -------------------------------------------------------------------------------------------------

    def _states(self) -> dict[str, Any]:
        states = {"model": self.bare.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            states["ema"] = self.ema.module.state_dict()
        if self.accelerator.scaler is not None:
            states["scaler"] = self.accelerator.scaler.state_dict()
        return states

    def _resume(self) -> None:
        """Take up the last checkpoint, or begin; metrics of steps after it are cut off and come again."""
        path = self.folder / folder_of.CHECKPOINT
        if path.is_file():
            self.progress, states = load_checkpoint(path)
            try:
                self.bare.load_state_dict(states["model"])
                self.optimizer.load_state_dict(states["optimizer"])
                if self.ema is not None:
                    self.ema.module.load_state_dict(states["ema"])
                if self.accelerator.scaler is not None:
                    self.accelerator.scaler.load_state_dict(states["scaler"])
            except (KeyError, RuntimeError, ValueError) as error:
                raise WorkError(f"{path}: is not of this run ({type(error).__name__})") from error
        self.accelerator.wait_for_everyone()  # nobody writes before all have read
        if self.first:
            self.log = folder_of.MetricsLog(self.folder / folder_of.METRICS, self.progress.metrics_size)
            if not path.is_file():
                folder_of.write_json(self.folder / folder_of.CONFIG, self._description())
        self.seconds_before, self.begin = self.progress.seconds, monotonic()
        self.saved_at, self.saved_step, self.saving_takes = self.begin, self.progress.step, 0.0
        self.epoch_just_ended = False

    def _description(self) -> dict[str, Any]:
        """`config.json`: what was asked for, what that came to, and on what."""
        plan, accelerator = self.plan, self.accelerator
        return {
            "format": "clca",
            "model": self.bare.config.model_dump(mode="json"),
            "classes": self.bare.classes,
            "preprocess": self.bare.preprocess,
            "train": self.config.model_dump(mode="json"),
            "resolved": {
                "train_images": len(self.train_images),
                "watched_split": self.config.watched_split,
                "watched_images": len(self.watched_images) if self.watched_images is not None else 0,
                "batch_size": plan.batch_size,
                "steps_per_epoch": plan.steps_per_epoch,
                "warmup_epochs": self.config.warmup,
                "cooldown_epochs": self.config.cooldown,
                "label_smoothing": self.config.smoothing,
                "drop_path": self.config.drop_path_rate,
                "precision": accelerator.mixed_precision,
                "device": str(accelerator.device),
                "processes": accelerator.num_processes,
                "parameters": sum(parameter.numel() for parameter in self.bare.parameters()),
                "trained_parameters": sum(parameter.numel() for parameter in self.parameters),
            },
            "versions": versions(),
        }

    def _save(self) -> None:
        """Write `last.ckpt`, whole or not at all."""
        if self.first:
            began = monotonic()
            assert self.log is not None
            self.progress.metrics_size = self.log.sync()
            self.progress.seconds = self.seconds_before + began - self.begin
            save_checkpoint(self.folder / folder_of.CHECKPOINT, self.progress, self._states())
            self.saved_at, self.saved_step = monotonic(), self.progress.step
            self.saving_takes = self.saved_at - began

    def _save_weights(self) -> None:
        if self.first:
            try:
                self._judged().save_pretrained(self.folder)
            except (ClcaError, SafetensorError) as error:  # its folder was writable when the run began
                raise WorkError(f"{self.folder / folder_of.WEIGHTS} could not be written: {error}") from error

    def _judged(self) -> Any:
        """The weights that are evaluated and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.bare

    # -- the run -----------------------------------------------------------------------------------------------

    def until_the_end(self) -> RunResult:
        config, plan, progress = self.config, self.plan, self.progress
        workers = config.workers if config.workers is not None else default_workers()
        device, rank = self.accelerator.device, self.accelerator.process_index
        stop = config.epochs * plan.steps_per_epoch
        batches = iter(train_loader(self.train_images, plan, rank, progress.step, stop, workers, device))
        watched = None
        if self.watched_images is not None:
            processes = self.accelerator.num_processes
            watched = eval_loader(
                self.watched_images, len(self.watched_images), plan.share, rank, processes, workers, device
            )
        if progress.step:
            self.display.say(f"resuming {self.folder} after step {progress.step} of {stop}")
        self._end_epoch_if_over(watched)  # a run can be interrupted between its last step and its evaluation
        while progress.step < stop and not self._has_stopped_improving():
            if self._one_step(batches):
                self._save()
                self.accelerator.wait_for_everyone()
                raise Interrupted(self.folder, progress.step, self.stop_signal or signal.SIGTERM)
            self._end_epoch_if_over(watched)
            self._save_now_and_then()
        return self._finish()

    def _one_step(self, batches: Iterator[list[torch.Tensor]]) -> bool:
        """One update of the weights; whether any process was asked to stop."""
        config, accelerator, progress = self.config, self.accelerator, self.progress
        began = monotonic()
        device, rank = accelerator.device, accelerator.process_index
        self.schedule.step_update(progress.step)
        self.model.train()
        totals = torch.zeros(4, dtype=torch.float64)  # loss · images, right answers, images, asked to stop
        for part in range(config.grad_accum):
            images, labels = (tensor.to(device, non_blocking=True) for tensor in next(batches))
            if config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            targets = labels
            if self.mix is not None:
                seed_mixing(config.seed, progress.step, part)
                images, targets = self.mix(images, labels)
            seed_step(config.seed, progress.step, part, rank)
            with accelerator.accumulate(self.model):
                logits = self.model(images).float()
                loss = self.loss(logits, targets) + self.bare.auxiliary_loss
                accelerator.backward(loss)
            right = (logits.detach().argmax(1) == labels).sum()
            totals += torch.stack(
                [loss.detach().double() * len(labels), right.double(), right.new_tensor(len(labels)), right * 0]
            ).cpu()
        totals[3] = float(bool(self.stop_signal))
        totals = accelerator.reduce(totals.to(device, torch.float64), "sum").cpu()
        loss_sum, right, seen, asked_to_stop = totals.tolist()
        self._refuse_not_finite(loss_sum / seen, "loss")
        accelerator.unscale_gradients()
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        grad_max = torch.nn.utils.get_total_norm(grads, math.inf).item()
        if accelerator.scaler is None:  # with fp16 the scaler skips such a step itself
            self._refuse_not_finite(grad_max, "gradient")
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_grad)
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        if self.ema is not None:
            self.ema.update(self.bare, step=progress.step)
        progress.loss_sum, progress.correct, progress.seen = (
            progress.loss_sum + loss_sum,
            progress.correct + right,
            progress.seen + seen,
        )
        progress.grad_max = max(progress.grad_max, grad_max)
        rate = seen / (monotonic() - began)
        if progress.step % config.log_every == 0:
            self._log_step(loss_sum / seen, lr, right / seen, rate)
        self.display.step(progress.step, loss_sum / seen, rate)
        return asked_to_stop > 0

    def _refuse_not_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        step = self.progress.step + 1
        epoch = self.progress.step // self.plan.steps_per_epoch + 1
        path = self.folder / folder_of.CHECKPOINT
        if self.saved_step:
            last = f"the last good checkpoint is {path}, after step {self.saved_step}"
        else:
            last = "no checkpoint had been saved yet"
        raise WorkError(
            f"the {what} is {value} at step {step} (epoch {epoch}); {last}. "
            "Try a lower --lr, --clip-grad 1 or --precision no"
        )

    def _log_step(self, loss: float, lr: float, accuracy: float, rate: float) -> None:
        progress = self.progress
        grad_max = progress.grad_max if math.isfinite(progress.grad_max) else None
        progress.grad_max = 0.0
        line = {
            "step": progress.step,
            "epoch": (progress.step - 1) // self.plan.steps_per_epoch + 1,
            "loss": loss,
            "lr": lr,
            "grad_max": grad_max,
            "accuracy": accuracy,
            "images_per_second": round(rate, 2),
        }
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and the same to the tracker under names like val/top1."""
        if self.log is not None:
            self.log.write(line)
        if self.config.track != "none":
            flat: dict[str, Any] = {}
            for name, value in line.items():
                values = value if isinstance(value, dict) else {"": value}
                flat.update({f"{name}/{inner}".rstrip("/"): number for inner, number in values.items()})
            numbers = {name: value for name, value in flat.items() if value is not None and name != "step"}
            self.accelerator.log(numbers, step=self.progress.step)

    def _end_epoch_if_over(self, watched: Any) -> None:
        """Once the last step of an epoch is done: evaluate, log, and keep the weights if they are the best on val."""
        progress = self.progress
        if progress.step // self.plan.steps_per_epoch == progress.epochs_done:
            return
        epoch, split = progress.epochs_done + 1, self.config.watched_split
        progress.train = {"loss": progress.loss_sum / progress.seen, "top1": progress.correct / progress.seen}
        progress.loss_sum = progress.correct = progress.seen = 0.0
        line = {"epoch": epoch, "step": progress.step, "train": progress.train}
        better = False
        if watched is not None:
            progress.watched = answer(self._judged(), watched, self.accelerator).summary()
            line[split] = progress.watched
            if split == "val":
                better = self._is_better(progress.watched)
                progress.stale = 0 if better else progress.stale + 1
        progress.epochs_done = epoch
        if better:
            progress.best, progress.best_epoch = progress.watched, epoch
            self._save_weights()
        self._write(line)
        self.display.epoch(epoch, progress.train, progress.watched, split, better)
        self.epoch_just_ended = True

    def _is_better(self, numbers: dict[str, Any]) -> bool:
        best = self.progress.best
        return best is None or (numbers["top1"], -numbers["loss"]) > (best["top1"], -best["loss"])

    def _has_stopped_improving(self) -> bool:
        return self.config.patience is not None and self.progress.stale >= self.config.patience

    def _save_now_and_then(self) -> None:
        """After epochs (unless saving takes over a tenth of the time since), every so many minutes and steps."""
        config, since = self.config, monotonic() - self.saved_at
        after_epoch = self.epoch_just_ended and since >= 10 * self.saving_takes
        after_steps = config.checkpoint_steps is not None and self.progress.step % config.checkpoint_steps == 0
        self.epoch_just_ended = False
        if after_epoch or after_steps or since >= 60 * config.checkpoint_minutes:
            self._save()

    def _finish(self) -> RunResult:
        """Write the weights and the summary."""
        progress = self.progress
        best = progress.best
        if best is None:
            self._save_weights()
        self._save()
        assert progress.train is not None
        watched = best if best is not None else progress.watched
        result = RunResult(
            folder=self.folder,
            epochs=progress.epochs_done,
            steps=progress.step,
            kept="last" if best is None else "best on val",
            kept_epoch=progress.epochs_done if best is None else progress.best_epoch,
            train=progress.train,
            watched=watched,
            seconds=round(self.seconds_before + monotonic() - self.begin, 3),
        )
        if self.first:
            content = asdict(result)
            content.pop("folder")
            folder_of.write_json(self.folder / folder_of.SUMMARY, content)
        self.accelerator.wait_for_everyone()
        return result

    def close(self) -> None:
        self.display.close()
        if self.log is not None:
            self.log.close()
        self.accelerator.end_training()
