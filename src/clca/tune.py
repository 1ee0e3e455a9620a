"""`tune(runs)`: the most accurate run and keep rate within a budget, on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from rich import box
from rich.console import Console
from rich.table import Table
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from clca import data as data_room
from clca.benchmark.candidates import sharing
from clca.benchmark.progress import Meter
from clca.costing import cost
from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.factory import build
from clca.hub import from_pretrained
from clca.linear import prepacked
from clca.measure import Spread, command, machine, rounds, using_threads, versions
from clca.model import TokenReducedViT
from clca.training.batches import end_workers, eval_loader, reading_processes
from clca.training.device import make_accelerator
from clca.training.preflight import same_classes
from clca.training.run_folder import make_writable, own_images, replacing, write_csv, write_json
from clca.weights import load_strict

KEEP_RATES = (1.0, 0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 31, 60.0
WIDE = 100
JSON, CSV, PICTURE = "tune.json", "tune.csv", "frontier.png"

Measure = Literal["latency_ms", "gmacs", "images_per_second"]


@dataclass(frozen=True)
class Budget:
    """At most `value` milliseconds a batch or GMACs an image, or at least `value` images a second."""

    measure: Measure
    value: float

    def __str__(self) -> str:
        return {
            "latency_ms": f"at most {self.value:g} ms",
            "gmacs": f"at most {self.value:g} GMACs",
            "images_per_second": f"at least {self.value:g} images/s",
        }[self.measure]


@dataclass(frozen=True)
class Point:
    """One run at one keep rate and size.

    Attributes:
        run, reduction, keep_rate, img_size: What it is.
        trained_size: Whether the run was trained at this size.
        top1: Share of the validation images that are right, 0 … 1.
        error: Standard error of that.
        latency: Milliseconds a batch.
        images_per_second: From the median.
        gmacs: Multiply-accumulates of one image in 10⁹, as the published method counts them.
        tokens: Tokens after the last block.
    """

    run: str
    reduction: str
    keep_rate: float | tuple[float, ...]
    img_size: int
    trained_size: bool
    top1: float
    error: float
    latency: Spread
    images_per_second: float
    gmacs: float
    tokens: float

    def cost(self, measure: Measure) -> float:
        """What the budget limits; for images a second, the seconds of one, so that less is always cheaper."""
        if measure == "images_per_second":
            return 1 / self.images_per_second
        return self.latency.median if measure == "latency_ms" else self.gmacs

    def fits(self, budget: Budget) -> bool:
        limit = 1 / budget.value if budget.measure == "images_per_second" else budget.value
        return self.cost(budget.measure) <= limit

    @property
    def rates(self) -> str:
        """The keep rate as the command line takes it."""
        several = self.keep_rate if isinstance(self.keep_rate, tuple) else (self.keep_rate,)
        return " ".join(f"{rate:g}" for rate in several)


@dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Attributes:
        budget: What was asked for.
        points: Every candidate, runs in the order given, keep rates falling.
        chosen: The best within the budget, None where nothing fits.
        most_accurate: The most accurate within the budget; not the chosen one if that is as good and cheaper.
        data, images: The validation images, and how many.
        batch_size: Of the measured latency.
        notes: What a reader must know.
    """

    budget: Budget
    points: list[Point]
    chosen: Point | None
    most_accurate: Point | None
    data: str
    images: int
    batch_size: int
    machine: dict[str, Any]
    notes: list[str]

    def advice(self) -> str:
        """What to do, in a line; where nothing fits, what comes closest."""
        best = self.chosen
        if best is None:
            near = min(self.points, key=lambda point: point.cost(self.budget.measure))
            return (
                f"nothing is within {self.budget}: closest is {near.run} at keep rate {near.rates}, "
                f"{near.img_size} px: {_costs(near)}, top-1 {near.top1:.1%}"
            )
        if not best.trained_size:
            return f"train at this size: clca train … --reduction {best.reduction} --img-size {best.img_size}"
        rate = "" if best.reduction == "none" else f" --keep-rate {best.rates}"
        return f"clca predict {best.run} IMAGES{rate}"

    def reason(self) -> str | None:
        """Why the chosen one was chosen."""
        best, top = self.chosen, self.most_accurate
        if best is None or top is None:
            return None
        what = (
            f"{best.run}: {best.reduction} at keep rate {best.rates}, {best.img_size} px: {_told(best)}, {_costs(best)}"
        )
        if best is top:
            return f"most accurate with {self.budget}: {what}"
        there = "" if top.run == best.run else f"{top.run} at "
        return (
            f"with {self.budget}: {what}; {there}keep rate {top.rates} has {top.top1:.1%}, "
            f"which is within the standard error, and is dearer: {_costs(top)}"
        )

    def render(self, console: Console) -> None:
        """Print table, reason, advice and notes."""
        console.print(_table(self, console.width >= WIDE))
        for line in [self.reason(), self.advice() if self.chosen else None, *self.notes]:
            if line is not None:
                console.print(line, highlight=False, markup=False)

    def as_dict(self) -> dict[str, Any]:
        """The content of `tune.json`."""
        return {
            "format": "clca-tune-1", "command": command(), "machine": self.machine, "versions": versions(),
            "budget": vars(self.budget), "images": self.images, "batch_size": self.batch_size,
            "points": [_flat(point) for point in self.points],
            "chosen": None if self.chosen is None else _flat(self.chosen),
            "reason": self.reason(), "advice": self.advice(), "notes": self.notes,
        }  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """Write `tune.json`, `tune.csv` and `frontier.png`.

        Raises:
            ClcaError: The folder cannot be written.
            WorkError: A file could not be written; its predecessor is whole.
        """
        from clca.report.frontier import draw_frontier

        make_writable(folder)
        write_json(folder / JSON, json.loads(json.dumps(self.as_dict())))
        rows = [_flat(point) for point in self.points]
        write_csv(folder / CSV, list(rows[0]), (row.values() for row in rows))
        with replacing(folder / PICTURE) as temporary:
            draw_frontier(temporary, self, frontier(self.points, self.budget.measure))
        return [folder / name for name in (JSON, CSV, PICTURE)]


