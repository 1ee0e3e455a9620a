"""`benchmark(config)`: time all candidates of a model and batch size in the same rounds, as time allows."""

from __future__ import annotations

import gc
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import torch

from clca.benchmark.candidates import DTYPES, Candidate, CandidateBuilder, counts, is_run, run_alone
from clca.benchmark.config import BenchmarkConfig
from clca.benchmark.progress import Meter
from clca.benchmark.requested import requested
from clca.benchmark.result import Benchmark, BenchmarkRow, Growth, exponent
from clca.errors import ClcaError, WorkError
from clca.evaluation.stored import by_rate
from clca.kernels import dispatch, onednn
from clca.system.timing import (
    Spread,
    bandwidth,
    command,
    machine,
    matrix_rate,
    peak_memory,
    rounds,
    speed_ups,
    using_threads,
    versions,
)

_log = logging.getLogger(__name__)

LEAST_ROUNDS, FAIR_ROUNDS, MOST_ROUNDS = 3, 5, 15
PASSES_OF_A_STEP = 3  # the backward pass multiplies twice as much as the forward pass
SECONDS_PER_PROCESS = 1.0  # to fork, and to make a model


def benchmark(config: BenchmarkConfig) -> Benchmark:
    """Measure every candidate and two dense models: timm's, and this library's with the same kernels.

    Ctrl-C ends it early: the result then has the finished rounds, and `interrupted` is set.

    Args:
        config: What to measure.

    Raises:
        ClcaError: A model, size or setting is invalid; raised before anything is measured.
    """
    device = "cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu"
    wanted, left_out = requested(config, device)
    groups = [_Group(candidates, config) for candidates in wanted]
    rates, copying, interrupted = dict[str, float](), math.nan, False
    deadline = monotonic() + 60 * config.minutes
    with using_threads(config.threads), _compiling(config), Meter(None if config.rounds else deadline) as meter:
        host = machine()
        for line in left_out:
            _log.info("%s", line)
        try:
            meter.show(0, "the machine's rates")
            rates, copying = _best_rates(config, device, {}), bandwidth(device)
            weights = [group.weight for group in groups]
            for number, group in enumerate(groups):
                share = weights[number] / sum(weights[number:])
                done = sum(weights[:number]) / sum(weights)
                group.run(monotonic() + share * (deadline - monotonic()), meter, done, weights[number] / sum(weights))
                rates = _best_rates(config, device, rates)
        except KeyboardInterrupt:
            interrupted = True
    rows = [row for group in groups for row in group.rows(rates)]
    notes = left_out + [note for group in groups for note in group.notes(interrupted)]
    if any(row.candidate.reduction == "ats" for row in rows):
        notes.append("ATS: how many tokens it keeps depends on image and weights; measured on noise"
                     + ("" if all(map(is_run, config.models)) else " with random weights"))  # fmt: skip
    if config.training and any(row.candidate.reduction == "dynamicvit" for row in rows):
        notes.append("DynamicViT: in training it masks tokens and drops none; its GMACs, and what is formed with them "
                     "(of MACs, effic.), are those of inference")  # fmt: skip
    return Benchmark(config, rows, _growth(rows), rates, copying, host, versions(), command(), notes, interrupted)


def _best_rates(config: BenchmarkConfig, device: str, before: dict[str, float]) -> dict[str, float]:
    """The best matrix rates so far: other load on the machine can only lower them."""
    return {name: max(before.get(name, 0), _matrix_rate(DTYPES[name], device)) for name in config.precisions}


def _matrix_rate(dtype: torch.dtype, device: str) -> float:
    """The rate of the faster of the libraries that the kernels use on this machine."""
    with_onednn = dispatch.TRAIN_WITH_ONEDNN and device == "cpu" and dtype == torch.float32
    others = {"oneDNN": lambda x, weight: onednn.matmul(x, weight.mT)} if with_onednn else {}
    return matrix_rate(dtype, device, others=others)


