"""The result of tuning: candidates, the choice among them, and the files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from clca.errors import ClcaError
from clca.models.config import spelled
from clca.models.cost import gmacs_text
from clca.system.files import make_writable, replacing, write_csv, write_json
from clca.system.tables import Column, Table, words
from clca.system.timing import Spread, command, versions
from clca.training.run_folder import RunFolder, unique_labels

if TYPE_CHECKING:
    from clca.plots.frontier import Frontier

WIDE = 100
JSON, CSV, PICTURE = "tune.json", "tune.csv", "frontier.png"

Measure = Literal["latency_ms", "gmacs", "images_per_second"]


@dataclass(frozen=True)
class Budget:
    """At most `value` milliseconds a batch or GMACs an image, or at least `value` images a second."""

    measure: Measure
    value: float

    def __str__(self) -> str:
        value = f"{self.value:.10g}"
        return {
            "latency_ms": f"at most {value} ms",
            "gmacs": f"at most {value} GMACs",
            "images_per_second": f"at least {value} images/s",
        }[self.measure]


@dataclass(frozen=True)
class Point:
    """One run at one keep rate and size.

    Attributes:
        run, reduction, keep_rate, img_size: The model and its setting.
        trained_size: Whether the run was trained at this size.
        top1: Share of the validation images classified correctly, 0 … 1.
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
        """What the budget limits; for images a second, the seconds of one image, so that lower is always cheaper."""
        if measure == "images_per_second":
            return 1 / self.images_per_second
        return self.latency.median if measure == "latency_ms" else self.gmacs

    def fits(self, budget: Budget) -> bool:
        limit = 1 / budget.value if budget.measure == "images_per_second" else budget.value
        return self.cost(budget.measure) <= limit

    @property
    def rates(self) -> str:
        """The keep rate as the command line takes it."""
        return spelled(self.keep_rate)


@dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        budget: The limit.
        points: Every candidate, runs in the order given, keep rates from high to low.
        chosen: The best within the budget; None if nothing fits.
        most_accurate: The most accurate within the budget; `chosen` may be a cheaper one within its standard error.
        data, images: The validation images, and how many.
        batch_size: Of the measured latency.
        machine: The machine of the measurement.
        notes: Caveats, a line each.
        device, precision: Of all measurements, accuracy included.
        options: The requested device and precision as options of `clca predict`.
        judged: Which images are judged and which not, in one line.
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
    device: str = "cpu"
    precision: str = "no"
    options: tuple[str, ...] = ()
    judged: str = ""

    def advice(self) -> str:
        """The command to run; if nothing fits, the closest candidate."""
        best = self.chosen
        if best is None:
            near = min(self.points, key=lambda point: point.cost(self.budget.measure))
            return (
                f"nothing meets the budget of {self.budget}: closest is {near.run} at keep rate {near.rates}, "
                f"{near.img_size} px: {_costs(near)}, top-1 {near.top1:.1%}"
            )
        rate = [] if best.reduction == "none" else ["--keep-rate", *best.rates.split()]
        if best.trained_size:
            return shlex.join(["clca", "predict", best.run, "IMAGES", *rate, *self.options])
        size = ["--img-size", str(best.img_size)]
        return f"train at this size: clca train {_trained_as(best)} {shlex.join([*rate, *size])} --out NEW"

    def reason(self) -> str | None:
        """Why the chosen candidate was chosen."""
        best, top = self.chosen, self.most_accurate
        if best is None or top is None:
            return None
        setting = f"{best.run}: {best.reduction} at keep rate {best.rates}, {best.img_size} px"
        what = f"{setting}: {_accuracy(best)}, {_costs(best)}"
        if best is top:
            return f"most accurate with {self.budget}: {what}"
        there = "" if top.run == best.run else f"{top.run} at "
        return (
            f"with {self.budget}: {what}; {there}keep rate {top.rates} has {top.top1:.1%}, "
            f"which is within the standard error but costs more: {_costs(top)}"
        )

    def render(self, console: Console) -> None:
        """Print table, reason, advice and notes."""
        if len(self.names) > 1:
            for number, run in enumerate(self.names, start=1):
                _print_line(console, f"{number}: {run}", whole=True)
        _table(self, console.width >= WIDE).render(console)
        if self.chosen is not None:
            _print_line(console, str(self.reason()))
            _print_line(console, self.advice(), whole=True)
        for line in self.notes:
            _print_line(console, line)

    def as_dict(self) -> dict[str, Any]:
        """The content of `tune.json`."""
        return {
            "format": "clca-tune-1", "command": command(), "machine": self.machine, "versions": versions(),
            "budget": vars(self.budget), "data": self.data, "images": self.images, "judged": self.judged,
            "device": self.device, "precision": self.precision, "batch_size": self.batch_size,
            "points": self._rows(), "chosen": None if self.chosen is None else self._row(self.chosen),
            "reason": self.reason(), "advice": self.advice(), "notes": self.notes,
        }  # fmt: skip

    @property
    def names(self) -> dict[str, str]:
        """A short, unique name for each run."""
        return unique_labels(dict.fromkeys(point.run for point in self.points))

    def _rows(self) -> list[dict[str, Any]]:
        return [self._row(point) for point in self.points]

    def _row(self, point: Point) -> dict[str, Any]:
        return {"run": self.names[point.run], "path": point.run} | _flat(point)

    def picture(self) -> Frontier:
        """What the picture shows."""
        from clca.plots.frontier import Frontier, FrontierPoint

        measure = self.budget.measure

        def drawn(point: Point) -> FrontierPoint:
            untrained = "" if point.trained_size else " (not trained)"
            family = f"{self.names[point.run]}: {point.reduction}, {point.img_size} px{untrained}"
            latency = point.latency
            value = latency.median if measure == "latency_ms" else getattr(point, measure)
            late = latency.p90 - latency.median if measure == "latency_ms" else 0.0
            return FrontierPoint(family, point.rates, value, late, point.top1, point.error)

        return Frontier(
            points=[drawn(point) for point in self.points],
            best=[drawn(point) for point in frontier(self.points, measure)],
            chosen=None if self.chosen is None else drawn(self.chosen),
            measure=measure,
            budget=self.budget.value,
            budget_text=str(self.budget),
            batch_size=self.batch_size,
        )

    def write(self, folder: Path) -> list[Path]:
        """Write `tune.json`, `tune.csv` and `frontier.png`.

        Raises:
            ClcaError: The folder cannot be written.
            WorkError: A file could not be written; its predecessor is whole.
        """
        from clca.plots.frontier import draw_frontier

        make_writable(folder)
        write_json(folder / JSON, json.loads(json.dumps(self.as_dict())))
        rows = self._rows()
        write_csv(folder / CSV, list(rows[0]), (row.values() for row in rows))
        with replacing(folder / PICTURE) as temporary:
            draw_frontier(temporary, self.picture())
        return [folder / name for name in (JSON, CSV, PICTURE)]


