"""`tune(runs)`: the most accurate run and keep rate within a budget, on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from clca import data as datasets
from clca.benchmark.candidates import share_weights
from clca.benchmark.progress import Meter
from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.evaluation.judged import choose_images
from clca.evaluation.stored import by_rate, standard_error
from clca.kernels.prepack import prepacked
from clca.models.cost import cost
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.timing import Spread, machine, rounds, using_threads
from clca.training.device import make_accelerator
from clca.training.loaders import end_workers, eval_loader, reading_processes
from clca.training.preflight import same_classes
from clca.training.run_folder import RunFolder, distinct
from clca.tune.result import Budget, Point, Tuning, choose

KEEP_RATES = (1.0, 0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 31, 60.0


def tune(
    runs: Sequence[str | Path],
    budget: Budget,
    *,
    data: str | Path | None = None,
    keep_rates: Sequence[float] | None = None,
    img_sizes: Sequence[int] = (),
    batch_size: int = 1,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    report: Callable[[str], None] | None = None,
) -> Tuning:
    """Measure runs at several keep rates, and name the most accurate on the validation images within a budget.

    Args:
        runs: Run folders, or saved models' folders or hub ids, all with the same classes; duplicates are dropped.
        budget: The limit on cost.
        data: Images to use instead of those of the first run, of one class or many. Their validation split is used,
            which the library draws if the set has none; all of them if they have no splits.
        keep_rates: To try besides a run's own, for reductions whose keep rate can be changed after training; None for
            those that the run was trained for, or for `KEEP_RATES` if it was trained for one.
        img_sizes: Sizes to try besides a run's own, without training: the position table is resampled.
        batch_size: Images in a batch, for latency.
        workers: Processes that read images; None: one per core, at most 8.
        threads: Of the CPU; None for torch's own number.
        device: "auto" or "cpu".
        precision: "auto", "no", "bf16" or "fp16".
        report: Called with one line on which images are judged and which not, before they are read.

    Raises:
        ClcaError: A run or its images do not exist, the runs' classes differ, or the budget is not a positive number.
    """
    if not runs:
        raise ClcaError("no run to tune: name at least one run folder")
    folders = [RunFolder(run) for run in distinct(map(str, runs))]
    if not (math.isfinite(budget.value) and budget.value > 0):
        raise ClcaError(f"invalid budget {budget.value:g}: must be a number above 0")
    if batch_size < 1 or (keep_rates is not None and not keep_rates):
        raise ClcaError("give a batch size of at least 1 and at least one keep rate")
    accelerator = make_accelerator(device=device, precision=precision)
    workers = reading_processes(workers)
    notes: list[str] = []
    groups = [group for run in folders for group in _of_run(run, keep_rates, img_sizes, notes)]
    root = _images_of(folders[0], data, notes)
    judged = choose_images(folders[0], groups[0].classes, str(data) if data is not None else None, None, default="val")
    if report is not None:
        report(judged.text)
    with using_threads(threads), Meter() as meter, torch.no_grad(), ExitStack() as stack:
        for model in (model for group in groups for model in group.models):
            stack.enter_context(prepacked(model))
        host = machine()
        images = judged.images
        labels = len(images)
        for number, group in enumerate(groups):
            images.transform = from_preprocess(group.preprocess)
            same_classes(group.classes, images.classes, f"{root}: {judged.split}", group.run)
            group.count_correct(images, accelerator, workers, lambda part, n=number: meter.show(  # type: ignore[misc]
                0.7 * (n + part) / len(groups), "accuracy"))  # fmt: skip
        times = _time(groups, batch_size, accelerator, lambda part: meter.show(0.7 + 0.3 * part, "latency"))
    points = [point for group in groups for point in group.points(times, batch_size, labels)]
    few = min(len(seconds) for seconds in times.values())
    if few < LEAST_ROUNDS:
        notes.append(f"only {few} rounds of timing")
    top, chosen = choose(points, budget)
    asked = {"--device": device, "--precision": precision}
    return Tuning(
        budget, points, chosen, top, root, labels, batch_size, host, notes,
        device=accelerator.device.type,
        precision=accelerator.mixed_precision,
        options=tuple(word for flag, value in asked.items() if value != "auto" for word in (flag, value)),
        judged=judged.text,
    )  # fmt: skip


@dataclass
class _Sized:
    """A run at one image size: its models by keep rate, which share their weights."""

    run: str
    models: list[TokenReducedViT]
    preprocess: dict[str, Any]
    classes: list[str]
    trained_size: bool
    correct: np.ndarray
    sample: Tensor | None = None

    @property
    def size(self) -> int:
        return int(self.models[0].patch_embed.img_size[0])

    def count_correct(
        self, images: Any, accelerator: Accelerator, workers: int, progress: Callable[[float], None]
    ) -> None:
        """Count the images that each model classifies correctly; every image is read once."""
        label_of = torch.tensor([self.classes.index(name) for name in images.classes])
        loader = eval_loader(images, len(images), 32, 0, 1, workers, accelerator.device)
        for model in self.models:
            model.to(accelerator.device)
        chosen = np.linspace(0, len(images) - 1, min(16, len(images))).astype(int)  # of all classes, as `evaluate` has
        kept, done = [], 0
        try:
            for batch, targets in loader:
                kept.append(batch[chosen[(chosen >= done) & (chosen < done + len(batch))] - done])
                done += len(batch)
                for number, model in enumerate(self.models):
                    with accelerator.autocast():
                        guesses = model(batch.to(accelerator.device)).argmax(1).cpu()
                    self.correct[number] += int((guesses == label_of[targets]).sum())
                    progress((done - len(batch) * (1 - (number + 1) / len(self.models))) / len(images))
        finally:
            end_workers(loader)
        self.sample = torch.cat(kept)

    def name(self, number: int) -> str:
        return f"{self.run} {self.size} {number}"

    def points(self, times: dict[str, list[float]], batch_size: int, images: int) -> Iterator[Point]:
        for number, model in enumerate(self.models):
            latency = Spread.of([1000 * seconds for seconds in times[self.name(number)]])
            price = cost(model, images=self.sample if model.pads else None)
            top1 = float(self.correct[number]) / images
            yield Point(
                run=self.run,
                reduction=model.config.reduction,
                keep_rate=model.keep_rate if model.config.reduction != "none" else 1.0,
                img_size=self.size,
                trained_size=self.trained_size,
                top1=top1,
                error=standard_error(top1, images),
                latency=latency,
                images_per_second=1000 * batch_size / latency.median,
                gmacs=price.gmacs,
                tokens=price.tokens_per_block[-1],
            )


def _of_run(
    run: RunFolder, keep_rates: Sequence[float] | None, img_sizes: Sequence[int], notes: list[str]
) -> Iterator[_Sized]:
    model = run.load_model()
    if model.classes is None or model.preprocess is None:
        raise ClcaError(f"{run}: the saved model lacks its classes or preprocessing, so it cannot be tuned")
    own = int(model.patch_embed.img_size[0])
    fixed = any(getattr(reduction, "fixed_counts", False) for reduction in model.reductions)
    if keep_rates is None:
        keep_rates = model.config.keep_rates or KEEP_RATES
    rates: list[Any] = sorted({model.keep_rate, *map(float, keep_rates)}, key=by_rate, reverse=True)
    if model.config.reduction == "none":
        rates = [model.keep_rate]
    elif fixed:
        rates = [model.keep_rate]
        notes.append(
            f"{run}: the parameters of {model.config.reduction} depend on the keep rate, so only its own is tried"
        )
    for size in dict.fromkeys([own, *img_sizes]):
        if size != own and fixed:
            notes.append(
                f"{run}: the parameters of {model.config.reduction} depend on the image size: not tried at {size}"
            )
            continue
        sized = model if size == own else at_size(model, size)
        models = [share_weights(sized, rate).eval() for rate in rates]
        assert sized.preprocess is not None
        yield _Sized(run.name, models, sized.preprocess, model.classes, size == own, np.zeros(len(models)))


def at_size(model: TokenReducedViT, size: int) -> TokenReducedViT:
    """The model for images of another size: its position table is resampled without training, the rest is shared.

    Args:
        model: With its preprocessing; not modified.
        size: Side of the square images, in pixels.

    Raises:
        ClcaError: Patches do not tile an image of this size, or parameters depend on the size.
    """
    resized = share_weights(model, model.keep_rate)
    resized.set_input_size(size)
    return resized.eval()


def _images_of(run: RunFolder, data: str | Path | None, notes: list[str]) -> str:
    """Location of the images to judge the runs on."""
    own = run.images
    if data is None and own is None:
        raise ClcaError(f"{run}: its training data is not known; pass the images: clca tune RUN --data DATA")
    if data is None and own is not None and not (datasets.is_leaves(own.root) or Path(own.root).expanduser().exists()):
        raise ClcaError(
            f"{run}: its training images are no longer at {own.root}; pass their new location: "
            "clca tune RUN --data DATA"
        )
    if own is not None and own.train_split == "train_val" and (data is None or str(data) in (own.name, own.root)):
        notes.append(f"{run} was trained on these validation images: its accuracy is too high; hold some images out")
    return str(data) if data is not None else own.root  # type: ignore[union-attr]


def _time(
    groups: list[_Sized], batch_size: int, accelerator: Accelerator, progress: Callable[[float], None]
) -> dict[str, list[float]]:
    """Seconds per batch of every model in every round."""
    calls: dict[str, Callable[[], Any]] = {}
    for group in groups:
        assert group.sample is not None
        batch = group.sample[torch.arange(batch_size) % len(group.sample)].to(accelerator.device)
        for number, model in enumerate(group.models):

            def call(model: TokenReducedViT = model, batch: Tensor = batch) -> None:
                with accelerator.autocast():
                    model(batch)

            calls[group.name(number)] = call
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = monotonic()
    for number, found in enumerate(rounds(calls, device=accelerator.device), start=1):
        for name, seconds in found.items():
            times[name].append(seconds)
        passed = monotonic() - begin
        progress(min(1.0, max(number / MOST_ROUNDS, passed / SECONDS if number >= LEAST_ROUNDS else 0)))
        if number >= MOST_ROUNDS or (number >= LEAST_ROUNDS and passed > SECONDS):
            break
    return times