def tune(
    runs: Sequence[str | Path],
    budget: Budget,
    *,
    data: str | Path | None = None,
    keep_rates: Sequence[float] = KEEP_RATES,
    img_sizes: Sequence[int] = (),
    batch_size: int = 1,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    console: Console | None = None,
) -> Tuning:
    """Measure runs at several keep rates, and name the most accurate on the validation images within a budget.

    Args:
        runs: Run folders, or saved models' folders or hub ids, all of the same classes.
        budget: What it may cost.
        data: Other images than those of the first run; their validation split is used, by the library's rule where
            the set has none.
        keep_rates: To try, for reductions that take another at run time; the others are tried with their own.
        img_sizes: Sizes to try beside a run's own, without training: the position table is resampled.
        batch_size: Images at once, when latency is measured.
        workers: Processes that read images; None: one a core, at most 8.
        threads: Of the CPU; None for torch's own number.
        device: "auto" or "cpu".
        precision: "auto", "no", "bf16" or "fp16".
        console: Where progress goes; stderr if left away.

    Raises:
        ClcaError: There is no such run or image, they do not fit together, or the budget is not a positive number.
    """
    if not runs:
        raise ClcaError("no run to tune: name at least one run folder")
    if not (math.isfinite(budget.value) and budget.value > 0):
        raise ClcaError(f"a budget of {budget.value:g} makes no sense: give a number above 0")
    if batch_size < 1 or not keep_rates:
        raise ClcaError("give a batch size of at least 1 and at least one keep rate")
    accelerator = make_accelerator(device=device, precision=precision)
    workers = reading_processes(workers)
    notes: list[str] = []
    groups = [group for run in runs for group in _of_run(str(run), keep_rates, img_sizes, notes)]
    root, source = _images_of(runs[0], data, notes)
    with using_threads(threads), Meter(console) as meter, torch.no_grad(), ExitStack() as stack:
        for model in (model for group in groups for model in group.models):
            stack.enter_context(prepacked(model))
        told = machine()
        labels = 0
        for number, group in enumerate(groups):
            images = data_room.open(root, "val", source=source, transform=from_preprocess(group.preprocess))
            same_classes(group.classes, images.classes, f"{root}: val", group.run)
            labels = len(images)
            group.answer(images, accelerator, workers, lambda part, n=number: meter.show(  # type: ignore[misc]
                0.7 * (n + part) / len(groups), "accuracy"))  # fmt: skip
        times = _time(groups, batch_size, accelerator, lambda part: meter.show(0.7 + 0.3 * part, "latency"))
    points = [point for group in groups for point in group.points(times, batch_size, labels)]
    few = min(len(seconds) for seconds in times.values())
    if few < LEAST_ROUNDS:
        notes.append(f"only {few} rounds of timing")
    top, chosen = choose(points, budget)
    return Tuning(budget, points, chosen, top, str(root), labels, batch_size, told, notes)


