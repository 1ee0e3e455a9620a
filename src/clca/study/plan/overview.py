"""What a study comes to before it is begun: runs by axis, multiply-accumulates, device time, what is done."""

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
from rich.table import Table

from clca.data.cache.limits import beside_cache
from clca.errors import ClcaError, WorkError
from clca.study.plan.cost_model import StudyCosts
from clca.study.plan.expand import Plan, PlannedRun
from clca.study.plan.identity import model_text
from clca.study.plan.set_sizes import set_size
from clca.study.results.folder import RESULT, run_folder, states
from clca.system.files import read_json
from clca.training.config import TrainConfig
from clca.training.progress import duration
from clca.training.run_folder import write_json

_MOST_LABELS = 12  # of an axis, in the table
_SEEN = 200  # finished runs that a rate is taken from


@dataclass
class Overview:
    """What `clca study plan` says.

    Attributes:
        plan: The study's plan.
        runs: Those that it is about.
        done: How many of them are in each state.
        gmacs: Of all of them, training and evaluation; None before `add_costs`.
        gmacs_left: Of those that are not finished.
        unpriced: Runs whose multiply-accumulates are not known, because their images are not here.
        rate: 10⁹ multiply-accumulates a second of one device, and where that was measured; None before `add_costs`.
    """

    plan: Plan
    runs: Sequence[PlannedRun]
    out: Path
    done: Counter[str]
    gmacs: float | None = None
    gmacs_left: float | None = None
    unpriced: int = 0
    rate: tuple[float, str] | None = None
    by_axis: dict[str, Counter[str]] = field(default_factory=dict)

    def render_runs(self, console: Console) -> None:
        """Print which runs there are, and what has become of them."""
        study = self.plan.study
        if study.about:
            console.print(study.about, markup=False, highlight=False)
        table = Table(title=f"{study.name}: {len(self.runs):,} runs", title_justify="left")
        table.add_column("axis")
        table.add_column("values: runs", overflow="fold")
        for axis, counts in self.by_axis.items():
            shown = ", ".join(f"{label}: {count:,}" for label, count in list(counts.items())[:_MOST_LABELS])
            more = len(counts) - _MOST_LABELS
            table.add_row(axis, shown + (f", and {more} more" if more > 0 else ""))
        console.print(table)
        for condition, count in zip(study.exclude, self.plan.excluded, strict=True):
            text = ", ".join(f"{axis} {_said(wanted)}" for axis, wanted in condition.items())
            console.print(f"left out: {text} ({count:,} combinations)", markup=False, highlight=False)
        if self.plan.pretraining:
            count = len(self.plan.pretraining)
            console.print(f"and {count} run{'s' * (count > 1)} before them, whose weights all start from")
        done = ", ".join(f"{count:,} {state}" for state, count in self.done.items() if count)
        console.print(f"in {self.out}: {done.replace('new', 'not begun').replace('started', 'begun')}", highlight=False)
        if self.plan.absent:
            listed = ", ".join(self.plan.absent)
            console.print(f"not here: {listed} (what is done of them cannot be told; see --data-folder)", markup=False)

    def render_cost(self, console: Console) -> None:
        """Print what they cost, once that was added up."""
        if self.gmacs is None or self.gmacs_left is None:
            return
        less = f" without {self.unpriced:,} runs whose images are not here" if self.unpriced else ""
        console.print(
            f"multiply-accumulates: {_large(self.gmacs)} in all, {_large(self.gmacs_left)} left{less} "
            "(training as three forward passes, and the evaluation at the end)",
            highlight=False,
        )
        if self.rate is not None:
            rate, source = self.rate
            left = _time(self.gmacs_left / rate)
            console.print(f"device time left: about {left} at {rate:,.1f} GMAC/s, {source}", highlight=False)


