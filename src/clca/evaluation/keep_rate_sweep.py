"""`sweep(run, keep_rates)`: evaluate a finished run at several keep rates besides its own."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console

from clca.errors import ClcaError, WorkError, reason
from clca.evaluation.answers import LABEL_ERRORS, TABLE
from clca.evaluation.evaluator import Evaluator
from clca.evaluation.stored import FOLDER, NUMBERS, by_rate, standard_error
from clca.models.config import spelled, validated
from clca.models.token_reduced_vit import TokenReducedViT
from clca.reductions import reduction_class
from clca.system.files import read_json, replacing, write_csv, write_json
from clca.system.numbers import integer, number, share
from clca.system.paths import shown
from clca.system.tables import Column, Table, words
from clca.training.run_folder import RunFolder

_log = logging.getLogger(__name__)

FORMAT = "clca-sweep-1"
_NO_RATES = "no keep rate to sweep over: list some, such as 1 0.7 0.5 0.25 0.1"
OTHER_FILES = ("classes.csv", "confusion.csv", "confusion.png", TABLE, LABEL_ERRORS)

Rate = float | tuple[float, ...]


@dataclass(frozen=True)
class SweepPoint:
    """The run at one keep rate; shares in 0 … 1.

    Attributes:
        keep_rate: Share of tokens kept, or one for each location.
        own: Whether the run was trained with it.
        top1, top1_error: Share of images classified correctly, and its standard error.
        top5, macro: Share of images with the true class among the five most likely, and mean share over classes.
        gmacs: Multiply-accumulates per image in 10⁹, as the published method counts them.
        images_per_second: Measured throughput of the forward pass alone.
        tokens: Tokens after the last block.
        folder: Folder of the other files of the evaluation, if they were written.
    """

    keep_rate: Rate
    own: bool
    top1: float
    top1_error: float
    top5: float
    macro: float
    gmacs: float
    images_per_second: float
    tokens: float
    folder: Path | None

    @property
    def rates(self) -> str:
        """The keep rate as the command line takes it."""
        return spelled(self.keep_rate)


@dataclass(frozen=True)
class Sweep:
    """The result of `sweep`.

    Attributes:
        run, reduction: The run, and its reduction.
        data, split, images: The data set, its split and the number of images.
        device, precision: What it was computed with.
        points: One for each keep rate, from high to low.
        files: The table as JSON and CSV, and the picture; empty if they were not written.
    """

    run: str
    reduction: str
    data: str
    split: str
    images: int
    device: str
    precision: str
    points: tuple[SweepPoint, ...]
    files: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        names = ("run", "reduction", "data", "split", "images", "device", "precision")
        return {"format": FORMAT, **{name: getattr(self, name) for name in names}, "points": self._rows()}

    def render(self, console: Console) -> None:
        """Print the table."""
        rows = [
            [
                point.rates + (" *" if point.own else ""),
                f"{point.top1:.1%} ± {point.top1_error:.1%}",
                f"{point.macro:.1%}",
                f"{point.gmacs:.4g}",
                f"{point.images_per_second:.1f}",
            ]
            for point in self.points
        ]
        headings = ("top-1", "macro", "GMACs", f"images/s ({self.device}, {self.precision})")
        title = shown(f"{self.split} of {self.data}: {self.images} images, {self.reduction}")
        columns = [words("keep rate", wrap=False), *map(Column, headings)]
        Table(columns, rows, title=title, caption="* trained with").render(console)

    def _rows(self) -> list[dict[str, Any]]:
        rows = [dict(vars(point)) for point in self.points]
        return [
            row | {"keep_rate": _as_json(row["keep_rate"]), "folder": row["folder"] and row["folder"].name}
            for row in rows
        ]

    def write(self, folder: Path, name: str) -> tuple[Path, ...]:
        """Write NAME-sweep.json, .csv and .png into a folder.

        Raises:
            WorkError: A file could not be written; its previous version is intact.
        """
        from clca.plots.sweep import KeepRatePoint, draw_sweep

        picture, table, numbers = (folder / f"{name}-sweep.{form}" for form in ("png", "csv", "json"))
        with replacing(picture) as temporary:
            marks = [KeepRatePoint(p.rates, p.gmacs, p.top1, p.top1_error, p.own) for p in self.points]
            title = f"{Path(self.run).name}: {self.reduction}, {self.split}, {self.images} images"
            draw_sweep(temporary, marks, title)
        rows = self._rows()
        spelled_out = [row | {"keep_rate": point.rates} for row, point in zip(rows, self.points, strict=True)]
        write_csv(table, list(rows[0]), (row.values() for row in spelled_out))
        write_json(numbers, self.as_dict())
        return numbers, table, picture


def sweep(
    run: str | Path | RunFolder,
    keep_rates: Sequence[float] | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    cache_gb: float | None = None,
    out: str | Path | None = None,
    report: Callable[[str], None] | None = None,
) -> Sweep:
    """Evaluate a run at its own keep rate and at others; model and images are loaded once.

    Each rate has the same folder as with `evaluate`. An earlier result with the same weights, images, device, precision
    and batch size is reused, so that an interrupted sweep can be resumed.

    Args:
        run: Run folder, or a saved model's folder or hub id.
        keep_rates: Shares of tokens, besides the run's own; None for those that it was trained for.
        data, split, batch_size, workers, device, precision, cache, cache_gb, report: As for `evaluate`.
        out: Folder for the folders and the table; None: `RUN/evaluation`, or nowhere if `run` is not a folder.

    Raises:
        ClcaError: As for `evaluate`; a rate is invalid, or none is given and the run was trained for one; or the run
            has only one keep rate, because nothing is reduced or its parameters depend on the rate.
        WorkError: The files could not be written.
        KeyboardInterrupt: The message has the number of finished rates, if files are written.
    """
    for asked in keep_rates or ():
        validated(backbone="", keep_rate=asked)

    if keep_rates is not None and not keep_rates:
        raise ClcaError(_NO_RATES)

    def check(model: TokenReducedViT) -> None:
        _can_change(str(run), model)
        if keep_rates is None and model.config.keep_rates is None:
            raise ClcaError(_NO_RATES)

    evaluator = Evaluator(
        run, data, split, batch_size=batch_size, workers=workers, device=device, precision=precision, cache=cache,
        cache_gb=cache_gb, check=check, report=report,
    )  # fmt: skip
    with closing(evaluator):
        trained = evaluator.model.config.keep_rates or ()
        return _sweep(evaluator, evaluator.run, trained if keep_rates is None else keep_rates, out)


def _sweep(evaluator: Evaluator, run: RunFolder, keep_rates: Sequence[float], out: str | Path | None) -> Sweep:
    own, trained = evaluator.own_rate, evaluator.model.config.keep_rates or ()
    rates: list[Rate] = sorted({own, *map(float, keep_rates)}, key=by_rate, reverse=True)
    parent = Path(out) if out is not None else run.path / FOLDER if run.exists else None
    folders = [evaluator.folder(rate, parent) for rate in rates]
    if parent is not None and evaluator.accelerator.is_main_process:
        _make_folder(parent)
    known = [_reusable(folder, evaluator.fingerprint) for folder in folders]
    known = broadcast_object_list(known)  # other machines may lack the folder, but all processes must agree
    points: list[SweepPoint] = []
    try:
        for rate, folder, numbers in zip(rates, folders, known, strict=True):
            outcome = f"reused from {folder}" if numbers is not None else "done"
            numbers = numbers if numbers is not None else evaluator.evaluate(rate, folder).summary()
            if evaluator.accelerator.is_main_process:
                _log.info("keep rate %s: %s", spelled(rate), outcome)
            points.append(_point(rate, rate == own or rate in trained, numbers, folder))
    except KeyboardInterrupt:
        if parent is None:
            raise
        done = len(points) + sum(numbers is not None for numbers in known[len(points) :])
        raise KeyboardInterrupt(
            f"stopped with {done} of {len(rates)} keep rates done; the same command continues from there"
        ) from None
    result = Sweep(
        run=str(run),
        reduction=evaluator.model.config.reduction,
        data=evaluator.root,
        split=evaluator.split,
        images=numbers["images"],
        device=evaluator.accelerator.device.type,
        precision=evaluator.accelerator.mixed_precision,
        points=tuple(points),
    )
    if parent is not None:
        files: tuple[Path, ...] = ()
        if evaluator.accelerator.is_main_process:
            files = result.write(parent, evaluator.name)
        result = Sweep(**(vars(result) | {"files": files}))
    return result


def _can_change(run: str, model: TokenReducedViT) -> None:
    """Raise for a model whose keep rate cannot be changed."""
    name = model.config.reduction
    kind = reduction_class(name)
    if kind is None:
        raise ClcaError(
            f"{run}: the model has no token reduction, so there is no keep rate to change; evaluate it with "
            f"clca evaluate {run}, or sweep a run trained with --reduction evit"
        )
    if kind.fixed_counts:
        raise ClcaError(
            f"{run}: the parameters of {name} depend on the keep rate, so it cannot be changed; train one run per rate"
        )


def _reusable(folder: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """The numbers of an earlier evaluation with this fingerprint, if its files are complete."""
    if folder is None or not all((folder / name).is_file() for name in OTHER_FILES):
        return None
    numbers = read_json(folder / NUMBERS)
    if numbers is None or numbers.get("fingerprint") != fingerprint:
        return None
    tokens = numbers.get("tokens_per_block")
    is_valid = (
        isinstance(numbers.get("images"), int)
        and integer(numbers["images"], low=1) is not None
        and all(share(numbers.get(name)) is not None for name in ("top1", "top5", "macro"))
        and all(number(numbers.get(name), low=0) is not None for name in ("gmacs", "images_per_second"))
        and isinstance(tokens, list)
        and len(tokens) > 0
        and number(tokens[-1], low=0) is not None
    )
    return numbers if is_valid else None


def _point(rate: Rate, own: bool, numbers: dict[str, Any], folder: Path | None) -> SweepPoint:
    return SweepPoint(
        keep_rate=rate,
        own=own,
        top1=numbers["top1"],
        top1_error=standard_error(numbers["top1"], numbers["images"]),
        top5=numbers["top5"],
        macro=numbers["macro"],
        gmacs=numbers["gmacs"],
        images_per_second=numbers["images_per_second"],
        tokens=numbers["tokens_per_block"][-1],
        folder=folder,
    )


def _make_folder(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{parent}: cannot be created ({reason(error)})") from error


def _as_json(rate: Rate) -> float | list[float]:
    return list(rate) if isinstance(rate, tuple) else rate
