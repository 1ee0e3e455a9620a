"""Overview of a plan: runs by axis, multiply-accumulates, device time, and what is done already."""

from __future__ import annotations

import platform
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from rich.console import Console

from clca.data.cache.limits import beside_cache
from clca.errors import ClcaError, WorkError
from clca.study.plan.cost_model import StudyCosts
from clca.study.plan.expand import Plan, PlannedRun
from clca.study.plan.identity import model_text
from clca.study.plan.set_sizes import set_size
from clca.study.results.folder import read_result, run_folder, states
from clca.system.files import read_json, write_json
from clca.system.paths import shown
from clca.system.tables import Table, words
from clca.training.config import TrainConfig
from clca.training.progress import duration

_MOST_LABELS = 12  # values of an axis in the table
_RATED = 200  # at most so many finished runs give the rate


@dataclass
class Overview:
    """What `clca study plan` prints.

    Attributes:
        plan: The plan.
        runs: The selected runs of it.
        out: Folder of the study.
        done: Number of runs in each state.
        gmacs: 10⁹ multiply-accumulates of all runs, training and evaluation; None before `add_costs`.
        gmacs_left: The same of the runs that are not finished.
        unknown: Number of runs whose cost is unknown because their images are missing.
        rate: 10⁹ multiply-accumulates a second of one device, and how it was measured; None before `add_costs`.
        by_axis: Number of runs for each value of each axis.
    """

    plan: Plan
    runs: Sequence[PlannedRun]
    out: Path
    done: Counter[str]
    gmacs: float | None = None
    gmacs_left: float | None = None
    unknown: int = 0
    rate: tuple[float, str] | None = None
    by_axis: dict[str, Counter[str]] = field(default_factory=dict)

    def render_runs(self, console: Console) -> None:
        """Print the runs by axis, and their states."""
        study = self.plan.study
        if study.about:
            console.print(shown(study.about), markup=False, highlight=False)
        rows = []
        for axis, counts in self.by_axis.items():
            listed = ", ".join(f"{label}: {count:,}" for label, count in list(counts.items())[:_MOST_LABELS])
            more = len(counts) - _MOST_LABELS
            rows.append([axis, listed + (f", and {more} more" if more > 0 else "")])
        title = f"{study.name}: {len(self.runs):,} runs"
        Table([words("axis"), words("values: runs")], rows, title=title).render(console)
        for condition, count in zip(study.exclude, self.plan.excluded, strict=True):
            text = ", ".join(f"{axis} {_condition_text(wanted)}" for axis, wanted in condition.items())
            console.print(f"left out: {shown(text)} ({count:,} combinations)", markup=False, highlight=False)
        if self.plan.pretraining:
            count = len(self.plan.pretraining)
            console.print(f"and {count} pretraining run{'s' * (count > 1)} first, from whose weights all others start")
        done = ", ".join(f"{count:,} {state}" for state, count in self.done.items() if count)
        done = done.replace("new", "not begun").replace("started", "begun")
        console.print(f"in {shown(self.out)}: {done}", markup=False, highlight=False)
        if self.plan.absent:
            listed = ", ".join(self.plan.absent)
            console.print(
                f"missing here: {shown(listed)} (whether their runs are done is unknown; see --data-folder)",
                markup=False,
            )

    def render_cost(self, console: Console) -> None:
        """Print the cost of the runs, after `add_costs`."""
        if self.gmacs is None or self.gmacs_left is None:
            return
        less = f" without {self.unknown:,} runs whose images are missing here" if self.unknown else ""
        console.print(
            f"multiply-accumulates: {_large(self.gmacs)} in all, {_large(self.gmacs_left)} left{less} "
            "(training as three forward passes, and the evaluation at the end)",
            highlight=False,
        )
        if self.rate is not None:
            rate, source = self.rate
            left = _time(self.gmacs_left / rate)
            console.print(f"device time left: about {left} at {rate:,.1f} GMAC/s, {source}", highlight=False)


def _condition_text(wanted: Any) -> str:
    if isinstance(wanted, dict):
        return f"not {_condition_text(wanted['not'])}"
    return ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def _large(gmacs: float) -> str:
    for name, size in (("ZMACs", 1e12), ("EMACs", 1e9), ("PMACs", 1e6), ("TMACs", 1e3)):
        if gmacs >= size:
            return f"{gmacs / size:.3g} {name}"
    return f"{gmacs:.3g} GMACs"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:,.0f} days"


