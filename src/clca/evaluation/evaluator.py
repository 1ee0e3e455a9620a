"""`evaluate(run)`: how good a finished run is on images it has not seen, and what it costs."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch.utils.data import Dataset

from clca import data as data_room
from clca.data.transforms import Normalization, from_preprocess
from clca.errors import ClcaError, WorkError, reason
from clca.evaluation.stored import FOLDER, NUMBERS
from clca.models.cost import cost
from clca.models.pretrained import from_pretrained
from clca.models.token_reduced_vit import TokenReducedViT
from clca.plots.confusion import most_confused, write_confusion_picture
from clca.system.paths import as_it_is
from clca.system.processes import is_first_process
from clca.training.device import make_accelerator, versions
from clca.training.loaders import end_workers, eval_loader, reading_processes
from clca.training.preflight import refuse_unreadable, same_classes, warn_of_cache
from clca.training.run_folder import own_images, replacing, write_csv, write_json
from clca.training.validation import answer

ROWS_SHOWN = 30


@dataclass(frozen=True)
class ClassResult:
    """One class: its images, and precision, recall and F1 in 0 … 1."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, all shares in 0 … 1.

    Attributes:
        data, split: The images.
        images: How many.
        top1, top5, macro: Share of images right at first, among the five most likely, and mean share over classes.
        loss: Mean cross-entropy.
        classes: One result a class of the run.
        confusion: Images by true class (row) and predicted class (column), [K, K].
        gmacs: Multiply-accumulates of one image in 10⁹, as the method counts them.
        computed_gmacs: What this program computes of them.
        params: Parameters.
        tokens_per_block: Tokens that each block puts out.
        images_per_second: Measured, the forward pass alone, on `device` in `precision`.
        fingerprint: Of all that this depends on but the keep rate (`Judged.fingerprint`).
        folder: Where `evaluation.json`, `classes.csv`, `confusion.csv` and `confusion.png` are, if anywhere.
    """

    data: str
    split: str
    images: int
    top1: float
    top5: float
    macro: float
    loss: float
    classes: list[ClassResult]
    confusion: np.ndarray
    gmacs: float
    computed_gmacs: float
    params: int
    tokens_per_block: tuple[float, ...]
    keep_rate: float | tuple[float, ...]
    images_per_second: float
    device: str
    precision: str
    fingerprint: str
    folder: Path | None

    def summary(self) -> dict[str, Any]:
        """The numbers of `evaluation.json`."""
        names = ("data", "split", "images", "top1", "top5", "macro", "loss", "gmacs", "params", "tokens_per_block")
        more = ("computed_gmacs", "keep_rate", "images_per_second", "device", "precision", "fingerprint")
        return {name: getattr(self, name) for name in (*names, *more)}

    def render(self, console: Console) -> None:
        """Print the numbers, the class table (the worst where there are many) and what is confused most."""
        title = as_it_is(f"{self.split} of {self.data}: {self.images} images", "table.title")
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_row("top-1", f"{self.top1:.2%}", "GMACs an image", f"{self.gmacs:.4g}")
        table.add_row("top-5", f"{self.top5:.2%}", "parameters", f"{self.params / 1e6:.1f} M")
        rate = f"{self.images_per_second:.1f}"
        table.add_row("macro accuracy", f"{self.macro:.2%}", f"images/s ({self.device}, {self.precision})", rate)
        table.add_row("loss", f"{self.loss:.4f}", "tokens by block", " ".join(f"{n:g}" for n in self.tokens_per_block))
        console.print(table)
        console.print(self._class_table())
        pairs = most_confused(self.confusion, [result.name for result in self.classes])
        if pairs:
            listed = ", ".join(f"{true} taken for {taken} ({count})" for true, taken, count in pairs)
            console.print(as_it_is(f"most confused: {listed}"))

    def _class_table(self) -> Table:
        present = [result for result in self.classes if result.images]
        told = sorted(present, key=lambda result: result.f1)[:ROWS_SHOWN] if len(present) > ROWS_SHOWN else present
        title = "by class" if len(told) == len(present) else f"the {len(told)} hardest of {len(present)} classes"
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for name in ("images", "precision", "recall", "F1"):
            table.add_column(name, justify="right")
        for result in told:
            numbers = (f"{value:.1%}" for value in (result.precision, result.recall, result.f1))
            table.add_row(as_it_is(result.name), str(result.images), *numbers)
        return table


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "test",
    *,
    keep_rate: float | tuple[float, ...] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    cache_gb: float | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Evaluate a run or a saved model, over all processes that were launched.

    Args:
        run: Run folder, or a saved model's folder or hub id.
        data: Other images than the run's own; their classes must be among the run's.
        split: "test", "val", "train" or "train_val".
        keep_rate: Keep this share of tokens, or one a location, instead of what the run was trained with.
        batch_size: Images at once, over all processes.
        workers: Processes that read images; None: one a core, at most 8.
        device: "auto" or "cpu".
        precision: "auto", "no", "bf16" or "fp16".
        cache: Keep the resized images on disk (`clca.data.cache.fill`) and read those that are there.
        cache_gb: Gigabytes that all of them may take; None: `$CLCA_CACHE_GB`, else 20.
        out: Folder for the files; None: `RUN/evaluation/SPLIT` (with the data's name and the keep rate if they are
            not the run's), or nowhere if `run` is not a folder.

    Raises:
        ClcaError: There is no such run, split or image, the images are of other classes, or a setting is impossible.
        WorkError: The files could not be written.
    """

    def take_rate(model: TokenReducedViT) -> None:
        if keep_rate is not None:
            model.keep_rate = keep_rate

    judged = Judged(
        run, data, split, batch_size=batch_size, workers=workers, device=device, precision=precision, cache=cache,
        cache_gb=cache_gb, check=take_rate,
    )  # fmt: skip
    with closing(judged):
        rate = judged.own_rate if keep_rate is None else keep_rate
        return judged.evaluate(rate, Path(out) if out is not None else judged.folder(rate))


