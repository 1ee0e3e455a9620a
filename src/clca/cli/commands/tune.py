"""`clca tune`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from clca.cli.parsing import parse
from clca.errors import ClcaError


def run(argv: Sequence[str]) -> int:
    import tyro

    def tune(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …", help_behavior_hint="")],
        *,
        latency_ms: float | None = None,
        gmacs: float | None = None,
        images_per_second: float | None = None,
        data: str | None = None,
        keep_rates: tuple[float, ...] = (),
        img_sizes: tuple[int, ...] = (),
        batch_size: int = 1,
        workers: int | None = None,
        threads: int | None = None,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
        out: str | None = None,
    ) -> dict[str, Any]:
        """Name the most accurate run and keep rate within a budget, measured on this machine.

        Give one budget. Accuracy is that on the validation images; where two cannot be told apart by its standard
        error, the cheaper is named. The keep rate is changed at run time, nothing is trained. Several runs (other
        reductions, other sizes) are compared with each other.

        Examples:
          clca tune runs/first --latency-ms 40
          clca tune runs/evit runs/topk runs/evit448 --gmacs 5
          clca tune runs/first --images-per-second 30 --batch-size 8 --keep-rates 0.5 0.25 0.1

        Args:
            runs: Run folders, or saved models' folders or hub ids, all of the same classes.
            latency_ms: Budget: at most this many milliseconds a batch, in the median.
            gmacs: Budget: at most this many GMACs an image.
            images_per_second: Budget: at least this many images a second.
            data: Other images than the first run's own, of the same classes.
            keep_rates: Shares of tokens to try beside the runs' own. If omitted: 1 0.9 0.7 0.5 0.35 0.25 0.15 0.1.
            img_sizes: Sizes in pixels to try beside the runs' own, without training.
            batch_size: Images at once when latency is measured.
            workers: Processes that read images. If omitted: one a core, at most 8.
            threads: Of the CPU. If omitted: as many as torch takes.
            device: auto takes the GPU if there is one.
            precision: auto takes bf16 where the device computes it fast.
            out: Folder for tune.json, tune.csv and frontier.png. If omitted: RUN/tune of the first run.
        """
        return dict(locals())

    chosen = parse(tune, "clca tune", argv)
    names = ("latency_ms", "gmacs", "images_per_second")
    given = {name: value for name in names if (value := chosen.pop(name)) is not None}
    if len(given) != 1:
        flags = "--latency-ms, --gmacs or --images-per-second"
        raise ClcaError(f"give one budget, not {len(given)}: {flags}")
    runs, out = chosen.pop("runs"), chosen.pop("out")
    if not runs:
        raise ClcaError("no run to tune: name at least one run folder, as clca train leaves it")
    folder = Path(out) if out is not None else Path(runs[0]) / "tune"
    from rich.console import Console

    from clca.system.files import make_writable
    from clca.tune import KEEP_RATES, Budget, Measure
    from clca.tune import tune as measure

    if out is None and not Path(runs[0]).is_dir():
        raise ClcaError(f"{runs[0]} is no folder here: name one for the results with --out")
    name, value = next(iter(given.items()))
    rates = chosen.pop("keep_rates") or KEEP_RATES
    if out is not None:
        make_writable(folder)
    result = measure(runs, Budget(cast(Measure, name), value), keep_rates=rates, **chosen)
    result.render(Console())
    print(f"written to {folder}: {', '.join(path.name for path in result.write(folder))}")
    if result.chosen is None:
        raise ClcaError(result.advice())
    return 0
