"""`sweep(run, keep_rates)`: a finished run at several keep rates, beside its own."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Table

from clca.errors import ClcaError, WorkError, reason
from clca.evaluation.evaluator import Judged
from clca.evaluation.stored import FOLDER, NUMBERS, by_rate, standard_error
from clca.models.config import spelled, validated
from clca.models.token_reduced_vit import TokenReducedViT
from clca.reductions import reduction_class
from clca.system.files import read_json
from clca.system.paths import as_it_is
from clca.training.run_folder import replacing, write_csv, write_json

_log = logging.getLogger(__name__)

FORMAT = "clca-sweep-1"
BESIDE = ("classes.csv", "confusion.csv", "confusion.png")

Rate = float | tuple[float, ...]


@dataclass(frozen=True)
class Swept:
    """The run at one keep rate; shares in 0 … 1.

    Attributes:
        keep_rate: Share of tokens kept, or one a location.
        own: Whether the run was trained with it.
        top1, top1_error: Share of images right, and its standard error.
        top5, macro: Share of images right among the five most likely, and mean share over classes.
        gmacs: Multiply-accumulates of one image in 10⁹, as the method counts them.
        images_per_second: Measured, the forward pass alone.
        tokens: Tokens after the last block.
        folder: Where the rest of the evaluation is, if anywhere.
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
    """What `sweep` found.

    Attributes:
        run, reduction: What was evaluated.
        data, split, images: On what, and how many.
        device, precision: Where.
        points: One a keep rate, falling.
        files: The table as JSON and CSV, and the picture; none where there is no folder for them.
    """

    run: str
    reduction: str
    data: str
    split: str
    images: int
    device: str
    precision: str
    points: tuple[Swept, ...]
    files: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        names = ("run", "reduction", "data", "split", "images", "device", "precision")
        return {"format": FORMAT, **{name: getattr(self, name) for name in names}, "points": self._rows()}

    def render(self, console: Console) -> None:
        """Print one table."""
        title = as_it_is(f"{self.split} of {self.data}: {self.images} images, {self.reduction}", "table.title")
        table = Table(title=title, title_justify="left", caption="* trained with", caption_justify="left")
        table.add_column("keep rate", no_wrap=True)
        for name in ("top-1", "macro", "GMACs", f"images/s ({self.device}, {self.precision})"):
            table.add_column(name, justify="right")
        for point in self.points:
            table.add_row(
                point.rates + (" *" if point.own else ""),
                f"{point.top1:.1%} ± {point.top1_error:.1%}",
                f"{point.macro:.1%}",
                f"{point.gmacs:.4g}",
                f"{point.images_per_second:.1f}",
            )
        console.print(table)

    def _rows(self) -> list[dict[str, Any]]:
        rows = [dict(vars(point)) for point in self.points]
        return [
            row | {"keep_rate": _plain(row["keep_rate"]), "folder": row["folder"] and row["folder"].name}
            for row in rows
        ]

    def write(self, room: Path, name: str) -> tuple[Path, ...]:
        """Write NAME-sweep.json, .csv and .png into a folder.

        Raises:
            WorkError: A file could not be written; its predecessor is whole.
        """
        from clca.plots.sweep import draw_sweep

        picture, table, numbers = (room / f"{name}-sweep.{form}" for form in ("png", "csv", "json"))
        with replacing(picture) as temporary:
            draw_sweep(temporary, self)
        rows = self._rows()
        told = [row | {"keep_rate": point.rates} for row, point in zip(rows, self.points, strict=True)]
        write_csv(table, list(rows[0]), (row.values() for row in told))
        write_json(numbers, self.as_dict())
        return numbers, table, picture


