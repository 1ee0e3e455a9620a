"""What a training run holds: model, optimizer, schedule, where it is; and how that is saved and taken up again."""

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
from clca.system.files import need_space, write_json
from clca.training import run_folder as folder_of
from clca.training.batch_norm import normalise_over_processes
from clca.training.checkpoints import Progress, check_place, load_checkpoint, load_optimizer, save_checkpoint
from clca.training.config import TrainConfig
from clca.training.device import versions
from clca.training.loaders import Plan
from clca.training.metrics_log import MetricsLog
from clca.training.optim import freeze_backbone, make_optimizer, make_schedule
from clca.training.preflight import Splits, described_images, image_size, set_transforms


class RunState:
    """One training run on one process.

    Args:
        config, folder, splits: The run, where it is written, and its images.
        model: What is trained, not yet on its device.
        accelerator: What it is trained on.
        log: `metrics.jsonl`, by which this process has claimed the run; None in every process but the first.

    Attributes:
        plan: Which images each step takes.
        model: What is trained, wrapped for several processes.
        bare: The same without wrapping.
        ema: timm's moving average of it, or None.
        parameters: Those that learn.
        progress: Where the run is.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        model: TokenReducedViT,
        splits: Splits,
        accelerator: Accelerator,
        log: MetricsLog | None,
    ) -> None:
        self.config, self.folder, self.accelerator, self.log = config, folder, accelerator, log
        self.first: bool = accelerator.is_main_process
        self.plan = Plan.fitting(
            len(splits.train), config.batch_size, config.grad_accum, accelerator.num_processes, config.seed,
            mixes=bool(config.mixup or config.cutmix),
        )  # fmt: skip
        if config.freeze_backbone:
            freeze_backbone(model)
        copies = 8 + 2 * (config.ema is not None)  # of the weights: old and new file of model and moments, and weights
        need_space(folder, 4 * copies * sum(parameter.numel() for parameter in model.parameters()))
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
        """Take up the last checkpoint, or begin; metrics of steps after it are cut off and come again."""
        path = self.folder / folder_of.CHECKPOINT
        if path.is_file():
            self.progress, states = load_checkpoint(path)
            try:
                check_place(self.progress, self.plan.steps_per_epoch, self.config.epochs)
                for name, holder in self._holders().items():
                    if name == "optimizer":
                        load_optimizer(holder, states[name])
                    else:
                        holder.load_state_dict(states[name])
            except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise WorkError(
                    f"{path}: is not of this run ({type(error).__name__}); remove the file to begin anew"
                ) from error
        self.accelerator.wait_for_everyone()  # nobody writes before all have read
        if self.log is not None:
            if not path.is_file():  # before anything is saved: a folder without it is not taken for a run
                write_json(self.folder / folder_of.CONFIG, self._description())
            self.log.cut(self.progress.metrics_size)
            folder_of.remove_leftovers(self.folder)
        self._seconds_before, self._began = self.progress.seconds, monotonic()
        self.saved_at, self.saved_step, self.saving_takes = self._began, self.progress.step, 0.0

    def _holders(self) -> dict[str, Any]:
        """All that has a state, by its name in the checkpoint."""
        holders = {"model": self.bare, "optimizer": self.optimizer}
        if self.ema is not None:
            holders["ema"] = self.ema.module
        if self.accelerator.scaler is not None:
            holders["scaler"] = self.accelerator.scaler
        return holders

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
                "started_in": os.getcwd(),
                **described_images(Splits(self.train_images, self.watched_images)),
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
    def seconds(self) -> float:
        """Time spent on this run, over all its parts."""
        return self._seconds_before + monotonic() - self._began

    @property
    def judged(self) -> TokenReducedViT:
        """The weights that are evaluated and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.bare

    def save(self) -> None:
        """Write `last.ckpt`, whole or not at all.

        Raises:
            WorkError: It could not be written.
        """
        if not self.first:
            return
        assert self.log is not None
        began = monotonic()
        self.progress.metrics_size = self.log.sync()
        self.progress.seconds = self.seconds
        states = {name: holder.state_dict() for name, holder in self._holders().items()}
        save_checkpoint(self.folder / folder_of.CHECKPOINT, self.progress, states)
        self.saved_at, self.saved_step = monotonic(), self.progress.step
        self.saving_takes = self.saved_at - began

    def save_weights(self) -> None:
        """Write `model.safetensors`, whole or not at all.

        Raises:
            WorkError: It could not be written.
        """
        if not self.first:
            return
        try:
            save_pretrained(self.judged, self.folder, checked=self._weights_saved)
        except (ClcaError, SafetensorError) as error:  # the folder was writable when the run began
            raise WorkError(f"{self.folder / folder_of.WEIGHTS} could not be written: {error}") from error
        self._weights_saved = True

    def write(self, line: dict[str, Any]) -> str | None:
        """A line of `metrics.jsonl`, and the same to the tracker under names like val/top1.

        A run of days shall not end with the connection to its tracker: what fails there is told once, and nothing is
        sent from then on.

        Returns:
            What is to be told, or None.
        """
        if self.log is not None:
            self.log.write(line)
        if not self.accelerator.trackers:
            return None
        flat: dict[str, Any] = {}
        for name, value in line.items():
            if isinstance(value, dict):
                flat.update({f"{name}/{key}": number for key, number in value.items()})
            elif value is not None and name != "step":
                flat[name] = value
        try:
            self.accelerator.log(flat, step=self.progress.step)
        except Exception as error:
            self.accelerator.trackers = []
            return (
                f"--track {self.config.track}: {reason(error)}; no more is sent there, {folder_of.METRICS} has it all"
            )
        return None
