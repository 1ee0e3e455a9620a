"""The result of a benchmark: its rows, the tables and the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clca.benchmark.candidates import DENSE, OWN_DENSE, Candidate
from clca.benchmark.config import BenchmarkConfig
from clca.evaluation.stored import by_rate
from clca.models.config import spelled
from clca.models.cost import gmacs_text
from clca.plots.speedup import SpeedUp, SpeedUpPanel
from clca.system.files import make_writable, replacing, write_csv, write_json
from clca.system.tables import Column, Table, words
from clca.system.timing import Spread
from clca.training.run_folder import unique_labels

LOSES_BELOW = 0.8
"""Share of the MAC ratio below which a row is listed as falling short."""
LEGEND = (
    "× timm: speed-up over timm's dense model in the same round, by kernels and reduction; × own: over this library's "
    "dense model, which has the same kernels, so by the reduction alone; of MACs: × own over the ratio of GMACs, 1 "
    "where time falls as the MACs do; effic.: of the machine's measured matrix rate; memory: peak over timm's dense "
    "model; made: GMACs really multiplied"
)
JSON, CSV, PICTURE, PRINT = "benchmark.json", "benchmark.csv", "speedup.png", "speedup.pdf"


@dataclass(frozen=True)
class BenchmarkRow:
    """One candidate's numbers; None where something could not be measured.

    Attributes:
        candidate: Model and setting.
        rounds: Rounds it was timed in.
        patches: Of one image.
        gmacs: Multiply-accumulates of one image's forward pass in 10⁹, as the published method counts them.
        computed_gmacs: Those that this implementation computes.
        mac_ratio: The dense model's GMACs over these.
        milliseconds: Per batch.
        speed_up: Over timm's dense model in the same precision and mode, round by round: by kernels and reduction.
        over_own_dense: Over this library's dense model in the same precision and mode, which has the same kernels.
        over_eager: Over timm's dense model in the same precision, not compiled.
        over_fp32: Over the same candidate in fp32.
        peak_mib: Peak memory above that of the process before the model was built, in MiB.
        memory_ratio: That over timm's dense model's.
        efficiency: Share of the machine's measured matrix rate, 0 … 1; a training step counts as three passes.
        memory_error: Why memory could not be measured.
        error: Why there are no numbers.
    """

    candidate: Candidate
    rounds: int = 0
    patches: int = 0
    gmacs: float | None = None
    computed_gmacs: float | None = None
    mac_ratio: float | None = None
    milliseconds: Spread | None = None
    speed_up: Spread | None = None
    over_own_dense: Spread | None = None
    over_eager: Spread | None = None
    over_fp32: Spread | None = None
    peak_mib: float | None = None
    memory_ratio: float | None = None
    efficiency: float | None = None
    memory_error: str | None = None
    error: str | None = None

    @property
    def images_per_second(self) -> float | None:
        return 1000 * self.candidate.batch_size / self.milliseconds.median if self.milliseconds else None

    @property
    def share(self) -> float | None:
        """What the reduction gives over the ratio of MACs: 1 where time falls as the MACs do."""
        if self.over_own_dense is None or not self.mac_ratio or self.candidate.reduction == DENSE:
            return None
        return self.over_own_dense.median / self.mac_ratio

    def as_dict(self) -> dict[str, Any]:
        numbers = asdict(self)
        setting = numbers.pop("candidate")
        setting["model"] = setting.pop("label") or self.candidate.model
        return {**setting, **numbers, "images_per_second": self.images_per_second, "share_of_mac_ratio": self.share}


@dataclass(frozen=True)
class Growth:
    """Growth of cost with the number of patches P: exponents a of P^a, by least squares over the image sizes."""

    candidate: Candidate
    patches: tuple[int, ...]
    macs: float
    time: float
    memory: float | None

    def as_dict(self) -> dict[str, Any]:
        """Numbers and setting, without the image size, of which there are several."""
        numbers = asdict(self)
        setting = numbers.pop("candidate")
        del setting["img_size"]
        setting["model"] = setting.pop("label") or self.candidate.model
        return {**setting, **numbers}


@dataclass
class Benchmark:
    """The result of `benchmark`.

    Attributes:
        config: What was to be measured.
        rows: One per candidate, grouped by setting, the dense models first.
        growth: If there are several image sizes.
        matrix_rate: GMAC/s of the machine by precision.
        bandwidth: GB/s of copying.
        machine, versions, command: How to reproduce it.
        notes: Caveats, a line each.
        interrupted: Whether Ctrl-C ended it early.
    """

    config: BenchmarkConfig
    rows: list[BenchmarkRow]
    growth: list[Growth]
    matrix_rate: dict[str, float]
    bandwidth: float
    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def groups(self) -> Iterator[tuple[str, list[BenchmarkRow]]]:
        """Rows of one table or panel each, with its title."""
        for title, rows in groupby(self.rows, key=lambda row: title_of(row.candidate)):
            yield title, list(rows)

    def panels(self) -> list[SpeedUpPanel]:
        """What the picture shows; none where no reduced model has a speed-up."""
        return [panel for title, rows in self.groups() if (panel := _panel(title, rows)).speed_ups]

    def falls_short(self) -> list[str]:
        """One line for every row that is slower than this library's dense model, or far below its MAC ratio."""
        return [line for title, rows in self.groups() for line in _verdicts(rows, f" ({title})")]

    def render(self, console: Console) -> None:
        """Print machine, tables, what falls short, and notes."""
        for title, rows in self.groups():
            wide = _table(rows, wide=True)
            table = wide if wide.fits(console) else _table(rows, wide=False)
            replace(table, title=title).render(console)
            for row in rows:
                if row.error is not None:
                    _print_line(console, f"{row.candidate.setting} failed: {row.error}")
                if row.memory_error is not None:
                    _print_line(
                        console, f"{row.candidate.setting}: its memory could not be measured: {row.memory_error}"
                    )
            for line in _verdicts(rows):
                _print_line(console, line)
            console.print()
        for title, lines in groupby(self.growth, key=_growth_title):
            replace(_growth_table(list(lines)), title=title).render(console)
        if any(row.mac_ratio for row in self.rows):
            _print_line(console, LEGEND)
        rates = ", ".join(f"{rate:.0f} GMAC/s {name}" for name, rate in self.matrix_rate.items())
        machine = self.machine
        where = ", ".join(
            [
                machine["cpu"] + (f" of family {machine['cpu_family']}" if machine["cpu_family"] else ""),
                f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}",
                *machine["flags"],
                *machine["gpu"],
            ]
        )
        _print_line(console, f"{where}; matrix products {rates}, copying {self.bandwidth:.0f} GB/s")
        for line in self.notes:
            _print_line(console, line)

    def as_dict(self) -> dict[str, Any]:
        """The content of `benchmark.json`."""
        config = json.loads(self.config.model_dump_json())
        config["models"] = list(unique_labels(self.config.models).values())
        return {
            "format": "clca-benchmark-2", "command": self.command, "machine": self.machine, "versions": self.versions,
            "config": config, "matrix_rate_gmacs": self.matrix_rate, "bandwidth_gb": self.bandwidth,
            "rows": [row.as_dict() for row in self.rows], "growth": [line.as_dict() for line in self.growth],
            "falls_short": self.falls_short(),
            "notes": self.notes, "interrupted": self.interrupted,
        }  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """Write `benchmark.json`, `benchmark.csv` and, if a reduced model was measured, the picture as PNG and PDF.

        Raises:
            ClcaError: The folder cannot be written.
            WorkError: A file could not be written; its predecessor is whole.
        """
        from clca.plots.speedup import draw_speed_ups

        make_writable(folder)
        write_json(folder / JSON, self.as_dict())
        rows = [_flat(row) for row in self.rows]
        heads = list(rows[0]) if rows else ["model"]
        write_csv(folder / CSV, heads, ([row[head] for head in heads] for row in rows))
        written = [folder / JSON, folder / CSV]
        panels = self.panels()
        if panels:
            for name in (PICTURE, PRINT):
                with replacing(folder / name) as temporary:
                    draw_speed_ups(temporary, panels, name.rpartition(".")[2])
                written.append(folder / name)
        return written


