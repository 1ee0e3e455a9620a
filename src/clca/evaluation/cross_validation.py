"""`cross_validate(config)`: train and test once for every part of a data set, and put the results together."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clca.errors import ClcaError
from clca.evaluation.answers import TABLE
from clca.evaluation.evaluator import evaluate
from clca.evaluation.stored import FOLDER, NUMBERS
from clca.plots.confusion import write_confusion_picture
from clca.system.files import make_writable, read_csv, read_json, replacing, write_csv, write_json
from clca.system.numbers import number
from clca.system.paths import shown
from clca.system.processes import is_first_process
from clca.system.tables import Column, Table, words
from clca.training import TrainConfig, train
from clca.training.config import default_run_folder
from clca.training.run_folder import RunFolder

_log = logging.getLogger(__name__)

RESULT, PREDICTIONS, CONFUSION = "cross-validation.json", TABLE, "confusion.csv"
MEASURES = ("top1", "macro", "loss")


@dataclass(frozen=True)
class Fold:
    """The run that was tested on one part: shares in 0 … 1."""

    fold: int
    images: int
    top1: float
    macro: float
    loss: float
    folder: Path


@dataclass(frozen=True)
class CrossValidation:
    """The result of `cross_validate`.

    Attributes:
        folder: Of the runs, `cross-validation.json`, `folds.csv`, `predictions.csv`, `confusion.csv` and
            `confusion.png`; the last three are of all images, each by the run that did not train on it.
        folds: One result per part.
        classes: Class names.
        confusion: Images by true class (row) and predicted class (column), [K, K], over all parts.
    """

    folder: Path
    folds: tuple[Fold, ...]
    classes: tuple[str, ...]
    confusion: np.ndarray

    @property
    def images(self) -> int:
        """Number of images, each tested once."""
        return sum(fold.images for fold in self.folds)

    def mean(self, measure: str) -> float:
        """Mean of "top1", "macro" or "loss" over the parts."""
        return statistics.fmean(getattr(fold, measure) for fold in self.folds)

    def deviation(self, measure: str) -> float:
        """Standard deviation over the parts."""
        return statistics.stdev(getattr(fold, measure) for fold in self.folds)

    def interval(self, measure: str) -> tuple[float, float]:
        """95 % interval of the mean, by Student's t over the parts.

        The parts share most of their training images, so that the true uncertainty is somewhat larger (Bengio and
        Grandvalet, JMLR 2004).
        """
        from scipy.stats import t

        half = t.ppf(0.975, len(self.folds) - 1) * self.deviation(measure) / math.sqrt(len(self.folds))
        mean = self.mean(measure)
        return (mean - half, mean + half) if measure == "loss" else (max(0.0, mean - half), min(1.0, mean + half))

    def render(self, console: Console) -> None:
        """Print one row per part, then mean, standard deviation and interval."""
        rows = [[str(one.fold), str(one.images), *map(_shown, MEASURES, _values(one))] for one in self.folds]
        mean = [_shown(measure, self.mean(measure)) for measure in MEASURES]
        spread = [_shown(measure, self.deviation(measure)) for measure in MEASURES]
        intervals = [" to ".join(_shown(measure, end) for end in self.interval(measure)) for measure in MEASURES]
        rows += [["mean", str(self.images), *mean], ["standard deviation", "", *spread]]
        rows += [["95 % interval", "", *intervals]]
        columns = [words("part"), *map(Column, ("images", "top-1", "macro", "loss"))]
        title = shown(f"{len(self.folds)} parts of {self.images} images in {len(self.classes)} classes")
        Table(columns, rows, title=title, sections=[len(self.folds) - 1]).render(console)


def cross_validate(config: TrainConfig, *, quiet: bool = False) -> CrossValidation:
    """Train one run for each of `config.data.folds` parts of the images and test it on that part.

    The same command continues where an interrupted one stopped: finished runs and evaluations are kept.

    Args:
        config: The settings of every run; `out` is the folder of all of them.
        quiet: Show no progress.

    Raises:
        ClcaError: `folds` is not set, a class has too few images or groups, or as `train`.
    """
    count = config.data.folds
    if count is None or config.data.fold is not None:
        raise ClcaError("--folds: cross-validation needs the number of parts, and no --fold")
    folder = config.out or default_run_folder(config)
    make_writable(folder)
    folds, confusions, answers = [], [], []
    classes: tuple[str, ...] = ()
    for fold in range(1, count + 1):
        if is_first_process() and not quiet:
            _log.info("part %d of %d", fold, count)
        data = config.data.model_copy(update={"fold": fold})
        run = folder / f"fold-{fold}"
        train(config.model_copy(update={"data": data, "out": run}), quiet=quiet)
        tested = run / FOLDER / "test"
        if not _is_newer(tested / NUMBERS, RunFolder(run).summary):
            evaluate(run, device=config.device, workers=config.workers, cache=config.cache, cache_gb=config.cache_gb)
        one, names, confusion = _read(fold, run, tested)
        folds.append(one)
        confusions.append(confusion)
        answers.append(read_csv(tested / TABLE))
        if classes and names != classes:
            raise ClcaError(f"{run}: has other classes than {folder / 'fold-1'}: train into a new --out")
        classes = names
    result = CrossValidation(folder, tuple(folds), classes, np.sum(confusions, axis=0))
    if is_first_process():
        _write(result, answers)
    return result


def _is_newer(file: Path, than: Path) -> bool:
    try:
        return file.stat().st_mtime_ns >= than.stat().st_mtime_ns
    except OSError:
        return False


def _read(fold: int, run: Path, tested: Path) -> tuple[Fold, tuple[str, ...], np.ndarray]:
    """What the evaluation of a run left in its folder.

    Raises:
        ClcaError: A file is missing or damaged.
    """
    numbers, table = read_json(tested / NUMBERS) or {}, read_csv(tested / CONFUSION)
    found = {name: number(numbers.get(name)) for name in ("images", *MEASURES)}
    if None in found.values() or len(table) < 2 or any(len(row) != len(table[0]) for row in table):
        raise ClcaError(f"{tested}: its files are damaged: remove this folder, and the same command evaluates again")
    values: dict[str, Any] = found
    counts = np.array([[int(cell) for cell in row[1:]] for row in table[1:]])
    one = Fold(fold, int(values["images"]), values["top1"], values["macro"], values["loss"], run)
    return one, tuple(row[0] for row in table[1:]), counts


def _values(fold: Fold) -> list[float]:
    return [getattr(fold, measure) for measure in MEASURES]


def _shown(measure: str, value: float) -> str:
    return f"{value:.3f}" if measure == "loss" else f"{value:.1%}"


def _write(result: CrossValidation, answers: Sequence[list[list[str]]]) -> None:
    folder = result.folder
    rows = [[one.fold, one.images, *(round(value, 6) for value in _values(one))] for one in result.folds]
    write_csv(folder / "folds.csv", ["fold", "images", *MEASURES], rows)
    counts = [[name, *row] for name, row in zip(result.classes, result.confusion.tolist(), strict=True)]
    write_csv(folder / CONFUSION, ["true \\ predicted", *result.classes], counts)
    with replacing(folder / "confusion.png") as temporary:
        write_confusion_picture(temporary, result.confusion, list(result.classes))
    heads = next((table[0] for table in answers if table), [])
    lines = [[place, *row] for place, table in enumerate(answers, start=1) for row in table[1:]]
    write_csv(folder / PREDICTIONS, ["fold", *heads], lines)
    content = {
        "folds": [{**asdict(one), "folder": one.folder.name} for one in result.folds],
        "images": result.images,
        **{
            measure: {
                "mean": result.mean(measure),
                "deviation": result.deviation(measure),
                "interval": list(result.interval(measure)),
            }
            for measure in MEASURES
        },
    }
    write_json(folder / RESULT, content)