def _said(wanted: Any) -> str:
    if isinstance(wanted, dict):
        return f"not {_said(wanted['not'])}"
    return ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def _large(gmacs: float) -> str:
    for name, size in (("ZMACs", 1e12), ("EMACs", 1e9), ("PMACs", 1e6), ("TMACs", 1e3)):
        if gmacs >= size:
            return f"{gmacs / size:.3g} {name}"
    return f"{gmacs:.3g} GMACs"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:,.0f} days"


def overview(plan: Plan, runs: Sequence[PlannedRun], out: Path) -> Overview:
    """Look at a plan, without its costs.

    Args:
        plan: The plan.
        runs: Those of it that count.
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
    """Add up multiply-accumulates; models that were not priced before take torch, and so some seconds.

    Args:
        found: The overview, which is filled in.
        rate: 10⁹ multiply-accumulates a second; None takes it from finished runs, else measures a matrix product here.

    Raises:
        ClcaError: A model of the study cannot be made, or the rate is not above 0.
    """
    if rate is not None and not rate > 0:
        raise ClcaError(f"--gmacs-per-second {rate:g}: should be above 0")
    known = states(found.out, [run.name for run in found.runs])
    each = _Runs(found.plan).of(found.runs)
    found.unpriced = sum(gmacs is None for gmacs in each.values())
    found.gmacs = sum(gmacs or 0.0 for gmacs in each.values())
    found.gmacs_left = sum(gmacs or 0.0 for name, gmacs in each.items() if known[name] != "finished")
    found.rate = (rate, "as given") if rate is not None else _measured(found.out, known, each) or _of_this_machine()


class _Runs:
    """Multiply-accumulates of whole runs; of those with equal models, sets and recipes, once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.costs = StudyCosts()
        self._each: dict[Any, float | None] = {}

    def of(self, runs: Sequence[PlannedRun]) -> dict[str, float | None]:
        """10⁹ multiply-accumulates of each run, by its name; None where its images are not known."""
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
            trained, judged = self.costs.of(config.model, size.classes, model)
            whole = size.train - size.train % min(config.batch_size, size.train)  # the last partial batch is dropped
            self._each[key] = config.epochs * whole * trained + size.judged * judged
        return self._each[key]


def _measured(out: Path, known: Mapping[str, str], each: Mapping[str, float | None]) -> tuple[float, str] | None:
    """The rate of the runs that are finished."""
    rates: list[float] = []
    for name, gmacs in each.items():
        if known[name] == "finished" and gmacs is not None and len(rates) < _SEEN:
            seconds = (read_json(run_folder(out, name) / RESULT) or {}).get("seconds")
            if seconds:
                rates.append(gmacs / seconds)
    if not rates:
        return None
    return median(rates), f"the median of {len(rates)} finished runs, one device each"


def _of_this_machine() -> tuple[float, str]:
    """The rate of a matrix product here; of the GPU's, which takes torch, what was measured before."""
    if shutil.which("nvidia-smi") is None:
        rate, where = _matrix_product(), "the CPU"
    else:
        rate, where = _on_gpu()
    return rate, f"a matrix product on {where} here; runs take longer, and once some are done their rate is used"


def _matrix_product() -> float:
    """GMAC/s of NumPy's product, the best of three."""
    import numpy as np

    side = 1536
    factor = np.ones((side, side), np.float32)
    times = []
    for _ in range(4):
        began = monotonic()
        factor @ factor
        times.append(monotonic() - began)
    return side**3 / min(times[1:]) / 1e9


def _on_gpu() -> tuple[float, str]:
    path = beside_cache("rates.json")
    kept = (read_json(path) if path is not None else None) or {}
    here = platform.node()
    if here not in kept:
        import torch

        from clca.system.timing import matrix_rate

        if not torch.cuda.is_available():
            return _matrix_product(), "the CPU"
        kept[here] = [matrix_rate(torch.bfloat16, "cuda", repeats=3), torch.cuda.get_device_name()]
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, kept)
        except (OSError, WorkError):
            pass
    return kept[here][0], kept[here][1]