def title_of(candidate: Candidate) -> str:
    """The setting that rows of one table share."""
    work = "training step" if candidate.training else "inference"
    size = f"{candidate.img_size} px, batch {candidate.batch_size}"
    return f"{candidate.title}, {size}, {candidate.precision}, {candidate.mode}, {work}"


def exponent(patches: tuple[int, ...], values: tuple[float, ...]) -> float:
    """The a of the power law values ≈ c · patches^a, by least squares over the logarithms."""
    return float(np.polyfit(np.log(patches), np.log(values), 1)[0])


def _print_line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=False)


def _verdicts(rows: list[BenchmarkRow], where: str = "") -> list[str]:
    """One line for every row that is slower than this library's dense model, or far below its MAC ratio."""
    lines = []
    for row in rows:
        if row.candidate.is_dense or row.over_own_dense is None or row.share is None:
            continue
        name, speed = f"{row.candidate.setting}{where}", row.over_own_dense.median
        if round(speed, 2) < 1:  # rounded as it is shown
            lines.append(f"{name} is slower than dense with the same kernels: {speed:.2f} × its speed")
        elif row.share < LOSES_BELOW:
            lines.append(f"{name} falls behind its MACs: {speed:.2f} × faster for {row.mac_ratio:.2f} × fewer")
    return lines