class Judged:
    """A model and the images that it is judged on, loaded once for any number of keep rates.

    The arguments are those of `evaluate`.

    Attributes:
        model: On its device, in evaluation mode.
        own_rate: The keep rate that the run was trained with.
        accelerator: Says device, precision and processes.

    Raises:
        ClcaError: There is no such run, split or image, the images are of other classes, or a setting is impossible.
    """

    def __init__(
        self,
        run: str | Path,
        data: str | Path | None = None,
        split: str = "test",
        *,
        batch_size: int = 64,
        workers: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache: bool = True,
        cache_gb: float | None = None,
        check: Callable[[TokenReducedViT], None] | None = None,
    ) -> None:
        """`check` may refuse the model, or set its keep rate, before any image is looked at."""
        if batch_size < 1:
            raise ClcaError(f"batch_size {batch_size}: take at least one image at once")
        workers = reading_processes(workers)
        model = from_pretrained(run)
        if model.classes is None or model.preprocess is None:
            raise ClcaError(
                f"{run}: the saved model does not say its classes and preprocessing, so it cannot be evaluated"
            )
        self.own_rate = model.keep_rate
        if check is not None:
            check(model)
        own = own_images(run) if data is None else None
        if data is None and own is None:
            raise ClcaError(
                f"{run}: does not say what it was trained on; name the images as well: clca evaluate RUN DATA"
            )
        name, root, source = (own.name, own.root, own.source) if own is not None else (str(data), str(data), None)
        images = data_room.open(
            root, split, source=source, transform=from_preprocess(model.preprocess, normalize=False)
        )
        self._images = _Relabelled(images, model.classes, f"{root}: {split}")
        if cache:
            outcome = data_room.use_cache([images], gigabytes=cache_gb, progress=is_first_process())
            refuse_unreadable(outcome.bad, images.paths)
            warn_of_cache(outcome.problem if is_first_process() else None)
        self.accelerator = accelerator = make_accelerator(device=device, precision=precision)
        rank, processes = accelerator.process_index, accelerator.num_processes
        share, count = max(1, batch_size // processes), len(self._images)
        self._loader = eval_loader(self._images, count, share, rank, processes, workers, accelerator.device)
        self._sample = _some_images(self._images, model.preprocess) if model._pads else None
        self.model = model.to(accelerator.device)
        self.root, self.split = name, split
        self._run, self._data, self._batch_size = Path(run), data, batch_size

    def evaluate(self, keep_rate: float | tuple[float, ...], folder: Path | None) -> Evaluation:
        """Ask the model about every image at a keep rate, and write the files if there is a folder for them.

        Raises:
            ClcaError: The model cannot take this keep rate.
            WorkError: The files could not be written.
        """
        model, accelerator = self.model, self.accelerator
        assert model.classes is not None
        model.keep_rate = keep_rate
        price = cost(model, images=self._sample)
        answers = answer(model, self._loader, accelerator, measure=True)
        labels, guesses = answers.labels.numpy(), answers.ranked[:, 0].numpy()
        evaluation = Evaluation(
            data=self.root,
            split=self.split,
            images=len(labels),
            top1=answers.top(1),
            top5=answers.top(5),
            macro=answers.macro_accuracy(),
            loss=answers.loss,
            classes=_by_class(labels, guesses, model.classes),
            confusion=confusion_matrix(labels, guesses, labels=range(len(model.classes))),
            gmacs=price.gmacs,
            computed_gmacs=price.computed_gmacs,
            params=price.params,
            tokens_per_block=price.tokens_per_block,
            keep_rate=model.keep_rate,
            images_per_second=answers.images_per_second,
            device=accelerator.device.type,
            precision=accelerator.mixed_precision,
            fingerprint=self.fingerprint,
            folder=folder,
        )
        if folder is not None and accelerator.is_main_process:
            _write(evaluation, folder)
        return evaluation

    def folder(self, keep_rate: float | tuple[float, ...], room: Path | None = None) -> Path | None:
        """Where an evaluation belongs: in `room`, by default that of the run, which only a folder has."""
        room = room or (self._run / FOLDER if self._run.is_dir() else None)
        if room is None:
            return None
        rates = keep_rate if isinstance(keep_rate, (tuple, list)) else [keep_rate]
        other = [] if keep_rate == self.own_rate else ["keep" + "-".join(f"{rate:g}" for rate in rates)]
        return room / "-".join([self.name, *other])

    @property
    def name(self) -> str:
        """The split, behind the name of the images where they are not the run's own."""
        return "-".join([*([Path(str(self._data).split(":")[0]).resolve().name] if self._data else []), self.split])

    @cached_property
    def fingerprint(self) -> str:
        """Of all that an evaluation depends on but the keep rate: model, images, device, precision, batch."""
        model, images = self.model, self._images.images
        listed: list[list[Any]] = []
        for path, label in zip(images.paths, images.labels, strict=True):
            state = path.stat() if path.is_file() else None  # synthetic leaves are no files
            listed.append([str(path), label, *((state.st_size, state.st_mtime_ns) if state is not None else ())])
        settings = model.config.model_dump(mode="json") | {"keep_rate": None}
        where = [self.accelerator.device.type, self.accelerator.mixed_precision, self.accelerator.num_processes]
        told = [settings, model.classes, model.preprocess, self.root, listed, *where, self._batch_size]
        digest = hashlib.sha256(json.dumps([told, versions()]).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def close(self) -> None:
        """End the processes that read images, and leave the process group in order."""
        end_workers(self._loader)
        self.accelerator.end_training()


class _Relabelled(Dataset[tuple[torch.Tensor, int]]):
    """Images whose labels are indices into the model's classes, by name."""

    def __init__(self, images: Any, classes: list[str], where: str) -> None:
        same_classes(classes, images.classes, where, "the run's training images")
        self.images = images
        self.label = [classes.index(name) for name in images.classes]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return image, self.label[label]


def _some_images(images: _Relabelled, preprocess: dict[str, Any]) -> torch.Tensor:
    """Sixteen images spread over the split, for a cost that depends on what is seen."""
    chosen = np.linspace(0, len(images) - 1, min(16, len(images))).astype(int)
    stacked = torch.stack([images[int(index)][0] for index in chosen])
    return Normalization(preprocess)(stacked, torch.device("cpu"))


def _by_class(labels: np.ndarray, guesses: np.ndarray, names: list[str]) -> list[ClassResult]:
    every = range(len(names))
    precision, recall, f1, count = precision_recall_fscore_support(labels, guesses, labels=every, zero_division=0)
    return [ClassResult(names[k], int(count[k]), float(precision[k]), float(recall[k]), float(f1[k])) for k in every]


def _write(evaluation: Evaluation, folder: Path) -> None:
    names = [result.name for result in evaluation.classes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{folder}: cannot be made ({reason(error)})") from error
    rows = [[r.name, r.images, f"{r.precision:.6f}", f"{r.recall:.6f}", f"{r.f1:.6f}"] for r in evaluation.classes]
    write_csv(folder / "classes.csv", ["class", "images", "precision", "recall", "f1"], rows)
    counts = [[name, *row] for name, row in zip(names, evaluation.confusion.tolist(), strict=True)]
    write_csv(folder / "confusion.csv", ["true \\ predicted", *names], counts)
    with replacing(folder / "confusion.png") as temporary:
        write_confusion_picture(temporary, evaluation.confusion, names)
    # Last: where it is, the others are.
    write_json(folder / NUMBERS, json.loads(json.dumps(evaluation.summary())))
