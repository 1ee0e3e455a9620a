"""`clca tune`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field

from clca.cli.arguments import Arguments, Device, Precision, Spelling, Threads, Workers
from clca.cli.messages import print_at_once
from clca.cli.parsing import parse
from clca.errors import ClcaError
from clca.models.config import Rate


class Tune(Arguments):
    """Find the most accurate run and keep rate within a budget, measured on this machine.

    Give one budget. Accuracy is measured on the validation images; of two that differ by less than its standard error,
    the cheaper is chosen. The keep rate is changed at run time, nothing is trained. Several runs (other reductions,
    other sizes) are compared with each other.

    Examples:
      clca tune runs/first --latency-ms 40
      clca tune runs/evit runs/topk runs/evit448 --gmacs 5
      clca tune runs/first --images-per-second 30 --batch-size 8 --keep-rates 0.5 0.25 0.1
    """

    runs: Annotated[tuple[str, ...], Spelling("RUN", positional=True)] = Field(
        description="Run folders, saved models' folders or hub ids, all with the same classes."
    )
    latency_ms: float | None = Field(
        None, description="Budget: at most this many milliseconds per batch, in the median."
    )
    gmacs: float | None = Field(None, description="Budget: at most this many GMACs per image.")
    images_per_second: float | None = Field(None, description="Budget: at least this many images per second.")
    data: str | None = Field(
        None,
        description="Images to evaluate on instead of the first run's own; of one or more of its classes. Of images "
        "without splits, all are used.",
    )
    keep_rates: tuple[Rate, ...] = Field(
        (),
        description="Shares of tokens to try beside the runs' own. If omitted: those that a run was trained for, or 1 "
        "0.9 0.7 0.5 0.35 0.25 0.15 0.1 if it was trained for one.",
    )
    img_sizes: tuple[int, ...] = Field((), description="Sizes in pixels to try beside the runs' own, without training.")
    batch_size: int = Field(1, description="Images per batch when latency is measured.")
    workers: Workers = None
    threads: Threads = None
    device: Device = "auto"
    precision: Precision = "auto"
    out: str | None = Field(
        None, description="Folder for tune.json, tune.csv and frontier.png. If omitted: RUN/tune of the first run."
    )


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Tune, "clca tune", argv))
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
    from clca.tune import Budget, Measure
    from clca.tune import tune as measure

    if out is None and not Path(runs[0]).is_dir():
        raise ClcaError(f"{runs[0]} is no folder here: name one for the results with --out")
    name, value = next(iter(given.items()))
    rates = chosen.pop("keep_rates") or None
    if out is not None:
        make_writable(folder)
    result = measure(runs, Budget(cast(Measure, name), value), keep_rates=rates, **chosen, report=print_at_once)
    result.render(Console())
    print(f"written to {folder}: {', '.join(path.name for path in result.write(folder))}")
    if result.chosen is None:
        raise ClcaError(result.advice())
    return 0
