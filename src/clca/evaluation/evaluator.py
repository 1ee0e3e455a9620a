"""`evaluate(run)`: accuracy and cost of a finished run on a split of a data set."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import Dataset

from clca import data as datasets
from clca.data.transforms import Normalization, from_preprocess
from clca.errors import ClcaError, WorkError, reason
from clca.evaluation.answers import LABEL_ERRORS, MISTAKES, Answers
from clca.evaluation.judged import choose_images
from clca.evaluation.label_errors import find_label_errors
from clca.evaluation.stored import FOLDER, NUMBERS
from clca.evaluation.together import combined, group_of
from clca.models.confidence import Confidence
from clca.models.cost import cost
from clca.models.token_reduced_vit import TokenReducedViT
from clca.plots.confusion import most_confused, write_confusion_picture
from clca.plots.contact_sheet import draw_contact_sheet
from clca.plots.reliability import draw_reliability
from clca.system.files import replacing, write_csv, write_json
from clca.system.paths import as_it_is, shown
from clca.system.processes import is_first_process
from clca.system.tables import Column, Table, words
from clca.training.confidence import ReliabilityBin, calibration_error, reliability
from clca.training.device import make_accelerator, versions
from clca.training.loaders import end_workers, eval_loader, reading_processes
from clca.training.preflight import refuse_unreadable, warn_of_cache
from clca.training.run_folder import RunFolder
from clca.training.start_from import recorded_classes
from clca.training.validation import InferenceResult, run_inference

ROWS_SHOWN = 30
_MOST_PROBABILITIES = 500_000_000  # images × classes, of which label errors are found: 2 GB


@dataclass(frozen=True)
class ClassResult:
    """One class: its images, and precision, recall and F1 in 0 … 1."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassGroup:
    """The classes that a run knew from the one that it started from, or those that it added.

    Attributes:
        classes: How many classes with images.
        images: Their images.
        top1: Share of these classified correctly, 0 … 1; None without images.
    """

    classes: int
    images: int
    top1: float | None

    def __str__(self) -> str:
        if self.top1 is None:
            return "no images"
        images, classes = "" if self.images == 1 else "s", "" if self.classes == 1 else "es"
        return f"top-1 {self.top1:.1%} ({self.images} image{images} of {self.classes} class{classes})"


@dataclass(frozen=True)
class GroupAccuracy:
    """What one answer for all photographs of a plant brings.

    Attributes:
        by: How they were grouped.
        groups: Number of groups of one class.
        images: Their images.
        top1: Share of the groups classified correctly, 0 … 1; None without groups.
        mixed: Groups of several classes, which are left out.
    """

    by: str
    groups: int
    images: int
    top1: float | None
    mixed: int

    def __str__(self) -> str:
        share = "no group" if self.top1 is None else f"top-1 {self.top1:.1%} of {self.groups} groups"
        left_out = f"; {self.mixed} groups of several classes are left out" if self.mixed else ""
        return f"together by {shown(self.by)}: {share} of {self.images} images{left_out}"


