"""The state of a training run: model, optimizer, schedule and progress; saving and resuming it."""

import os
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from timm.utils import ModelEmaV3

from clca.errors import ClcaError, WorkError, reason
from clca.models.saving import save_pretrained
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.deadline import DeadlineThread
from clca.system.files import need_space, write_json
from clca.training.batch_norm import normalise_over_processes
from clca.training.checkpoints import Progress, check_position, load_checkpoint, load_optimizer, save_checkpoint
from clca.training.config import TrainConfig
from clca.training.device import versions
from clca.training.image_list import write_images
from clca.training.loaders import BatchPlan
from clca.training.losses import class_weights
from clca.training.metrics_log import MetricsLog
from clca.training.optim import freeze_backbone, freeze_blocks, make_optimizer, make_schedule
from clca.training.preflight import Splits, described_images, image_size, set_transforms
from clca.training.run_folder import METRICS, RunFolder
from clca.training.start_from import RECORD

_SEND_SECONDS = 15.0  # in which a tracker must accept a line of metrics


class RunState:
    """One training run on one process.

    Args:
        config, run, splits: The settings, the run folder and the images.
        model: The model to train, not yet on its device.
        accelerator: Device, precision and processes.
        log: `metrics.jsonl`, by which this process holds the lock on the run; None in all processes but the first.

    Attributes:
        plan: Which images each step uses.
        model: The model, wrapped for several processes.
        bare: The model without wrapper.
        ema: timm's moving average of it, or None.
        parameters: Trainable parameters.
        progress: Progress of the run.
        tracker_calls: Makes all calls of the tracker.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        model: TokenReducedViT,
        splits: Splits,
        accelerator: Accelerator,
        log: MetricsLog | None,
    ) -> None:
        self.config, self.run, self.accelerator, self.log = config, run, accelerator, log
        self.first: bool = accelerator.is_main_process
        self.tracker_calls = DeadlineThread()
        self.plan = BatchPlan.create(
            len(splits.train), config.batch_size, config.grad_accum, accelerator.num_processes, config.seed,
            mixes=bool(config.mixup or config.cutmix), shares=_shares(splits.train.labels, config),
        )  # fmt: skip
        if config.freeze_backbone:
            freeze_backbone(model)
        if config.freeze_blocks is not None:
            freeze_blocks(model, config.freeze_blocks)
        # Copies of the weights: model and two moments in the old and in the new checkpoint, and two weights files.
        copies = 8 + 2 * (config.ema is not None)
        need_space(self.folder, 4 * copies * sum(parameter.numel() for parameter in model.parameters()))
        self._splits = splits
        self.train_images, self.watched_images = set_transforms(splits, image_size(model), config.augmentation)
        self._prepare(model)
        self.progress = Progress()
        self._weights_saved = False
        self._resume()

    def _prepare(self, model: TokenReducedViT) -> None:
        config, accelerator = self.config, self.accelerator
        model.to(accelerator.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        if accelerator.num_processes > 1:
            normalise_over_processes(model, accelerator.device)
        optimizer = make_optimizer(model, config)
        self.schedule = make_schedule(optimizer, config, self.plan.steps_per_epoch)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare: TokenReducedViT = accelerator.unwrap_model(self.model)
        if config.compile:
            self.bare.compile()
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]

    def _resume(self) -> None:
        """Load the last checkpoint, or start; metrics of steps after it are truncated and written again."""
        path = self.run.checkpoint
        if path.is_file():
            self.progress, states = load_checkpoint(path)
            try:
                check_position(self.progress, self.plan.steps_per_epoch, self.config.epochs)
                for name, holder in self._stateful().items():
                    if name == "optimizer":
                        load_optimizer(holder, states[name])
                    else:
                        holder.load_state_dict(states[name])
            except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise WorkError(
                    f"{path}: does not belong to this run ({type(error).__name__}); remove the file to start again"
                ) from error
        self.accelerator.wait_for_everyone()  # no process writes before all have read
        if self.log is not None:
            if not path.is_file():  # before anything else is saved: a folder without it is not recognised as a run
                write_json(self.run.config_file, self._description())
                write_images(self.run.image_list, self._splits.listed())
            self.log.truncate(self.progress.metrics_size)
            self.run.remove_temporary_files()
        self._seconds_before, self._began = self.progress.seconds, monotonic()
        self.saved_at, self.saved_step, self.save_seconds = self._began, self.progress.step, 0.0

    def _stateful(self) -> dict[str, Any]:
        """Every object with a state dict, by its name in the checkpoint."""
        stateful = {"model": self.bare, "optimizer": self.optimizer}
        if self.ema is not None:
            stateful["ema"] = self.ema.module
        if self.accelerator.scaler is not None:
            stateful["scaler"] = self.accelerator.scaler
        return stateful

    def _description(self) -> dict[str, Any]:
        """`config.json`: the settings, what they resolve to, and the versions used."""
        plan, accelerator = self.plan, self.accelerator
        return {
            "format": "clca",
            "model": self.bare.config.model_dump(mode="json"),
            "classes": self.bare.classes,
            "preprocess": self.bare.preprocess,
            "train": self.config.model_dump(mode="json"),
            "resolved": {
                "started_in": os.getcwd(),
                **described_images(self._splits),
                **(
                    {RECORD: {"run": self.config.start_from, "classes": list(self._splits.known)}}
                    if self.config.start_from is not None
                    else {}
                ),
                "watched_split": self.config.watched_split,
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

    @property
    def folder(self) -> Path:
        return self.run.path

    @property
    def seconds(self) -> float:
        """Time spent on this run, including before it was resumed."""
        return self._seconds_before + monotonic() - self._began

    @property
    def evaluated_model(self) -> TokenReducedViT:
        """The model that is evaluated and saved: the moving average if there is one."""
        return self.ema.module if self.ema is not None else self.bare

    def save(self) -> None:
        """Write `last.ckpt` atomically.

        Raises:
            WorkError: It could not be written.
        """
        if not self.first:
            return
        assert self.log is not None
        began = monotonic()
        self.progress.metrics_size = self.log.sync()
        self.progress.seconds = self.seconds
        states = {name: holder.state_dict() for name, holder in self._stateful().items()}
        save_checkpoint(self.run.checkpoint, self.progress, states)
        self.saved_at, self.saved_step = monotonic(), self.progress.step
        self.save_seconds = self.saved_at - began

    def save_weights(self) -> None:
        """Write `model.safetensors` atomically.

        Raises:
            WorkError: It could not be written.
        """
        if not self.first:
            return
        self.evaluated_model.use_rate_statistics()  # a moving average is also one over the rates of its last steps
        try:
            save_pretrained(self.evaluated_model, self.folder, checked=self._weights_saved)
        except (ClcaError, SafetensorError) as error:  # the folder was writable when the run started
            raise WorkError(f"{self.run.weights} could not be written: {error}") from error
        self._weights_saved = True

    def write(self, line: dict[str, Any]) -> str | None:
        """Write a line to `metrics.jsonl`, and to the tracker under names like val/top1.

        A lost connection to the tracker must not end a long run: after a failure nothing more is sent.

        Returns:
            A message about such a failure to log, or None.
        """
        if self.log is not None:
            self.log.write(line)
        if not self.accelerator.trackers:
            return None
        try:
            self.tracker_calls.call(lambda: self.accelerator.log(_flat(line), step=self.progress.step), _SEND_SECONDS)
        except Exception as error:
            self.accelerator.trackers = []
            return (
                f"--track {self.config.track}: {reason(error)}; nothing more is sent there; {METRICS} has all metrics"
            )
        return None


def _shares(labels: list[int], config: TrainConfig) -> torch.Tensor | None:
    """The probability of each image in a draw, so that classes are drawn equally often; None for a plain order."""
    if config.balance != "sampler":
        return None
    return torch.from_numpy(class_weights(labels, max(labels) + 1)[labels]) / len(labels)


def _flat(line: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers by names like val/top1 or rates/0.1/top1, without the number of the step."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None and (prefix or name != "step"):
            flat[prefix + name] = value
    return flat
