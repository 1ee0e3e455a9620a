"""Status of a study, from its folder alone."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from clca.study.results.folder import FAILURE, LOG, TRAINED, begun_runs, left_out, of_study, read_study_file, run_folder
from clca.study.results.table import row_of
from clca.study.run.claim import Holder, holder
from clca.study.run.display import last_step
from clca.system.paths import shown
from clca.system.tables import Column, Table, words
from clca.training.progress import duration
from clca.training.run_folder import METRICS

_MOST_RUNNING = 20
_MOST_FAILURES = 10


@dataclass
class Status:
    """The status of a study, as `clca study status` prints it.

    Attributes:
        out: The study's folder.
        study: The content of its study.json.
        rows: A row for each of its runs that has begun.
        running: The owner of each run that is in progress, by name.
        others: Number of runs in the folder that are no longer part of the study.
    """

    out: Path
    study: dict[str, Any]
    rows: list[dict[str, Any]]
    running: dict[str, Holder] = field(default_factory=dict)
    others: int = 0

    @property
    def counts(self) -> Counter[str]:
        """Runs by state: finished, failed, running, interrupted, not begun."""
        counts = Counter("running" if row["name"] in self.running else row["state"] for row in self.rows)
        counts["not begun"] = max(0, self.study["total"] - len(self.rows))
        return counts

    def render(self, console: Console, every_failure: bool = False) -> None:
        """Print the status, with all failed runs or one for each error."""
        counts, total = self.counts, self.study["total"]
        by_state = ", ".join(f"{counts[name]:,} {name}" for name in _STATES if counts[name])
        console.print(f"{shown(self.study['name'])}: {total:,} runs: {by_state}", highlight=False, markup=False)
        if self.others:
            console.print(left_out(self.others), highlight=False, markup=False)
        self._by_axis().render(console)
        self._render_running(console)
        self._render_failures(console, every_failure)
        best = max((row for row in self.rows if row.get("top1") is not None), key=lambda r: r["top1"], default=None)
        if best is not None:
            console.print(f"best so far: {best['top1']:.1%}, {shown(best['name'])}", highlight=False, markup=False)

    def _by_axis(self) -> Table:
        rows, sections = list[list[str]](), list[int]()
        by_value: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            for axis in self.study["axes"]:
                by_value[axis, str(row.get(f"axis.{axis}"))][row["state"]] += 1
        planned = self.study.get("planned", {})
        for axis, labels in self.study["axes"].items():
            if len(labels) < 2:
                continue
            for number, label in enumerate(labels):
                counts = by_value[axis, label]
                count = planned.get(axis, {}).get(label)
                failed = f"{counts['failed']:,}" if counts["failed"] else ""
                total = f"{count:,}" if count is not None else ""
                rows.append([axis if number == 0 else "", label, f"{counts['finished']:,}", failed, total])
            sections.append(len(rows) - 1)
        columns = [words("axis"), words("value"), *map(Column, ("finished", "failed", "planned"))]
        return Table(columns, rows, sections=sections)

    def _render_running(self, console: Console) -> None:
        if not self.running:
            return
        rows = []
        for name, owner in list(self.running.items())[:_MOST_RUNNING]:
            epoch, loss = last_step(run_folder(self.out, name) / TRAINED / METRICS)
            since = duration(max(0.0, time.time() - owner.since))
            rows.append([name, owner.host, str(owner.pid), since, epoch, loss])
        columns = [words("run"), *map(Column, ("on", "process", "for", "epoch", "loss"))]
        Table(columns, rows, title="running").render(console)
        if len(self.running) > _MOST_RUNNING:
            console.print(f"and {len(self.running) - _MOST_RUNNING} more")

    def _render_failures(self, console: Console, every: bool) -> None:
        failures: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            if row["state"] == "failed":
                failures[str(row.get("error"))].append(row["name"])
        listed = sorted(failures.items(), key=lambda item: -len(item[1]))
        for error, names in listed if every else listed[:_MOST_FAILURES]:
            console.print(f"failed {len(names)} times: {shown(error)}", style="bold", markup=False, highlight=False)
            for name in names if every else names[:1]:
                folder = run_folder(self.out, name)
                console.print(
                    f"  {shown(folder / FAILURE)} and {LOG} beside it", markup=False, highlight=False, soft_wrap=True
                )
        if failures:
            console.print("clca study run … --retry-failed tries them again")


_STATES = ("finished", "running", "interrupted", "failed", "not begun")


def study_status(out: Path) -> Status:
    """Read the status of the study in a folder.

    Raises:
        ClcaError: The folder holds no study.
    """
    study = read_study_file(out)
    begun = [row_of(out, name) for name in sorted(begun_runs(out))]
    rows = list(filter(of_study(study), begun))
    running = {}
    for row in rows:
        if row["state"] == "interrupted":
            owner = holder(run_folder(out, row["name"]))
            if owner is not None:
                running[row["name"]] = owner
    return Status(out, study, rows, running, len(begun) - len(rows))