@dataclass(frozen=True)
class Trust:
    """How far the answers can be trusted; shares are in 0 … 1.

    Attributes:
        ece: Expected calibration error of the probabilities.
        uncalibrated_ece: The same before they were calibrated; None if they were not.
        bins: Mean probability and share of right answers by probability.
        turned_away: Share of the images that are taken for none of the classes; None if that is not known.
        false_alarms: The share that should be at most.
    """

    ece: float
    uncalibrated_ece: float | None
    bins: tuple[ReliabilityBin, ...]
    turned_away: float | None
    false_alarms: float | None

    def __str__(self) -> str:
        if self.uncalibrated_ece is None or self.turned_away is None or self.false_alarms is None:
            return f"expected calibration error {self.ece:.3f} (the run is not calibrated at this keep rate)"
        return (
            f"expected calibration error {self.ece:.3f} ({self.uncalibrated_ece:.3f} before calibration); "
            f"{self.turned_away:.1%} of the images would be turned away as none of the classes (set to "
            f"{self.false_alarms:.0%} on val)"
        )


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; shares are in 0 … 1.

    Attributes:
        data, split: The images.
        images: Number of images.
        top1, top5, macro: Share of images classified correctly, with the true class among the five most likely, and
            mean share over classes.
        loss: Mean cross-entropy.
        classes: One result per class of the run.
        confusion: Images by true class (row) and predicted class (column), [K, K].
        gmacs: Multiply-accumulates per image in 10⁹, as the published method counts them.
        computed_gmacs: The same as this implementation computes them.
        params: Number of parameters.
        tokens_per_block: Tokens in the output of each block.
        images_per_second: Measured throughput of the forward pass alone, on `device` in `precision`.
        fingerprint: Hash of everything that the result depends on except the keep rate (`Evaluator.fingerprint`).
        folder: Folder of `evaluation.json`, `classes.csv`, `confusion.csv`, `confusion.png`, `predictions.csv`,
            `label_errors.csv`, `reliability.png` and, if there are mistakes, `mistakes.jpg`; None if not written.
        judged: Which images are judged and which not, in one line.
        trained_on: How many of the images the model was trained on, as far as is known.
        answers: The answer for each image.
        trust: How far the answers can be trusted.
        together: What one answer for all photographs of a plant brings, where groups were asked for.
        known, new: Of a run that started from another one (`--from`): the classes of that, and those that it added.
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
    judged: str = ""
    trained_on: int = 0
    answers: Answers | None = None
    trust: Trust | None = None
    together: GroupAccuracy | None = None
    known: ClassGroup | None = None
    new: ClassGroup | None = None

    def known_and_new(self) -> str:
        """One line that compares the classes that the run knew with those that it added."""
        return f"known classes: {self.known}; new classes: {self.new}"

    def summary(self) -> dict[str, Any]:
        """The content of `evaluation.json`."""
        names = ("data", "split", "images", "top1", "top5", "macro", "loss", "gmacs", "params", "tokens_per_block")
        more = ("computed_gmacs", "keep_rate", "images_per_second", "device", "precision", "fingerprint")
        found = {name: getattr(self, name) for name in (*names, *more, "judged", "trained_on")}
        errors = self.answers.label_errors if self.answers is not None else None
        found["label_errors"] = len(errors.images) if errors is not None else None
        found["together"] = asdict(self.together) if self.together is not None else None
        found["trust"] = asdict(self.trust) if self.trust is not None else None
        groups = {"known": self.known, "new": self.new} if self.known is not None and self.new is not None else {}
        return found | {name: dict(vars(group)) for name, group in groups.items()}

    def render(self, console: Console) -> None:
        """Print the numbers, the class table (the worst classes if there are many) and what the model mistakes."""
        tokens, rate = " ".join(f"{count:g}" for count in self.tokens_per_block), f"{self.images_per_second:.1f}"
        rows = [
            ["top-1", f"{self.top1:.2%}", "GMACs an image", f"{self.gmacs:.4g}"],
            ["top-5", f"{self.top5:.2%}", "parameters", f"{self.params / 1e6:.1f} M"],
            ["macro accuracy", f"{self.macro:.2%}", f"images/s ({self.device}, {self.precision})", rate],
            ["loss", f"{self.loss:.4f}", "tokens by block", tokens],
        ]
        title = shown(f"{self.split} of {self.data}: {self.images} images")
        Table([words("")] * 4, rows, title=title, headings=False).render(console)
        if self.trust is not None:
            console.print(as_it_is(str(self.trust)))
        if self.together is not None:
            console.print(as_it_is(f"{self.together} (single photographs {self.top1:.1%})"))
        if self.known is not None:
            console.print(as_it_is(self.known_and_new()))
        self._class_table().render(console)
        pairs = most_confused(self.confusion, [result.name for result in self.classes])
        if pairs:
            listed = ", ".join(f"{true} taken for {taken} ({count})" for true, taken, count in pairs)
            console.print(as_it_is(f"most confused: {listed}"))
        if self.answers is not None:
            console.print(as_it_is(self._about_label_errors(self.answers)))

    def _about_label_errors(self, answers: Answers) -> str:
        if answers.label_errors is None:
            return "probable label errors: not looked for, as images times classes are too many"
        count = len(answers.label_errors.images)
        if self.trained_on:
            which = "all" if self.trained_on == self.images else "some"
            return (
                f"probable label errors: {count}, but the model was trained on {which} of these images and has learned "
                "their labels: evaluate images that it was not trained on"
            )
        return f"probable label errors: {count}" + (f" ({LABEL_ERRORS} lists them)" if count and self.folder else "")

    def _class_table(self) -> Table:
        present = [result for result in self.classes if result.images]
        listed = sorted(present, key=lambda result: result.f1)[:ROWS_SHOWN] if len(present) > ROWS_SHOWN else present
        title = "by class" if len(listed) == len(present) else f"the {len(listed)} hardest of {len(present)} classes"
        rows = [
            [shown(one.name), str(one.images), *(f"{share:.1%}" for share in (one.precision, one.recall, one.f1))]
            for one in listed
        ]
        columns = [words("class"), *map(Column, ("images", "precision", "recall", "F1"))]
        return Table(columns, rows, title=title)


