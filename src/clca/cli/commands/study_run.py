"""`clca study run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from clca.cli.commands.study_choice import chosen_runs
from clca.cli.parsing import parse
from clca.errors import ClcaError


def run(argv: Sequence[str]) -> int:
    import tyro

    def study_run(
        study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")],
        /,
        *,
        data_folder: str | None = None,
        out: str | None = None,
        only: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="AXIS=VALUES")] = (),
        shard: str = "",
        jobs: int | None = None,
        gpus: tuple[str, ...] = (),
        ray: tyro.conf.FlagCreatePairsOff[bool] = False,
        ray_address: str | None = None,
        cpus_per_run: float | None = None,
        gpus_per_run: float = 0,
        retry_failed: tyro.conf.FlagCreatePairsOff[bool] = False,
    ) -> dict[str, Any]:
        """Make the runs of a study that are not made yet.

        It can be stopped at any time, by Ctrl-C or by a dying machine: the same command goes on. What is finished is
        never made again. Several of these may work on one folder at once, on one machine or on many.

        Examples:
          clca study run leaves-mini --jobs 2
          clca study run paper --data-folder ~/ultra-fgvc --jobs 8 --gpus 0 1 2 3
          clca study run paper --data-folder /all/ultra-fgvc --out /all/paper --ray-address auto --gpus-per-run 0.5
          clca study run paper --data-folder /all/ultra-fgvc --out /all/paper --shard $SLURM_ARRAY_TASK_ID/20

        Args:
            study: A YAML or Python file, or the name of a shipped study: paper, ablation, leaves-mini.
            data_folder: Folder that relative data folders of the study are below.
            out: The study's folder; on a cluster, one that all nodes see. If omitted: runs/ and its name.
            only: Make these values of an axis only, as in arm=base,clca; may be given several times.
            shard: Make one part of so many, as in 3/20, for a job array.
            jobs: Runs at once, each in a process of its own. If omitted: one run at a time, in this process.
            gpus: GPUs that the processes of --jobs share. If omitted: all see the same.
            ray: Make the runs through Ray on this machine.
            ray_address: Make them on this Ray cluster; auto is the one that runs here.
            cpus_per_run: CPU cores a run. If omitted: with --jobs an even share, with Ray 1.
            gpus_per_run: GPUs a run on Ray; 0.25 lets four runs share one.
            retry_failed: Try once more what failed.
        """
        return dict(locals())

    chosen = parse(study_run, "clca study run", argv)
    from clca.study.plan.config import read_study
    from clca.study.plan.expand import plan as expand
    from clca.study.run.driver import run_study

    _refuse_both(chosen)
    planned = expand(read_study(chosen["study"]), chosen["data_folder"])
    runs = chosen_runs(planned, chosen["only"], chosen["shard"])
    executor, threads = _executor(chosen)
    out = chosen["out"] if chosen["out"] is not None else Path("runs") / planned.study.name
    result = run_study(planned, out, executor, runs=runs, retry_failed=chosen["retry_failed"], threads=threads)
    failed = f", {result.failed} failed (clca study status {out} says why)" if result.failed else ""
    print(f"{result.finished} of {result.total} runs are finished, {result.made} of them now{failed}; folder {out}")
    if result.interrupted:
        stop = KeyboardInterrupt("stopped; what ran is saved, and the same command goes on")
        stop.signal = result.signal  # type: ignore[attr-defined]
        raise stop
    if result.full:
        from clca.errors import WorkError

        raise WorkError(f"no room on the disk ({result.full}); make room, and the same command goes on")
    if result.complete:
        print(f"next: clca report {out}")
    return 0 if result.complete else 1


def _refuse_both(chosen: dict[str, Any]) -> None:
    on_ray = chosen["ray"] or chosen["ray_address"] is not None
    if on_ray and chosen["jobs"] is not None:
        raise ClcaError("--jobs and --ray: choose one; with Ray, --cpus-per-run says how many runs fit")
    if chosen["gpus_per_run"] and not on_ray:
        raise ClcaError("--gpus-per-run is for --ray and --ray-address; with --jobs, name the GPUs: --gpus 0 1")
    if chosen["gpus"] and chosen["jobs"] is None:
        raise ClcaError("--gpus is for --jobs, which says how many runs share them")
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