def overview(plan: Plan, runs: Sequence[PlannedRun], out: Path) -> Overview:
    """An overview of a plan, without its costs.

    Args:
        plan: The plan.
        runs: The selected runs of it.
        out: The study's folder.
    """
    counts = [Counter(run.choice[number] for run in runs) for number in range(len(plan.study.axes))]
    by_axis = {
        axis: Counter({value.label: counts[number][k] for k, value in enumerate(values) if counts[number][k]})
        for number, (axis, values) in enumerate(plan.study.axes.items())
    }
    by_axis["seed"] = Counter(str(run.seed) for run in runs)
    known = states(out, [run.name for run in runs])
    return Overview(plan, runs, out, Counter(known.values()), by_axis=by_axis)


def add_costs(found: Overview, rate: float | None = None) -> None:
    """Add up multiply-accumulates; a model whose cost must be measured takes some seconds to import torch.

    Args:
        found: The overview, in which the costs are filled in.
        rate: 10⁹ multiply-accumulates a second; None takes the median of finished runs, or
            else measures a matrix product here.

    Raises:
        ClcaError: A model of the study cannot be built, or the rate is not above 0.
    """
    if rate is not None and not rate > 0:
        raise ClcaError(f"--gmacs-per-second {rate:g}: should be above 0")
    known = states(found.out, [run.name for run in found.runs])
    each = _RunCosts(found.plan).of(found.runs)
    found.unknown = sum(gmacs is None for gmacs in each.values())
    found.gmacs = sum(gmacs or 0.0 for gmacs in each.values())
    found.gmacs_left = sum(gmacs or 0.0 for name, gmacs in each.items() if known[name] != "finished")
    found.rate = (rate, "as given") if rate is not None else _finished_rate(found.out, known, each) or _machine_rate()


class _RunCosts:
    """Multiply-accumulates of whole runs, computed once for runs with equal models, data and recipes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.costs = StudyCosts()
        self._each: dict[Any, float | None] = {}

    def of(self, runs: Sequence[PlannedRun]) -> dict[str, float | None]:
        """10⁹ multiply-accumulates of each run, by its name; None if the size of its data set is unknown."""
        alike: dict[tuple[int, ...], list[PlannedRun]] = defaultdict(list)
        for run in runs:
            alike[run.choice].append(run)
        found: dict[str, float | None] = {}
        try:
            for choice in alike:
                gmacs = self._of(self.plan.config(alike[choice][0]))
                found.update({run.name: gmacs for run in alike[choice]})
        finally:
            self.costs.save()
        return found

    def _of(self, config: TrainConfig) -> float | None:
        size = set_size(config.data, self.plan.study.split)
        if size is None:
            return None
        model = model_text(config.model)
        key = (model, size, config.epochs, config.batch_size)
        if key not in self._each:
            training, evaluation = self.costs.of(config.model, size.classes, model)
            whole = size.train - size.train % min(config.batch_size, size.train)  # the last partial batch is dropped
            self._each[key] = config.epochs * whole * training + size.evaluation * evaluation
        return self._each[key]


def _finished_rate(out: Path, known: Mapping[str, str], each: Mapping[str, float | None]) -> tuple[float, str] | None:
    """The median rate of the finished runs."""
    rates: list[float] = []
    for name, gmacs in each.items():
        if known[name] == "finished" and gmacs is not None and len(rates) < _RATED:
            seconds = (read_result(run_folder(out, name)) or {}).get("seconds")
            if seconds and seconds > 0:
                rates.append(gmacs / seconds)
    if not rates:
        return None
    return median(rates), f"the median of {len(rates)} finished runs, one device each"


def _machine_rate() -> tuple[float, str]:
    """The rate of a matrix product here; that of a GPU, which takes torch to measure, is kept."""
    if shutil.which("nvidia-smi") is None:
        rate, where = _cpu_rate(), "the CPU"
    else:
        rate, where = _gpu_rate()
    return rate, f"a matrix product on {where} here; runs are slower, and once some are finished their rate is used"


def _cpu_rate() -> float:
    """GMAC/s of a matrix product in NumPy, the best of three."""
    import numpy as np

    side = 1536
    factor = np.ones((side, side), np.float32)
    times = []
    for _ in range(4):
        began = monotonic()
        factor @ factor
        times.append(monotonic() - began)
    return side**3 / min(times[1:]) / 1e9


def _gpu_rate() -> tuple[float, str]:
    path = beside_cache("rates.json")
    kept = (read_json(path) if path is not None else None) or {}
    here = platform.node()
    if here not in kept:
        import torch

        from clca.system.timing import matrix_rate

        if not torch.cuda.is_available():
            return _cpu_rate(), "the CPU"
        kept[here] = [matrix_rate(torch.bfloat16, "cuda", repeats=3), torch.cuda.get_device_name()]
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, kept)
        except (OSError, WorkError):
            pass
    return kept[here][0], kept[here][1]
