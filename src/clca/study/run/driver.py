"""The driver of a study: gives runs to an executor, and handles those that fail, are lost or are made elsewhere."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from clca.errors import ClcaError, WorkError, brief
from clca.study.plan.expand import Plan, PlannedRun, arm, set_name
from clca.study.results.folder import (
    FORMAT,
    RESULT,
    RUNS,
    STUDY,
    TABLE,
    TRAINED,
    make_run_folder,
    read_failure,
    remove_unfinished_folders,
    run_folder,
    state_of,
    states,
    study_content,
)
from clca.study.results.record import settings_row
from clca.study.results.table import row_of, table_rows, write_table
from clca.study.run.claim import Watch, holder
from clca.study.run.display import StudyDisplay
from clca.study.run.executors import Executor, InThisProcess
from clca.study.run.job import TRAIN_AND_EVALUATE, Job, Outcome, write_failure
from clca.study.run.leaves import draw_leaves
from clca.study.run.result import StudyResult
from clca.system.files import make_writable, write_json
from clca.system.paths import expanded
from clca.system.signals import first_signal
from clca.training.run_folder import WEIGHTS

MOST_LOST = 3
"""A run whose process died so many times counts as failed: the run itself may kill it."""

_CHECK_ELSEWHERE_EVERY = 5.0  # seconds between two checks of runs that other drivers make
_TABLE_EVERY = 60.0  # seconds; more if writing takes long
_SECONDS_TO_SAVE = 120.0  # that runs have to save their state after Ctrl-C


def run_study(
    plan: Plan,
    out: str | Path | None = None,
    executor: Executor | None = None,
    *,
    runs: Sequence[PlannedRun] | None = None,
    retry_failed: bool = False,
    threads: int | None = None,
    work: str = TRAIN_AND_EVALUATE,
    quiet: bool = False,
) -> StudyResult:
    """Make the runs of a study that are not finished yet, and keep its table up to date.

    Any number of processes, on any machines that share the folder, may do this at the same time. Interrupted runs
    resume where they stopped.

    Args:
        plan: The study's plan.
        out: The study's folder; runs/<name> if omitted.
        executor: Makes the runs; this process if omitted.
        runs: Make only these runs of the plan.
        retry_failed: Try failed runs once more.
        threads: CPU threads per run; None for torch's choice.
        work: The function that makes a run, as module:function (see `job.Job`).
        quiet: Neither show nor log progress.

    Raises:
        ClcaError: Images are missing, the folder cannot be used, or the executor cannot be started.
        WorkError: The pretraining failed.
    """
    runs = list(plan.runs if runs is None else runs)
    if absent := plan.absent_among(runs):
        raise ClcaError(f"{plan.study.name}: no such images: {', '.join(absent)} (see --data-folder)")
    folder = expanded(out if out is not None else Path("runs") / plan.study.name).resolve()
    make_writable(folder / RUNS)
    remove_unfinished_folders(folder)
    describe_study(plan, folder)
    driver = _Driver(plan, folder, executor or InThisProcess(), retry_failed, threads, work)
    return driver.run(runs, quiet)


def describe_study(plan: Plan, folder: Path) -> None:
    """Write study.json.

    Raises:
        ClcaError: The folder holds another study.
    """
    stored = study_content(folder)
    if stored is not None and stored.get("name") != plan.study.name:
        other = brief(str(stored.get("name")), 100)
        raise ClcaError(f"--out {folder}: holds the study {other}, not {plan.study.name}; choose another folder")
    content = {
        "format": FORMAT,
        "name": plan.study.name,
        "about": plan.study.about,
        "axes": {axis: [value.label for value in values] for axis, values in plan.study.axes.items()},
        "seeds": list(plan.study.seeds),
        "total": len(plan.runs),
        "planned": {axis: dict(counts) for axis, counts in plan.by_axis().items()},
        "split": plan.study.split,
        "study": plan.study.model_dump(mode="json"),
        "runs": {"unseen": plan.absent_names(), "digits": [run.name.rpartition("-")[2] for run in plan.runs]},
    }
    if content != stored:
        write_json(folder / STUDY, content)


@dataclass
class _Driver:
    """The state of one `run_study`."""

    plan: Plan
    out: Path
    executor: Executor
    retry_failed: bool
    threads: int | None
    work: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    known_failures: dict[str, int] = field(default_factory=dict)
    gone: dict[str, tuple[int, int]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    stop_signal: int = 0
    stopped_at: float | None = None
    table_at: float = field(default_factory=monotonic)
    table_takes: float = 0.0
    table_error_logged: bool = False

    def run(self, runs: list[PlannedRun], quiet: bool) -> StudyResult:
        result = StudyResult(self.out, len(runs))
        began = monotonic()
        self.display = StudyDisplay(self.plan.study.name, self.out, len(runs), quiet)
        known = states(self.out, [run.name for run in runs])
        waiting = [run for run in runs if self._is_pending(run, known[run.name], result)]
        if not waiting:
            self._write_table(force=True)
            return result
        with first_signal(self.ask_to_stop):
            try:
                self.executor.start()  # first: Ray may be missing, and drawing leaves takes minutes
                self.roots = draw_leaves(self.plan, self.out, waiting, self.display.log, progress=not quiet)
                self.display.begin(self.executor.describe(), result)
                if self._pretrain(result):
                    self._make_runs(waiting, result)
            finally:
                self.display.close()
                self.executor.close()
        self._write_table(force=True)
        result.interrupted, result.signal = bool(self.stop_signal), self.stop_signal
        result.seconds = monotonic() - began
        return result

    # -- preparation --------------------------------------------------------------------------------------------------

    def _is_pending(self, run: PlannedRun, state: str, result: StudyResult) -> bool:
        """Whether a run is still to be made; one that has ended is added to the result."""
        if state == "finished" and self._found_finished(run.name, result):
            return False
        if state == "failed":
            failure = read_failure(run_folder(self.out, run.name))
            if not self.retry_failed:
                self._record_failed(run.name, failure.error if failure else "", result, known=True)
                return False
            self.known_failures[run.name] = failure.attempt if failure else 1
        return True

    def _pretrain(self, result: StudyResult) -> bool:
        """Make the pretraining runs, if there are any. Returns whether the other runs can start."""
        for number, run in enumerate(self.plan.pretraining, 1):
            folder = run_folder(self.out, run.name)
            if state_of(folder) == "finished":
                continue
            self.display.log(
                f"pretraining the weights that all runs start from ({number} of {len(self.plan.pretraining)})"
            )
            if state_of(folder) == "failed":  # the other runs cannot start without it
                earlier = read_failure(folder)
                self.known_failures[run.name] = earlier.attempt if earlier else 1
            aside = StudyResult(self.out, 1)
            self._make_runs([run], aside)
            self.rows.pop(run.name, None)
            if aside.failed:
                failure = read_failure(folder)
                raise WorkError(
                    f"the pretraining failed, so nothing else can begin: {failure.error if failure else ''} "
                    f"(see {folder})"
                )
            result.full = aside.full
            if not aside.finished:
                return False
        return True

    def job(self, run: PlannedRun) -> Job:
        """The job that an executor gets for a run."""
        plan, config, first = self.plan, self.plan.config(run), self.plan.before(run)
        row = settings_row(
            run.name, run.id, plan.labels(run), set_name(config.data), plan.study.split, config, arm(config.model)
        )
        update: dict[str, Any] = {}
        root = self.roots.get(config.data.root)
        if root is not None:
            update["data"] = config.data.model_copy(update={"root": str(root), "source": None})
        if config.workers is None and self.threads is not None:
            update["workers"] = min(8, self.threads)  # by default, each run would use all cores
        if first is not None:
            update["weights"] = str(run_folder(self.out, first.name) / TRAINED / WEIGHTS)
        return Job(
            name=run.name,
            out=str(self.out),
            row=row,
            config=config.model_copy(update=update).model_dump(mode="json"),
            split=plan.study.split,
            keep="weights" if run in plan.pretraining and plan.study.keep == "none" else plan.study.keep,
            threads=self.threads,
            known_failures=self.known_failures.get(run.name, 0),
            gone=self.gone.pop(run.name, None),
            work=self.work,
        )

    # -- running ------------------------------------------------------------------------------------------------

    def _make_runs(self, runs: Sequence[PlannedRun], result: StudyResult) -> None:
        by_name = {run.name: run for run in runs}
        queue = deque(runs)
        elsewhere: dict[str, PlannedRun] = {}
        running: set[str] = set()
        checked = monotonic()
        while queue or running or elsewhere:
            if self.stop_signal and self._stop(running, result):
                return
            ending = self.stop_signal or result.full
            if ending and not running:
                return
            while queue and not ending and self.executor.free_slots() > 0:
                run = queue.popleft()
                if self._finished_elsewhere(run, result):
                    continue
                self.executor.submit(self.job(run))
                running.add(run.name)
                self.display.started(run.name)
            for outcome in self.executor.wait(0.2 if running else 1.0):
                running.discard(outcome.name)
                self.display.ended(outcome.name)
                self._handle(outcome, by_name[outcome.name], queue, elsewhere, result)
            if elsewhere and not ending and monotonic() - checked > _CHECK_ELSEWHERE_EVERY:
                checked = monotonic()
                self._check_elsewhere(elsewhere, queue, result)
            self.display.show(result, self.executor.most_at_once(), len(queue), len(elsewhere))
            self._write_table()

    def ask_to_stop(self, number: int) -> None:
        """Stop because of this signal, once the runs are saved."""
        self.stop_signal = number

    def _stop(self, running: set[str], result: StudyResult) -> bool:
        """Ask the runs to save their state. Returns whether they have had enough time."""
        if self.stopped_at is None:
            self.stopped_at = monotonic()
            if running:
                self.display.log(f"stopping: {len(running)} runs are saving their state (again to stop at once)")
            self.executor.stop()
        return monotonic() - self.stopped_at > _SECONDS_TO_SAVE

    def _finished_elsewhere(self, run: PlannedRun, result: StudyResult) -> bool:
        """Whether another driver has finished a run since the last check."""
        return state_of(run_folder(self.out, run.name)) == "finished" and self._found_finished(run.name, result)

    def _found_finished(self, name: str, result: StudyResult) -> bool:
        """Whether a run has a readable result; one with a damaged result is made again."""
        row = row_of(self.out, name)
        if row["state"] == "finished":
            self._record_finished(name, row, result, here=False)
        return bool(row["state"] == "finished")

    def _handle(
        self,
        outcome: Outcome,
        run: PlannedRun,
        queue: deque[PlannedRun],
        elsewhere: dict[str, PlannedRun],
        result: StudyResult,
    ) -> None:
        """Record the outcome of a run, or queue the run again."""
        if outcome.kind == "finished" and outcome.row is not None:
            self._record_finished(run.name, outcome.row, result, here=outcome.here)
        elif outcome.kind == "failed":
            self._record_failed(run.name, outcome.detail, result)
        elif outcome.kind == "taken":
            elsewhere[run.name] = run
        elif outcome.kind == "no space":
            result.full = outcome.detail
        elif outcome.kind in ("lost", "interrupted"):
            if isinstance(self.executor, InThisProcess):
                self.stop_signal = self.stop_signal or signal.SIGINT
            if self.stop_signal:
                return
            self.lost[run.name] = self.lost.get(run.name, 0) + 1
            if outcome.kind == "lost" and self.lost[run.name] >= MOST_LOST:
                line = f"{outcome.detail}; tried {self.lost[run.name]} times"
                self._mark_failed(run, line)
                self._record_failed(run.name, line, result)
            else:
                self.display.log(f"{run.name}: {outcome.detail or 'interrupted'}; it will be resumed")
                queue.appendleft(run)

    def _mark_failed(self, run: PlannedRun, line: str) -> None:
        job = self.job(run)
        description = {"format": "clca-study-run-1", "row": job.row, "train": job.config}
        folder = make_run_folder(self.out, run.name, description)
        if holder(folder, self.watch) is None:
            write_failure(folder, line, "", self.known_failures.get(run.name, 0) + 1)

    def _check_elsewhere(self, elsewhere: dict[str, PlannedRun], queue: deque[PlannedRun], result: StudyResult) -> None:
        """Record runs that other drivers have ended, and queue those that no driver makes any more."""
        for name, run in list(elsewhere.items()):
            folder = run_folder(self.out, name)
            failure = read_failure(folder)
            if (folder / RESULT).exists() and self._found_finished(name, result):
                pass
            elif failure is not None and failure.attempt > self.known_failures.get(name, 0):
                self._record_failed(name, failure.error, result)
            elif (seen := self.watch.gone(folder)) is not None or holder(folder, self.watch) is None:
                if seen is not None:
                    self.gone[name] = seen
                queue.append(run)
            else:
                continue
            del elsewhere[name]

    # -- results --------------------------------------------------------------------------------------------

    def _record_finished(self, name: str, row: dict[str, Any], result: StudyResult, here: bool) -> None:
        result.finished += 1
        result.made += here
        self.rows[name] = row
        self.display.finished(row)

    def _record_failed(self, name: str, line: str, result: StudyResult, known: bool = False) -> None:
        result.failed += 1
        self.rows[name] = row_of(self.out, name)
        if not known:
            self.display.log(f"failed: {name}: {line}")

    def _write_table(self, force: bool = False) -> None:
        """Write results.parquet from time to time. It is only a copy, so an error is logged once and not raised."""
        if not force and monotonic() - self.table_at < max(_TABLE_EVERY, 50 * self.table_takes):
            return
        if not self.rows and not (self.out / TABLE).exists():
            return
        began = monotonic()
        try:
            write_table(self.out, table_rows(self.out, self.rows))
        except (ClcaError, WorkError) as error:
            if not self.table_error_logged:
                self.display.log(str(error))
            self.table_error_logged = True
        self.table_at = monotonic()
        self.table_takes = self.table_at - began