def evaluate(
    run: str | Path | RunFolder,
    data: str | Path | None = None,
    split: str | None = None,
    *,
    keep_rate: float | tuple[float, ...] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    cache_gb: float | None = None,
    out: str | Path | None = None,
    together: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate a run or a saved model on all launched processes.

    Args:
        run: Run folder, or a saved model's folder or hub id.
        data: Images to use instead of the run's own, of one class or many; those of classes that the run does not know
            are not judged.
        split: "test", "val", "train", "train_val", or "all" images of the set. None: "test", or "all" if `data` has no
            splits and is not the run's own set.
        keep_rate: Share of tokens to keep, or one for each location, instead of the run's own.
        batch_size: Images in a batch, over all processes.
        workers: Processes that read images; None: one per core, at most 8.
        device: "auto" or "cpu".
        precision: "auto", "no", "bf16" or "fp16".
        cache: Keep resized images on disk (`clca.data.cache.fill`) and reuse cached ones.
        cache_gb: Limit of that cache in gigabytes; None: `$CLCA_CACHE_GB`, else 20.
        out: Folder for the files; None: `RUN/evaluation/SPLIT` (with the data's name and the keep rate if they are
            not the run's), or no files if `run` is not a folder.
        together: Groups of photographs that also get one answer, as for `predict_together`: "folder", or a regular
            expression.
        report: Called with one line on which images are judged and which not, before they are read.

    Raises:
        ClcaError: The run, split or images do not exist, the run knows none of their classes, or a setting is invalid.
        WorkError: The files could not be written.
    """

    def set_rate(model: TokenReducedViT) -> None:
        if keep_rate is not None:
            model.keep_rate = keep_rate

    evaluator = Evaluator(
        run, data, split, batch_size=batch_size, workers=workers, device=device, precision=precision, cache=cache,
        cache_gb=cache_gb, check=set_rate, report=report,
    )  # fmt: skip
    with closing(evaluator):
        rate = evaluator.own_rate if keep_rate is None else keep_rate
        place = Path(out) if out is not None else evaluator.folder(rate)
        return evaluator.evaluate(rate, place, together)


class Evaluator:
    """A model and the images to evaluate it on, loaded once for any number of keep rates.

    The arguments are those of `evaluate`.

    Attributes:
        run: The run folder, or the name of a model on the hub.
        model: On its device, in evaluation mode.
        own_rate: The keep rate that the run was trained with.
        accelerator: Device, precision and processes.
        judged: The images, and what of their set is not judged.

    Raises:
        ClcaError: The run, split or images do not exist, the run knows none of their classes, or a setting is invalid.
    """

    def __init__(
        self,
        run: str | Path | RunFolder,
        data: str | Path | None = None,
        split: str | None = None,
        *,
        batch_size: int = 64,
        workers: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache: bool = True,
        cache_gb: float | None = None,
        check: Callable[[TokenReducedViT], None] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """`check` may raise for the model, or set its keep rate, before any image is read."""
        if batch_size < 1:
            raise ClcaError(f"batch_size {batch_size}: must be at least 1")
        workers = reading_processes(workers)
        self.run = run = RunFolder.of(run)
        model = run.load_model()
        if model.classes is None or model.preprocess is None:
            raise ClcaError(f"{run}: the saved model lacks its classes or preprocessing, so it cannot be evaluated")
        self.own_rate = model.keep_rate
        if check is not None:
            check(model)
        own = run.images
        name = str(data) if data is not None else own.name if own is not None else ""
        self.judged = judged = choose_images(run, model.classes, str(data) if data is not None else None, split)
        if report is not None and is_first_process():
            report(judged.text)
        images = judged.images
        images.transform = from_preprocess(model.preprocess, normalize=False)
        self._images = _Relabelled(images, model.classes)
        if cache:
            outcome = datasets.use_cache([images], gigabytes=cache_gb, progress=is_first_process())
            refuse_unreadable(outcome.bad, images.paths)
            warn_of_cache(outcome.problem if is_first_process() else None)
        self.accelerator = accelerator = make_accelerator(device=device, precision=precision)
        rank, processes = accelerator.process_index, accelerator.num_processes
        share, count = max(1, batch_size // processes), len(self._images)
        self._loader = eval_loader(self._images, count, share, rank, processes, workers, accelerator.device)
        self._sample = _sample_images(self._images, model.preprocess) if model.pads else None
        self.model = model.to(accelerator.device)
        self.root, self.split = name, judged.split
        self._data, self._batch_size = data, batch_size

    def evaluate(
        self, keep_rate: float | tuple[float, ...], folder: Path | None, together: str | None = None
    ) -> Evaluation:
        """Run the model on every image at a keep rate, and write the files if a folder is given.

        Raises:
            ClcaError: The model does not support this keep rate.
            WorkError: The files could not be written.
        """
        from sklearn.metrics import confusion_matrix  # late: it imports SciPy

        model, accelerator = self.model, self.accelerator
        assert model.classes is not None
        model.keep_rate = keep_rate
        model_cost = cost(model, images=self._sample)
        few = together is not None or len(self._images) * len(model.classes) <= _MOST_PROBABILITIES
        confidence = None if model.confidence is None else model.confidence.at(model.keep_rate)
        result = run_inference(model, self._loader, accelerator, measure=True, probabilities=few, confidence=confidence)
        labels, predictions = result.labels.numpy(), result.ranked[:, 0].numpy()
        evaluation = Evaluation(
            data=self.root,
            split=self.split,
            images=len(labels),
            top1=result.top(1),
            top5=result.top(5),
            macro=result.macro_accuracy(),
            loss=result.loss,
            classes=_by_class(labels, predictions, model.classes),
            confusion=confusion_matrix(labels, predictions, labels=range(len(model.classes))),
            gmacs=model_cost.gmacs,
            computed_gmacs=model_cost.computed_gmacs,
            params=model_cost.params,
            tokens_per_block=model_cost.tokens_per_block,
            keep_rate=model.keep_rate,
            images_per_second=result.images_per_second,
            device=accelerator.device.type,
            precision=accelerator.mixed_precision,
            fingerprint=self.fingerprint,
            folder=folder,
            judged=self.judged.text,
            trained_on=self.judged.trained_on,
            answers=self._answers(result),
            trust=_trust(result, confidence),
            together=self._together(result, together) if together is not None else None,
            **self._groups(labels, predictions),
        )
        if folder is not None and accelerator.is_main_process:
            _write(evaluation, folder, self._thumbnail)
        return evaluation

    def _answers(self, result: InferenceResult) -> Answers:
        """The answers in the order of the data set, whichever process gave them."""
        processes, count = self.accelerator.num_processes, len(self._images)
        place = np.concatenate([np.arange(rank, count, processes) for rank in range(processes)])
        order = np.argsort(place)
        assert result.ranked_probabilities is not None
        labels, ranked = result.labels.numpy()[order], result.ranked.numpy()[order]
        likely, second = result.ranked_probabilities.numpy()[order], min(1, ranked.shape[1] - 1)
        return Answers(
            paths=self._images.images.paths,
            labels=labels,
            predicted=ranked[:, 0],
            probability=likely[:, 0],
            second=ranked[:, second],
            second_probability=likely[:, second],
            label_errors=find_label_errors(result.probabilities.numpy()[order], labels)
            if result.probabilities is not None
            else None,
            unfamiliarity=result.unfamiliarity.numpy()[order] if result.unfamiliarity is not None else None,
        )

    def _together(self, result: InferenceResult, by: str) -> GroupAccuracy:
        """What one answer for each group brings; groups of several classes are left out."""
        assert result.probabilities is not None
        processes, count = self.accelerator.num_processes, len(self._images)
        place = np.concatenate([np.arange(rank, count, processes) for rank in range(processes)]).tolist()
        members: dict[str, list[int]] = {}
        for position, index in enumerate(place):
            members.setdefault(group_of(self._images.images.paths[index], by), []).append(position)
        right = mixed = images = 0
        for positions in members.values():
            labels = result.labels[positions]
            if len(labels.unique()) > 1:
                mixed += 1
                continue
            images += len(positions)
            right += int(combined(result.probabilities[positions]).argmax() == labels[0])
        groups = len(members) - mixed
        return GroupAccuracy(by, groups, images, right / groups if groups else None, mixed)

    def _groups(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
        names, known = self.model.classes or [], recorded_classes(self.run)
        if known is None:
            return {}
        of_known = np.isin(labels, [number for number, name in enumerate(names) if name in set(known)])
        return {"known": _group(labels, predictions, of_known), "new": _group(labels, predictions, ~of_known)}

    def _thumbnail(self, index: int) -> np.ndarray:
        """An image as the model saw it, [S, S, 3], uint8."""
        pixels: np.ndarray = self._images[index][0].permute(1, 2, 0).numpy()
        return pixels

    def folder(self, keep_rate: float | tuple[float, ...], parent: Path | None = None) -> Path | None:
        """The folder of an evaluation, in `parent`, by default `RUN/evaluation`; None if there is no parent."""
        parent = parent or (self.run.path / FOLDER if self.run.exists else None)
        if parent is None:
            return None
        rates = keep_rate if isinstance(keep_rate, (tuple, list)) else [keep_rate]
        other = [] if keep_rate == self.own_rate else ["keep" + "-".join(f"{rate:g}" for rate in rates)]
        return parent / "-".join([self.name, *other])

    @property
    def name(self) -> str:
        """The split, prefixed by the name of the images if they are not the run's own."""
        return "-".join([*([Path(str(self._data).split(":")[0]).resolve().name] if self._data else []), self.split])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything a result depends on except the keep rate: model, images, device, precision, batch size."""
        model, images = self.model, self._images.images
        listed: list[list[Any]] = []
        for path, label in zip(images.paths, images.labels, strict=True):
            state = path.stat() if path.is_file() else None  # synthetic leaves have no files
            listed.append([str(path), label, *((state.st_size, state.st_mtime_ns) if state is not None else ())])
        settings = model.config.model_dump(mode="json") | {"keep_rate": None}
        if settings["keep_rates"] is None:
            del settings["keep_rates"]  # as in earlier versions, whose results stay valid
        where = [self.accelerator.device.type, self.accelerator.mixed_precision, self.accelerator.num_processes]
        content = [settings, model.classes, model.preprocess, self.root, listed, *where, self._batch_size]
        digest = hashlib.sha256(json.dumps([content, versions()]).encode())
        for name, tensor in model.state_dict().items():
            if model.rate_statistics is not None and name.startswith("cla_head.") and ".running_" in name:
                continue  # those of the keep rate in use, which follow from the stored ones
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def close(self) -> None:
        """End the processes that read images, and leave the process group."""
        end_workers(self._loader)
        self.accelerator.end_training()


class _Relabelled(Dataset[tuple[torch.Tensor, int]]):
    """Images whose labels are indices into the model's classes, by name."""

    def __init__(self, images: Any, classes: list[str]) -> None:
        self.images = images
        self.label = [classes.index(name) for name in images.classes]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return image, self.label[label]


def _group(labels: np.ndarray, predictions: np.ndarray, chosen: np.ndarray) -> ClassGroup:
    labels, predictions = labels[chosen], predictions[chosen]
    top1 = float((labels == predictions).mean()) if len(labels) else None
    return ClassGroup(len(np.unique(labels)), len(labels), top1)


def _sample_images(images: _Relabelled, preprocess: dict[str, Any]) -> torch.Tensor:
    """Sixteen images spread over the split, for a cost that depends on the images."""
    chosen = np.linspace(0, len(images) - 1, min(16, len(images))).astype(int)
    stacked = torch.stack([images[int(index)][0] for index in chosen])
    return Normalization(preprocess)(stacked, torch.device("cpu"))


def _trust(result: InferenceResult, confidence: Confidence | None) -> Trust:
    assert result.ranked_probabilities is not None
    assert result.uncalibrated is not None
    right, surest = result.ranked[:, 0] == result.labels, result.ranked_probabilities[:, 0]
    return Trust(
        calibration_error(surest, right),
        calibration_error(result.uncalibrated, right) if confidence is not None else None,
        tuple(reliability(surest, right)),
        (result.unfamiliarity > 1).double().mean().item() if result.unfamiliarity is not None else None,
        confidence.facts.false_alarms if confidence is not None else None,
    )


def _by_class(labels: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[ClassResult]:
    from sklearn.metrics import precision_recall_fscore_support

    every = range(len(names))
    precision, recall, f1, count = precision_recall_fscore_support(labels, predictions, labels=every, zero_division=0)
    return [ClassResult(names[k], int(count[k]), float(precision[k]), float(recall[k]), float(f1[k])) for k in every]


def _write(evaluation: Evaluation, folder: Path, thumbnail: Callable[[int], np.ndarray]) -> None:
    names = [result.name for result in evaluation.classes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{folder}: cannot be created ({reason(error)})") from error
    rows = [[r.name, r.images, f"{r.precision:.6f}", f"{r.recall:.6f}", f"{r.f1:.6f}"] for r in evaluation.classes]
    write_csv(folder / "classes.csv", ["class", "images", "precision", "recall", "f1"], rows)
    counts = [[name, *row] for name, row in zip(names, evaluation.confusion.tolist(), strict=True)]
    write_csv(folder / "confusion.csv", ["true \\ predicted", *names], counts)
    with replacing(folder / "confusion.png") as temporary:
        write_confusion_picture(temporary, evaluation.confusion, names)
    if evaluation.trust is not None:
        with replacing(folder / "reliability.png") as temporary:
            draw_reliability(temporary, evaluation.trust.bins, evaluation.trust.ece)
    if evaluation.answers is not None:
        evaluation.answers.write(folder, names)
        _write_mistakes(evaluation.answers, folder / MISTAKES, names, thumbnail)
    # Last, so that the other files are complete if it exists.
    write_json(folder / NUMBERS, json.loads(json.dumps(evaluation.summary())))


def _write_mistakes(answers: Answers, path: Path, names: list[str], thumbnail: Callable[[int], np.ndarray]) -> None:
    """Write the surest mistakes as a contact sheet; without mistakes, remove that of an earlier evaluation."""
    mistakes = answers.mistakes()
    if not len(mistakes):
        with suppress(OSError):
            path.unlink()
        return
    wrong = int((answers.predicted != answers.labels).sum())
    which = "all" if wrong == len(mistakes) else f"the {len(mistakes)} surest of"
    title = f"{which} {wrong} mistake{'s' if wrong > 1 else ''}: right class above, the model's answer below"
    with replacing(path) as temporary:
        draw_contact_sheet(
            temporary,
            [thumbnail(int(index)) for index in mistakes],
            [names[answers.labels[index]] for index in mistakes],
            [f"{answers.probability[index]:.0%} {names[answers.predicted[index]]}" for index in mistakes],
            title[0].upper() + title[1:],
        )