def choose(points: Sequence[Point], budget: Budget) -> tuple[Point | None, Point | None]:
    """The most accurate within the budget, and the cheapest that its standard error does not tell from it."""
    fitting = [point for point in points if point.fits(budget)]
    if not fitting:
        return None, None
    top = max(fitting, key=lambda point: (point.top1, -point.cost(budget.measure)))
    as_good = [point for point in fitting if point.top1 >= top.top1 - top.error]
    return top, min(as_good, key=lambda point: (point.cost(budget.measure), -point.top1))


def frontier(points: Sequence[Point], measure: Measure) -> list[Point]:
    """The points that no other beats in both accuracy and cost, from cheap to dear."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost(measure), -point.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


@dataclass
class _Sized:
    """A run at one image size: its models by keep rate, which share their weights."""

    run: str
    models: list[TokenReducedViT]
    preprocess: dict[str, Any]
    classes: list[str]
    trained_size: bool
    right: np.ndarray
    sample: Tensor | None = None

    @property
    def size(self) -> int:
        return int(self.models[0].patch_embed.img_size[0])

    def answer(self, images: Any, accelerator: Accelerator, workers: int, progress: Callable[[float], None]) -> None:
        """Count right answers of every model; each image is read once."""
        label_of = torch.tensor([self.classes.index(name) for name in images.classes])
        loader = eval_loader(images, len(images), 32, 0, 1, workers, accelerator.device)
        for model in self.models:
            model.to(accelerator.device)
        kept, done = [], 0
        try:
            for batch, targets in loader:
                if done < 16:
                    kept.append(batch)
                done += len(batch)
                for number, model in enumerate(self.models):
                    with accelerator.autocast():
                        guesses = model(batch.to(accelerator.device)).argmax(1).cpu()
                    self.right[number] += int((guesses == label_of[targets]).sum())
                    progress((done - len(batch) * (1 - (number + 1) / len(self.models))) / len(images))
        finally:
            end_workers(loader)
        self.sample = torch.cat(kept)[:16]

    def name(self, number: int) -> str:
        return f"{self.run} {self.size} {number}"

    def points(self, times: dict[str, list[float]], batch_size: int, images: int) -> Iterator[Point]:
        for number, model in enumerate(self.models):
            latency = Spread.of([1000 * seconds for seconds in times[self.name(number)]])
            price = cost(model, images=self.sample if model._pads else None)
            right = float(self.right[number])
            # With one more image right and one wrong, so that no error of 0 is claimed where all are right.
            share = (right + 1) / (images + 2)
            yield Point(
                run=self.run,
                reduction=model.config.reduction,
                keep_rate=model.keep_rate if model.config.reduction != "none" else 1.0,
                img_size=self.size,
                trained_size=self.trained_size,
                top1=right / images,
                error=math.sqrt(share * (1 - share) / images),
                latency=latency,
                images_per_second=1000 * batch_size / latency.median,
                gmacs=price.gmacs,
                tokens=price.tokens_per_block[-1],
            )


def _of_run(run: str, keep_rates: Sequence[float], img_sizes: Sequence[int], notes: list[str]) -> Iterator[_Sized]:
    model = from_pretrained(run)
    if model.classes is None or model.preprocess is None:
        raise ClcaError(f"{run}: the saved model does not say its classes and preprocessing, so it cannot be tuned")
    own = int(model.patch_embed.img_size[0])
    fixed = any(getattr(reduction, "fixed_counts", False) for reduction in model.reductions)
    rates: list[Any] = sorted(set(keep_rates), reverse=True)
    if model.config.reduction == "none":
        rates = [model.keep_rate]
    elif fixed:
        rates = [model.keep_rate]
        notes.append(
            f"{run}: the parameters of {model.config.reduction} depend on the keep rate: only its own is tried"
        )
    for size in dict.fromkeys([own, *img_sizes]):
        if size != own and fixed:
            notes.append(
                f"{run}: the parameters of {model.config.reduction} depend on the image size: not tried at {size}"
            )
            continue
        sized = model if size == own else at_size(model, size)
        models = [sharing(sized, rate).eval() for rate in rates]
        assert sized.preprocess is not None
        yield _Sized(run, models, sized.preprocess, model.classes, size == own, np.zeros(len(models)))


def at_size(model: TokenReducedViT, size: int) -> TokenReducedViT:
    """The model for images of another size, its position table resampled, nothing trained.

    Args:
        model: With its preprocessing.
        size: Side of the square images in pixels.

    Raises:
        ClcaError: Patches do not tile such an image, or parameters depend on the size.
    """
    made = build(model.config.model_copy(update={"img_size": size}))
    state = dict(model.state_dict())
    if "pos_embed" in state:
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"],
            new_size=list(made.patch_embed.grid_size),
            old_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
        )
    load_strict(made, state, f"the model at {size} px")
    assert model.preprocess is not None
    scale = size / model.preprocess["img_size"]
    made.classes = model.classes
    made.preprocess = model.preprocess | {"img_size": size, "resize": round(model.preprocess["resize"] * scale)}
    return made.eval()


def _images_of(run: str | Path, data: str | Path | None, notes: list[str]) -> tuple[str, str | None]:
    """Where the validation images are, and in which layout."""
    own = own_images(run)
    if data is None and own is None:
        raise ClcaError(f"{run}: does not say what it was trained on; name the images: clca tune RUN --data DATA")
    if own is not None and own.train_split == "train_val" and (data is None or str(data) in (own.name, own.root)):
        notes.append(f"{run} was trained on these validation images: its accuracy is flattered, hold some back")
    return (str(data), None) if data is not None else (own.root, own.source)  # type: ignore[union-attr]


def _time(
    groups: list[_Sized], batch_size: int, accelerator: Accelerator, progress: Callable[[float], None]
) -> dict[str, list[float]]:
    """Seconds a batch of every model in every round."""
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


def _told(point: Point) -> str:
    return f"top-1 {point.top1:.1%} ± {point.error:.1%}"


def _costs(point: Point) -> str:
    return f"{point.latency.median:.1f} ms, {point.images_per_second:.1f} images/s, {point.gmacs:.2f} GMACs"


def _flat(point: Point) -> dict[str, Any]:
    numbers = dict(vars(point))
    latency = numbers.pop("latency")
    numbers["run"] = Path(point.run).name
    numbers["keep_rate"] = point.rates if isinstance(point.keep_rate, tuple) else point.keep_rate
    return numbers | {f"latency_ms_{name}": value for name, value in vars(latency).items()}


def _table(tuning: Tuning, wide: bool) -> Table:
    runs = list(dict.fromkeys(point.run for point in tuning.points))
    untrained = any(not point.trained_size for point in tuning.points)
    title = f"{tuning.images} validation images, batch {tuning.batch_size}, {tuning.budget}"
    if len(runs) > 1:
        title = "\n".join([*(f"{number}: {run}" for number, run in enumerate(runs, start=1)), title])
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ["", *(["run"] if len(runs) > 1 else []), "reduction"]:
        table.add_column(name, no_wrap=True)
    # A narrow terminal has no room for both; the one that the budget speaks of stays.
    left_out = "" if wide else "p90" if tuning.budget.measure == "images_per_second" else "images/s"
    columns = [name for name in ("px", "keep", "top-1", "ms", "p90", "images/s", "GMACs", "tokens") if name != left_out]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for point in tuning.points:
        mark = "→" if point is tuning.chosen else "" if point.fits(tuning.budget) else "×"
        cells = [mark, *([str(1 + runs.index(point.run))] if len(runs) > 1 else []), point.reduction]
        values = {
            "px": f"{point.img_size}" + ("" if point.trained_size else "*"),
            "keep": point.rates,
            "top-1": f"{point.top1:.1%} ± {point.error:.1%}",
            "ms": f"{point.latency.median:.1f}",
            "p90": f"{point.latency.p90:.1f}",
            "images/s": f"{point.images_per_second:.1f}",
            "GMACs": f"{point.gmacs:.2f}",
            "tokens": f"{point.tokens:.0f}",
        }
        table.add_row(*cells, *(values[name] for name in columns))
    table.caption = "→ chosen  × over the budget" + ("  * not trained at this size" if untrained else "")
    table.caption_justify = "left"
    return table