def choose(points: Sequence[Point], budget: Budget) -> tuple[Point | None, Point | None]:
    """The most accurate within the budget, and the cheapest whose accuracy is within its standard error."""
    fitting = [point for point in points if point.fits(budget)]
    if not fitting:
        return None, None
    top = max(fitting, key=lambda point: (point.top1, -point.cost(budget.measure)))
    as_good = [point for point in fitting if point.top1 >= top.top1 - top.error]
    return top, min(as_good, key=lambda point: (point.cost(budget.measure), -point.top1))


def frontier(points: Sequence[Point], measure: Measure) -> list[Point]:
    """The points that no other beats in both accuracy and cost, from cheap to expensive."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost(measure), -point.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def _trained_as(point: Point) -> str:
    """Options of `clca train` for a run; for a saved model without training settings, its reduction."""
    with suppress(ClcaError):
        run = RunFolder(point.run)
        if run.images is not None:
            return shlex.join(["--config", str(run.config_file)])
    return f"… --reduction {point.reduction}"


def _print_line(console: Console, line: str, whole: bool = False) -> None:
    """Print a line; `whole`: without line breaks, so that a command or path can be copied."""
    console.print(line, highlight=False, markup=False, soft_wrap=whole)


def _accuracy(point: Point) -> str:
    return f"top-1 {point.top1:.1%} ± {point.error:.1%}"


def _costs(point: Point) -> str:
    return f"{point.latency.median:.1f} ms, {point.images_per_second:.1f} images/s, {gmacs_text(point.gmacs)} GMACs"


def _flat(point: Point) -> dict[str, Any]:
    numbers = dict(vars(point))
    latency = numbers.pop("latency")
    del numbers["run"]
    numbers["keep_rate"] = point.rates if isinstance(point.keep_rate, tuple) else point.keep_rate
    return numbers | {f"latency_ms_{name}": value for name, value in vars(latency).items()}


def _table(tuning: Tuning, wide: bool) -> Table:
    runs = list(tuning.names)
    # A narrow terminal shows one of the two; the one that the budget is about stays.
    left_out = "" if wide else "p90" if tuning.budget.measure == "images_per_second" else "images/s"
    names = [name for name in ("px", "keep", "top-1", "ms", "p90", "images/s", "GMACs", "tokens") if name != left_out]
    leading = ["", *(["run"] if len(runs) > 1 else []), "reduction"]
    columns = [words(name, wrap=False) for name in leading]
    columns += [Column(name, wrap=name == "keep") for name in names]
    rows = []
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
            "GMACs": gmacs_text(point.gmacs),
            "tokens": f"{point.tokens:.0f}",
        }
        rows.append([*cells, *(values[name] for name in names)])
    untrained = any(not point.trained_size for point in tuning.points)
    return Table(
        columns,
        rows,
        title=f"{tuning.images} validation images, batch {tuning.batch_size}, {tuning.budget}",
        caption="→ chosen  × over the budget" + ("  * not trained at this size" if untrained else ""),
        frame="rule",
    )