def _panel(title: str, rows: list[BenchmarkRow]) -> SpeedUpPanel:
    drawn = [row for row in rows if row.share and not row.candidate.is_dense]
    drawn.sort(key=lambda row: by_rate(row.candidate.keep_rate), reverse=True)
    own = next((row.speed_up for row in rows if row.candidate.reduction == OWN_DENSE), None)
    return SpeedUpPanel(
        title,
        keep_rates=", ".join(dict.fromkeys(spelled(row.candidate.keep_rate) for row in drawn)),
        speed_ups=[
            SpeedUp(row.candidate.reduction, row.mac_ratio, spread.median, spread.p10, spread.p90)
            for row in drawn
            if (spread := row.over_own_dense) and row.mac_ratio
        ],
        kernels=own.median if own else None,
    )


def _table(rows: list[BenchmarkRow], wide: bool) -> Table:
    comparing = [name for name in ("× eager", "× fp32") if any(_cells(row)[name] for row in rows)]
    names = ["keep", "GMACs"]
    if wide and any(row.computed_gmacs is not None for row in rows):
        names.append("made")
    names += ["ms", "ms range"] if wide else ["ms"]
    weighed = any(row.peak_mib is not None for row in rows)
    names += (["img/s"] if wide or not (comparing or weighed) else []) + ["× timm"]
    names += ["p10–p90"] if wide or not comparing else []
    names += ["× own", "of MACs", *comparing]
    names += ["effic."] if wide else []
    if weighed:
        names += ["MiB", "memory"] if wide else ["memory"]
    columns = [Column("p10–p90" if name == "ms range" else name, wrap=name == "keep") for name in names]
    shown = []
    for row in rows:
        cells = _cells(row)
        kept = names if row.error is None else ["keep"]
        shown.append([row.candidate.shown_reduction, *(cells[name] if name in kept else "" for name in names)])
    return Table([words("reduction", wrap=False), *columns], shown, frame="rule")


def _cells(row: BenchmarkRow) -> dict[str, str]:
    def one(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    def low_high(spread: Spread | None, form: str) -> str:
        return "" if spread is None else f"{spread.p10:{form}}–{spread.p90:{form}}"

    time, speed = row.milliseconds, row.speed_up
    form = ".0f" if time is not None and time.median >= 100 else ".1f"
    return {
        "keep": spelled(row.candidate.keep_rate),
        "GMACs": _gmacs(row.gmacs),
        "made": _gmacs(row.computed_gmacs),
        "ms": one(time.median if time else None, form),
        "ms range": low_high(time, form),
        "img/s": one(row.images_per_second, ".1f"),
        "× timm": one(speed.median if speed else None, ".2f"),
        "p10–p90": low_high(speed, ".2f"),
        "× own": one(row.over_own_dense.median if row.over_own_dense else None, ".2f"),
        "of MACs": one(row.share, ".2f"),
        "× eager": one(row.over_eager.median if row.over_eager else None, ".2f"),
        "× fp32": one(row.over_fp32.median if row.over_fp32 else None, ".2f"),
        "effic.": one(row.efficiency, ".0%"),
        "MiB": one(row.peak_mib, ".0f"),
        "memory": one(row.memory_ratio, ".2f"),
    }


def _gmacs(value: float | None) -> str:
    return "" if value is None else gmacs_text(value)


def _growth_title(line: Growth) -> str:
    """Title of a table of exponents: the model and the numbers of patches."""
    return f"{line.candidate.title}: exponent in the number of patches ({', '.join(map(str, line.patches))})"


def _growth_table(growth: list[Growth]) -> Table:
    rows = [
        [
            line.candidate.shown_reduction,
            spelled(line.candidate.keep_rate),
            str(line.candidate.batch_size),
            f"{line.candidate.precision}, {line.candidate.mode}",
            f"{line.macs:.2f}",
            f"{line.time:.2f}",
            "" if line.memory is None else f"{line.memory:.2f}",
        ]
        for line in growth
    ]
    columns = [words("reduction"), Column("keep"), Column("batch"), words("setting")]
    return Table([*columns, Column("MACs"), Column("time"), Column("memory")], rows, frame="rule")


def _flat(row: BenchmarkRow) -> dict[str, Any]:
    """A row of the CSV: a spread becomes three numbers."""
    numbers = row.as_dict() | {"keep_rate": spelled(row.candidate.keep_rate)}
    for name, value in list(numbers.items()):
        if name in ("milliseconds", "speed_up", "over_own_dense", "over_eager", "over_fp32"):
            del numbers[name]
            numbers |= {f"{name}_{part}": (value or {}).get(part) for part in ("median", "p10", "p90")}
    return numbers