def _compiling(config: BenchmarkConfig) -> AbstractContextManager[Any]:
    """Raise torch's limit of recompilations: each candidate is one, and none may fall back to eager."""
    if "compiled" not in config.modes:
        return nullcontext()
    import torch._dynamo

    return torch._dynamo.config.patch(
        recompile_limit=1000, accumulated_recompile_limit=10000, fail_on_recompile_limit_hit=True
    )


@dataclass
class _Group:
    """The candidates that are timed in the same rounds, and their results."""

    candidates: list[Candidate]
    config: BenchmarkConfig
    times: list[dict[str, float]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    memory_errors: dict[str, str] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Estimated duration, in arbitrary units."""
        # Making a model and counting its MACs takes about as long as three images of 224 px.
        return sum(_call_cost(c) + 3 * 224**2 for c in self.candidates)

    def run(self, until: float, meter: Meter, done: float, share: float) -> None:
        """Measure until about `until`; this group is `share` of all the work, of which `done` was done before."""
        begin = monotonic()
        first = self.candidates[0]
        what = f"{first.title}, batch {first.batch_size}"

        asked, worked = self.config.rounds, 0.0
        # A candidate is called once to warm up and once a round; its memory takes about as long as two calls.
        costs = {candidate.name: _call_cost(candidate) for candidate in self.candidates}
        work = sum(costs.values()) * (1 + (asked or 0) + 2 * self.config.memory)

        def show(text: str, name: str = "", calls: int = 0) -> None:
            nonlocal worked
            worked += calls * costs.get(name, 0.0)
            passed = worked / work if asked else (monotonic() - begin) / max(1e-9, until - begin)
            meter.show(done + share * min(1.0, passed), f"{what}: {text}")

        show("making models")
        builder, calls = CandidateBuilder(self.config.seed), {}
        for candidate in self.candidates:
            try:
                model = builder.model(candidate)
                self.counts[candidate.name] = counts(builder, candidate, model)
                calls[candidate.name] = builder.work(candidate, model)
            except Exception as error:
                self._failed(candidate.name, error)
        started, number = monotonic(), 0
        for seconds in rounds(
            calls,
            seed=self.config.seed,
            device=first.device,
            failed=self._failed,
            progress=lambda name: show(
                f"round {len(self.times) + 1}" if self.times else "warming up, round 1", name, 1
            ),
        ):
            now, number = monotonic(), number + 1
            self.times.append(seconds)
            # The first includes warming up; memory takes two calls of each and a process.
            each = (now - started) / number
            memory = 2 * each + SECONDS_PER_PROCESS * len(calls) if self.config.memory else 0
            if number >= (asked or MOST_ROUNDS):
                break
            if asked is None and number >= LEAST_ROUNDS and now + each + memory > until:
                break
        del builder, calls
        gc.collect()
        if self.config.memory:
            self._measure_memory(show)

    def _failed(self, name: str, error: Exception) -> None:
        self.errors[name] = _short_message(error)

    def _measure_memory(self, show: Any) -> None:
        for candidate in self.candidates:
            if candidate.name in self.errors or candidate.mode != "eager":
                continue
            show(f"memory of {candidate.setting}", candidate.name, 2)
            try:
                peak = peak_memory(run_alone, candidate, self.config.seed, device=candidate.device)
            except WorkError as error:
                self.memory_errors[candidate.name] = _short_message(error)
                continue
            self.peaks[candidate.name] = peak / 2**20

    def rows(self, rates: dict[str, float]) -> list[BenchmarkRow]:
        """One row for each candidate that was measured or failed."""
        names = [candidate.name for candidate in self.candidates]
        # Only complete rounds, so that speed-ups are formed within a round.
        times = {name: [seconds[name] for seconds in self.times] for name in names
                 if self.times and all(name in seconds for seconds in self.times)}  # fmt: skip
        made = []
        for candidate in self.candidates:
            name, error = candidate.name, self.errors.get(candidate.name)
            if error is not None:
                made.append(BenchmarkRow(candidate, error=error))
            elif name in times:
                made.append(self._row(candidate, times, rates[candidate.precision]))
        return made

    def _row(self, candidate: Candidate, times: dict[str, list[float]], rate: float) -> BenchmarkRow:
        name, dense = candidate.name, candidate.timm_dense
        count, base = self.counts[name], self.counts.get(dense.name, {})
        milliseconds = Spread.of([1000 * seconds for seconds in times[name]])
        gmacs, made = count["gmacs"], count["computed_gmacs"] or count["gmacs"]
        passes = PASSES_OF_A_STEP if candidate.training else 1
        peak, dense_peak = self.peaks.get(name), self.peaks.get(dense.name)

        def over(other: Candidate) -> Spread | None:
            return speed_ups(times, other.name)[name] if other.name in times else None

        return BenchmarkRow(
            candidate,
            rounds=len(times[name]),
            patches=count["patches"],
            gmacs=gmacs,
            computed_gmacs=count["computed_gmacs"],
            mac_ratio=(base.get("gmacs") or math.nan) / gmacs if base else None,
            milliseconds=milliseconds,
            speed_up=over(dense),
            over_own_dense=over(candidate.own_dense),
            over_eager=over(replace(dense, mode="eager")) if candidate.mode != "eager" else None,
            over_fp32=over(replace(candidate, precision="fp32")) if candidate.precision != "fp32" else None,
            peak_mib=peak,
            memory_ratio=peak / dense_peak if peak and dense_peak else None,
            memory_error=self.memory_errors.get(name),
            efficiency=1000 * candidate.batch_size * made * passes / milliseconds.median / rate,
        )

    def notes(self, interrupted: bool) -> list[str]:
        """Notes on too few rounds."""
        count, asked = len(self.times), self.config.rounds
        first = self.candidates[0]
        what = f"{first.title}, batch {first.batch_size}"
        if interrupted and count < (asked or FAIR_ROUNDS):
            return [f"{what}: interrupted after {count} rounds"]
        if asked is None and count < FAIR_ROUNDS and set(self.errors) != {c.name for c in self.candidates}:
            return [
                f"{what}: only {count} rounds fitted into --minutes {self.config.minutes:g}, so p10–p90 is not reliable"
            ]
        return []


def _call_cost(candidate: Candidate) -> float:
    """Estimated duration of a call, in arbitrary units."""
    return candidate.batch_size * candidate.img_size**2 * (0.3 + 0.7 * by_rate(candidate.keep_rate)[0])


def _short_message(error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, (ClcaError, WorkError)) else f"{type(error).__name__}: "
    return (kind + (text if len(text) <= 160 else text[:157] + "…")).removesuffix(": ")


def _growth(rows: list[BenchmarkRow]) -> list[Growth]:
    """Exponents over the image sizes, for every candidate that was measured at two or more of them."""
    families: dict[Candidate, list[BenchmarkRow]] = {}
    for row in rows:
        if row.milliseconds is not None:
            families.setdefault(replace(row.candidate, img_size=0), []).append(row)
    found = []
    for family in families.values():
        if len({row.candidate.img_size for row in family}) < 2:
            continue
        family.sort(key=lambda row: row.candidate.img_size)
        patches = tuple(row.patches for row in family)
        peaks = tuple(row.peak_mib for row in family if row.peak_mib)
        found.append(
            Growth(
                family[-1].candidate,
                patches,
                macs=exponent(patches, tuple(row.computed_gmacs or row.gmacs or math.nan for row in family)),
                time=exponent(patches, tuple(row.milliseconds.median for row in family if row.milliseconds)),
                memory=exponent(patches, peaks) if len(peaks) == len(patches) else None,
            )
        )
    return found