def sweep(
    run: str | Path,
    keep_rates: Sequence[float],
    data: str | Path | None = None,
    split: str = "test",
    *,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    cache_gb: float | None = None,
    out: str | Path | None = None,
) -> Sweep:
    """Evaluate a run at its own keep rate and at others; model and images are loaded once.

    Every rate has the folder that `evaluate` would give it. What is there already, from the same weights, images,
    device, precision and batch size, is taken over: an interrupted sweep goes on where it was.

    Args:
        run: Run folder, or a saved model's folder or hub id.
        keep_rates: Shares of tokens, beside the run's own.
        data, split, batch_size, workers, device, precision, cache, cache_gb: As for `evaluate`.
        out: Folder for the folders and the table; None: `RUN/evaluation`, or nowhere if `run` is not a folder.

    Raises:
        ClcaError: Whatever `evaluate` refuses; a rate that is none; or the run has but one keep rate, because nothing
            is reduced or its parameters depend on it.
        WorkError: The files could not be written.
        KeyboardInterrupt: Saying what is done, where something is written.
    """
    for asked in keep_rates:
        validated(backbone="", keep_rate=asked)
    if not keep_rates:
        raise ClcaError("no keep rate to sweep over: give some, such as 1 0.7 0.5 0.25 0.1")
    judged = Judged(
        run, data, split, batch_size=batch_size, workers=workers, device=device, precision=precision, cache=cache,
        cache_gb=cache_gb, check=lambda model: _can_change(str(run), model),
    )  # fmt: skip
    with closing(judged):
        return _sweep(judged, run, keep_rates, out)


def _sweep(judged: Judged, run: str | Path, keep_rates: Sequence[float], out: str | Path | None) -> Sweep:
    own = judged.own_rate
    rates: list[Rate] = sorted({own, *map(float, keep_rates)}, key=by_rate, reverse=True)
    room = Path(out) if out is not None else Path(run) / FOLDER if Path(run).is_dir() else None
    folders = [judged.folder(rate, room) for rate in rates]
    if room is not None and judged.accelerator.is_main_process:
        _make(room)
    known = [_known(folder, judged.fingerprint) for folder in folders]
    known = broadcast_object_list(known)  # on other machines there may be no such folder, and all must do the same
    points: list[Swept] = []
    try:
        for rate, folder, numbers in zip(rates, folders, known, strict=True):
            outcome = f"taken from {folder}" if numbers is not None else "done"
            numbers = numbers if numbers is not None else judged.evaluate(rate, folder).summary()
            if judged.accelerator.is_main_process:
                _log.info("keep rate %s: %s", spelled(rate), outcome)
            points.append(_point(rate, rate == own, numbers, folder))
    except KeyboardInterrupt:
        if room is None:
            raise
        done = len(points) + sum(numbers is not None for numbers in known[len(points) :])
        raise KeyboardInterrupt(
            f"stopped with {done} of {len(rates)} keep rates done; the same command goes on from there"
        ) from None
    found = Sweep(
        run=str(run),
        reduction=judged.model.config.reduction,
        data=judged.root,
        split=judged.split,
        images=numbers["images"],
        device=judged.accelerator.device.type,
        precision=judged.accelerator.mixed_precision,
        points=tuple(points),
    )
    if room is not None:
        files: tuple[Path, ...] = ()
        if judged.accelerator.is_main_process:
            files = found.write(room, judged.name)
        found = Sweep(**(vars(found) | {"files": files}))
    return found


def _can_change(run: str, model: TokenReducedViT) -> None:
    """Refuse what has one keep rate only."""
    name = model.config.reduction
    kind = reduction_class(name)
    if kind is None:
        raise ClcaError(
            f"{run}: nothing is reduced there, so there is no keep rate to change; clca evaluate {run} evaluates it, "
            "and a run trained with --reduction evit can be swept"
        )
    if kind.fixed_counts:
        raise ClcaError(
            f"{run}: the parameters of {name} depend on the keep rate, which cannot be changed; train a run for each"
        )


def _known(folder: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """The numbers of an earlier evaluation of the same, if it is whole."""
    if folder is None or not all((folder / name).is_file() for name in BESIDE):
        return None
    numbers = read_json(folder / NUMBERS)
    return numbers if numbers is not None and numbers.get("fingerprint") == fingerprint else None


def _point(rate: Rate, own: bool, numbers: dict[str, Any], folder: Path | None) -> Swept:
    return Swept(
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


def _make(room: Path) -> None:
    try:
        room.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{room}: cannot be made ({reason(error)})") from error


def _plain(rate: Rate) -> float | list[float]:
    return list(rate) if isinstance(rate, tuple) else rate
