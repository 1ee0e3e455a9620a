"""Making a study's runs: who gets which when, and what becomes of those that fail, are lost or are made elsewhere."""

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
    remove_remains,
    run_folder,
    state_of,
    states,
    study_content,
)
from clca.study.results.record import settings_row
from clca.study.results.table import row_of, table_rows, write_table
from clca.study.run.claim import Watch, holder
from clca.study.run.display import Live
from clca.study.run.executors import Executor, InThisProcess
from clca.study.run.job import TRAIN_AND_EVALUATE, Job, Outcome, write_failure
from clca.study.run.leaves import drawn
from clca.study.run.result import StudyResult
from clca.system.files import make_writable, write_json
from clca.system.paths import expanded
from clca.system.signals import first_signal
from clca.training.run_folder import WEIGHTS

MOST_LOST = 3
"""A run whose process died so often is not tried again: it may be what kills it."""

_LOOK_ELSEWHERE = 5.0  # seconds between two looks at runs that other drivers make
_TABLE_EVERY = 60.0  # seconds, or more if writing it takes long
_TO_SAVE = 120.0  # seconds that runs have to save themselves after Ctrl-C


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
    """Make the runs of a study that are not made yet, and keep the table.

    Any number of processes may do this on one folder at once, on any machines that share it. An interrupted run goes on
    where it stopped.

    Args:
        plan: The study's plan.
        out: The folder; runs/<name> if omitted.
        executor: Where; this process if omitted.
        runs: Only these of the plan.
        retry_failed: Try failed runs once more.
        threads: CPU threads a run; None for torch's choice.
        work: What makes a run, as module:function (see `work.Job`).
        quiet: Show no progress and log none.

    Raises:
        ClcaError: The images are not there, the folder cannot be used, or the executor cannot be started.
        WorkError: The pretraining failed.
    """
    runs = list(plan.runs if runs is None else runs)
    if absent := plan.absent_among(runs):
        raise ClcaError(f"{plan.study.name}: no such images: {', '.join(absent)} (see --data-folder)")
    folder = expanded(out if out is not None else Path("runs") / plan.study.name).resolve()
    make_writable(folder / RUNS)
    remove_remains(folder)
    describe_study(plan, folder)
    driver = _Driver(plan, folder, executor or InThisProcess(), retry_failed, threads, work)
    return driver.run(runs, quiet)


