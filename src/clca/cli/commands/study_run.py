"""`clca study run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from clca.cli.arguments import Arguments, Spelling, Switch
from clca.cli.commands.study_choice import chosen_runs
from clca.cli.parsing import parse
from clca.errors import ClcaError


class RunStudy(Arguments):
    """Run a study: every run of it that is not finished.

    It can be stopped at any time, by Ctrl-C or by a crash: the same command continues. Finished runs are not repeated.
    Several of these commands may work on one folder at once, on one machine or on many.

    Examples:
      clca study run leaves-mini --jobs 2
      clca study run paper --data-folder ~/ultra-fgvc --jobs 8 --gpus 0 1 2 3
      clca study run paper --data-folder /all/ultra-fgvc --out /all/paper --ray-address auto --gpus-per-run 0.5
      clca study run paper --data-folder /all/ultra-fgvc --out /all/paper --shard $SLURM_ARRAY_TASK_ID/20
    """

    study: Annotated[str, Spelling("STUDY", positional=True)] = Field(
        description="A YAML or Python file, or the name of a shipped study: paper, ablation, leaves-mini, real-leaves."
    )
    data_folder: str | None = Field(None, description="Folder that the study's relative data folders start from.")
    out: str | None = Field(
        None, description="The study's folder; on a cluster, one that all nodes see. If omitted: runs/ and its name."
    )
    only: Annotated[tuple[str, ...], Spelling(repeated=True)] = Field(
        (), description="Run only these values of an axis, as in arm=base,clca; may be given several times."
    )
    shard: str = Field("", description="Run one part of the study, as in 3/20, for a job array.")
    jobs: int | None = Field(
        None, description="Runs at once, each in its own process. If omitted: one run at a time, in this process."
    )
    gpus: tuple[str, ...] = Field(
        (), description="GPUs that the processes of `jobs` share. If omitted: all see the same GPUs."
    )
    ray: Switch = Field(False, description="Run through Ray on this machine.")
    ray_address: str | None = Field(
        None, description="Run on this Ray cluster; auto is the one that this machine belongs to."
    )
    cpus_per_run: float | None = Field(
        None, description="CPU cores per run. If omitted: with `jobs` an even share, with Ray 1."
    )
    gpus_per_run: float = Field(0, description="GPUs per run on Ray; 0.25 lets four runs share one.")
    retry_failed: Switch = Field(False, description="Retry the runs that failed.")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(RunStudy, "clca study run", argv))
    from clca.study.plan.config import read_study
    from clca.study.plan.expand import plan as expand
    from clca.study.run.driver import run_study

    _refuse_both(chosen)
    planned = expand(read_study(chosen["study"]), chosen["data_folder"])
    runs = chosen_runs(planned, chosen["only"], chosen["shard"])
    executor, threads = _executor(chosen)
    out = chosen["out"] if chosen["out"] is not None else Path("runs") / planned.study.name
    result = run_study(planned, out, executor, runs=runs, retry_failed=chosen["retry_failed"], threads=threads)
    failed = f", {result.failed} failed (see clca study status {out})" if result.failed else ""
    print(f"{result.finished} of {result.total} runs are finished, {result.made} of them now{failed}; folder {out}")
    if result.interrupted:
        stop = KeyboardInterrupt("stopped; progress is saved, and the same command continues")
        stop.signal = result.signal  # type: ignore[attr-defined]
        raise stop
    if result.full:
        from clca.errors import WorkError

        raise WorkError(f"no space left on the disk ({result.full}); free some, and the same command continues")
    if result.complete:
        print(f"next: clca report {out}")
    return 0 if result.complete else 1


def _refuse_both(chosen: dict[str, Any]) -> None:
    on_ray = chosen["ray"] or chosen["ray_address"] is not None
    if on_ray and chosen["jobs"] is not None:
        raise ClcaError("--jobs and --ray: choose one; with Ray, --cpus-per-run limits how many runs fit")
    if chosen["gpus_per_run"] and not on_ray:
        raise ClcaError("--gpus-per-run is for --ray and --ray-address; with --jobs, name the GPUs: --gpus 0 1")
    if chosen["gpus"] and chosen["jobs"] is None:
        raise ClcaError("--gpus is for --jobs, the number of runs that share them")
    if chosen["jobs"] is not None and chosen["jobs"] < 1:
        raise ClcaError(f"--jobs {chosen['jobs']}: at least one")
    for name in ("cpus_per_run", "gpus_per_run"):
        if chosen[name] is not None and chosen[name] < 0:
            raise ClcaError(f"--{name.replace('_', '-')} {chosen[name]:g}: cannot be negative")


def _executor(chosen: dict[str, Any]) -> tuple[Any, int | None]:
    """Where the runs are made, and with how many CPU threads each."""
    cpus = chosen["cpus_per_run"]
    if chosen["ray"] or chosen["ray_address"] is not None:
        from clca.study.run.ray_executor import OnRay

        cpus = 1.0 if cpus is None else cpus
        return OnRay(chosen["ray_address"], cpus, chosen["gpus_per_run"]), max(1, int(cpus))
    if chosen["jobs"] is not None:
        from clca.study.run.executors import LocalProcesses
        from clca.system.processes import usable_cores

        share = max(1, usable_cores() // chosen["jobs"])
        return LocalProcesses(chosen["jobs"], chosen["gpus"]), share if cpus is None else max(1, int(cpus))
    from clca.study.run.executors import InThisProcess

    return InThisProcess(), None if cpus is None else max(1, int(cpus))
