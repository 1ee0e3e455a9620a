"""Measures the overhead of a study: planning, and the time of the driver per run, with runs that do nothing.

    python benchmarks/study_overhead.py                         # 1,000 empty runs each way, 103,680 planned
    python benchmarks/study_overhead.py --executors ray --runs 200

Prints a table and writes study_overhead.json to the current folder. Every part runs in a separate process, whose peak
memory is reported. Seconds per run are the time from the first run to the last divided by the number of runs, without
the start and end of the executor, which are reported separately.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

EXECUTORS = ("here", "processes", "ray")
MOST = 0.3  # seconds per run allowed for the driver


@dataclass
class Settings:
    """Parts to measure."""

    runs: int = 1000
    """Number of empty runs per executor."""
    executors: list[str] = field(default_factory=lambda: list(EXECUTORS))
    """Executors: here, processes (two), ray (started here, two workers)."""
    out: Path = Path("study_overhead.json")
    part: str = ""
    """Measure one part in this process; the script calls itself with this option."""


def nothing(job: Any, folder: Path) -> dict[str, Any]:
    """An empty run."""
    return {"top1": 0.0}


def planning() -> dict[str, Any]:
    """Time planning the paper's grid with eight seeds, and adding up its multiply-accumulates."""
    began = monotonic()
    from clca.study.plan.config import StudyConfig, read_study
    from clca.study.plan.expand import plan
    from clca.study.plan.overview import add_costs, overview

    study = StudyConfig.model_validate({**read_study("paper").model_dump(), "seeds": 8})
    planned = plan(study, "no-such-folder")
    found = overview(planned, planned.runs, Path("no-such-folder"))
    add_costs(found, rate=1000.0)
    assert found.gmacs
    return {"runs": len(planned.runs), "seconds": monotonic() - began}


def running(executor: str, count: int) -> dict[str, Any]:
    """Time empty runs."""
    from clca.study.plan.config import StudyConfig
    from clca.study.plan.expand import plan
    from clca.study.run.driver import run_study
    from clca.study.run.executors import Executor, InThisProcess, LocalProcesses
    from clca.study.run.ray_executor import OnRay

    base = {"model": "vit_tiny_patch16_224", "data": "leaves:cultivars=2,images=5,size=16", "reduction": "evit"}
    study = StudyConfig.model_validate({"name": "empty", "base": base, "axes": {"keep_rate": [0.5]}, "seeds": count})
    made: Executor = {"here": InThisProcess, "processes": lambda: LocalProcesses(2), "ray": lambda: OnRay(cpus=0.5)}[
        executor
    ]()
    times: dict[str, float] = {}
    start, close = made.start, made.close

    def started() -> None:
        times["began"] = monotonic()
        start()
        times["started"] = monotonic()

    def closed() -> None:
        times["ended"] = monotonic()
        close()

    made.start, made.close = started, closed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        result = run_study(plan(study), folder, made, work="study_overhead:nothing", quiet=True)
    assert result.complete, result
    return {
        "runs": count,
        "start_seconds": times["started"] - times["began"],
        "seconds": times["ended"] - times["started"],
        "seconds_a_run": (times["ended"] - times["started"]) / count,
    }


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    if settings.part:
        found = planning() if settings.part == "planning" else running(settings.part, settings.runs)
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    here = Path(__file__).resolve()
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    parts = {}
    for part in ("planning", *settings.executors):
        command = [sys.executable, str(here), "--part", part, "--runs", str(settings.runs)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        parts[part] = json.loads(done.stdout.splitlines()[-1])
    table = Table(title="a study beyond its runs")
    for name in ("part", "runs", "seconds", "ms a run", "start", "peak memory of the process"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part, found in parts.items():
        each = f"{1000 * found['seconds'] / found['runs']:.3g}"
        start = f"{found['start_seconds']:.1f} s" if "start_seconds" in found else ""
        table.add_row(
            part, f"{found['runs']:,}", f"{found['seconds']:.2f}", each, start, f"{found['peak_mib']:.0f} MiB"
        )
    Console().print(table)
    from clca.system.timing import machine

    settings.out.write_text(json.dumps({"machine": machine(), "parts": parts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