def describe_study(plan: Plan, folder: Path) -> None:
    """Write study.json.

    Raises:
        ClcaError: The folder holds another study.
    """
    there = study_content(folder)
    if there is not None and there.get("name") != plan.study.name:
        other = brief(str(there.get("name")), 100)
        raise ClcaError(f"--out {folder}: holds the study {other}, not {plan.study.name}; choose another")
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
    if content != there:
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
    forgiven: dict[str, int] = field(default_factory=dict)
    gone: dict[str, tuple[int, int]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    stop_signal: int = 0
    stopped_at: float | None = None
    table_at: float = field(default_factory=monotonic)
    table_takes: float = 0.0
    table_told: bool = False

    def run(self, runs: list[PlannedRun], quiet: bool) -> StudyResult:
        result = StudyResult(self.out, len(runs))
        began = monotonic()
        self.live = Live(self.plan.study.name, self.out, len(runs), quiet)
        known = states(self.out, [run.name for run in runs])
        waiting = [run for run in runs if self._still_to_do(run, known[run.name], result)]
        if not waiting:
            self._write_table(force=True)
            return result
        with first_signal(self.ask_to_stop):
            try:
                self.executor.start()  # first, for Ray may be missing and drawing leaves takes minutes
                self.roots = drawn(self.plan, self.out, waiting, self.live.log, progress=not quiet)
                self.live.begin(self.executor.describe(), result)
                if self._pretrained(result):
                    self._drive(waiting, result)
            finally:
                self.live.close()
                self.executor.close()
        self._write_table(force=True)
        result.interrupted, result.signal = bool(self.stop_signal), self.stop_signal
        result.seconds = monotonic() - began
        return result

    # -- before --------------------------------------------------------------------------------------------------

    def _still_to_do(self, run: PlannedRun, state: str, result: StudyResult) -> bool:
        """Whether a run is to be made; one that is ended goes into the result."""
        if state == "finished" and self._found_finished(run.name, result):
            return False
        if state == "failed":
            failure = read_failure(run_folder(self.out, run.name))
            if not self.retry_failed:
                self._note_failed(run.name, failure.error if failure else "", result, known=True)
                return False
            self.forgiven[run.name] = failure.attempt if failure else 1
        return True

    def _pretrained(self, result: StudyResult) -> bool:
        """Make the runs that go first, if there are any; whether the others can begin."""
        for number, run in enumerate(self.plan.pretraining, 1):
            folder = run_folder(self.out, run.name)
            if state_of(folder) == "finished":
                continue
            self.live.log(
                f"pretraining the weights that all runs start from ({number} of {len(self.plan.pretraining)})"
            )
            if state_of(folder) == "failed":  # nothing else can be done without it
                earlier = read_failure(folder)
                self.forgiven[run.name] = earlier.attempt if earlier else 1
            aside = StudyResult(self.out, 1)
            self._drive([run], aside)
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
        """A run as it is given to an executor."""
        plan, config, first = self.plan, self.plan.config(run), self.plan.before(run)
        row = settings_row(
            run.name, run.id, plan.labels(run), set_name(config.data), plan.study.split, config, arm(config.model)
        )
        update: dict[str, Any] = {}
        root = self.roots.get(config.data.root)
        if root is not None:
            update["data"] = config.data.model_copy(update={"root": str(root), "source": None})
        if config.workers is None and self.threads is not None:
            update["workers"] = min(8, self.threads)  # else each of many runs would take the whole machine's
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
            forgiven=self.forgiven.get(run.name, 0),
            gone=self.gone.pop(run.name, None),
            work=self.work,
        )

    # -- the work ------------------------------------------------------------------------------------------------

    def _drive(self, runs: Sequence[PlannedRun], result: StudyResult) -> None:
        by_name = {run.name: run for run in runs}
        queue = deque(runs)
        elsewhere: dict[str, PlannedRun] = {}
        at_work: set[str] = set()
        looked = monotonic()
        while queue or at_work or elsewhere:
            if self.stop_signal and self._stop(at_work, result):
                return
            ending = self.stop_signal or result.full
            if ending and not at_work:
                return
            while queue and not ending and self.executor.room() > 0:
                run = queue.popleft()
                if self._ended_meanwhile(run, result):
                    continue
                self.executor.submit(self.job(run))
                at_work.add(run.name)
                self.live.started(run.name)
            for outcome in self.executor.wait(0.2 if at_work else 1.0):
                at_work.discard(outcome.name)
                self.live.ended(outcome.name)
                self._take(outcome, by_name[outcome.name], queue, elsewhere, result)
            if elsewhere and not ending and monotonic() - looked > _LOOK_ELSEWHERE:
                looked = monotonic()
                self._look_elsewhere(elsewhere, queue, result)
            self.live.show(result, self.executor.at_once(), len(queue), len(elsewhere))
            self._write_table()

    def ask_to_stop(self, number: int) -> None:
        """End once the runs are saved, because of this signal."""
        self.stop_signal = number

    def _stop(self, at_work: set[str], result: StudyResult) -> bool:
        """Ask the runs to save themselves; whether it is time to wait no longer."""
        if self.stopped_at is None:
            self.stopped_at = monotonic()
            if at_work:
                self.live.log(f"stopping: {len(at_work)} runs save where they are (again to stop at once)")
            self.executor.stop()
        return monotonic() - self.stopped_at > _TO_SAVE

    def _ended_meanwhile(self, run: PlannedRun, result: StudyResult) -> bool:
        """Whether another driver has finished a run since we looked."""
        return state_of(run_folder(self.out, run.name)) == "finished" and self._found_finished(run.name, result)

    def _found_finished(self, name: str, result: StudyResult) -> bool:
        """Whether the result of a run is there and whole; one that is damaged is made again."""
        row = row_of(self.out, name)
        if row["state"] == "finished":
            self._note_finished(name, row, result, here=False)
        return bool(row["state"] == "finished")

    def _take(
        self,
        outcome: Outcome,
        run: PlannedRun,
        queue: deque[PlannedRun],
        elsewhere: dict[str, PlannedRun],
        result: StudyResult,
    ) -> None:
        """Do what follows from the outcome of a run."""
        if outcome.kind == "finished" and outcome.row is not None:
            self._note_finished(run.name, outcome.row, result, here=outcome.here)
        elif outcome.kind == "failed":
            self._note_failed(run.name, outcome.detail, result)
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
                self._note_failed(run.name, line, result)
            else:
                self.live.log(f"{run.name}: {outcome.detail or 'interrupted'}; it goes on elsewhere")
                queue.appendleft(run)

    def _mark_failed(self, run: PlannedRun, line: str) -> None:
        job = self.job(run)
        description = {"format": "clca-study-run-1", "row": job.row, "train": job.config}
        folder = make_run_folder(self.out, run.name, description)
        if holder(folder, self.watch) is None:
            write_failure(folder, line, "", self.forgiven.get(run.name, 0) + 1)

    def _look_elsewhere(self, elsewhere: dict[str, PlannedRun], queue: deque[PlannedRun], result: StudyResult) -> None:
        """What has become of the runs that other drivers make; those that nobody makes any more come back to us."""
        for name, run in list(elsewhere.items()):
            folder = run_folder(self.out, name)
            failure = read_failure(folder)
            if (folder / RESULT).exists() and self._found_finished(name, result):
                pass
            elif failure is not None and failure.attempt > self.forgiven.get(name, 0):
                self._note_failed(name, failure.error, result)
            elif (seen := self.watch.gone(folder)) is not None or holder(folder, self.watch) is None:
                if seen is not None:
                    self.gone[name] = seen
                queue.append(run)
            else:
                continue
            del elsewhere[name]

    # -- what is kept --------------------------------------------------------------------------------------------

    def _note_finished(self, name: str, row: dict[str, Any], result: StudyResult, here: bool) -> None:
        result.finished += 1
        result.made += here
        self.rows[name] = row
        self.live.finished(row)

    def _note_failed(self, name: str, line: str, result: StudyResult, known: bool = False) -> None:
        result.failed += 1
        self.rows[name] = row_of(self.out, name)
        if not known:
            self.live.log(f"failed: {name}: {line}")

    def _write_table(self, force: bool = False) -> None:
        """Write results.parquet now and then; it is a copy, so that it cannot be written is told once and no more."""
        if not force and monotonic() - self.table_at < max(_TABLE_EVERY, 50 * self.table_takes):
            return
        if not self.rows and not (self.out / TABLE).exists():
            return
        began = monotonic()
        try:
            write_table(self.out, table_rows(self.out, self.rows))
        except (ClcaError, WorkError) as error:
            if not self.table_told:
                self.live.log(str(error))
            self.table_told = True
        self.table_at = monotonic()
        self.table_takes = self.table_at - began
