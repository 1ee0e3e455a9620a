"""`clca evaluate`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from clca.cli.arguments import Arguments, Device, KeepRate, Precision, Run, Spelling, Workers, like
from clca.cli.messages import print_at_once
from clca.cli.parsing import parse, refusing_useless_rate
from clca.errors import ClcaError
from clca.models.config import Rate
from clca.system.processes import is_first_process
from clca.training.config import TrainConfig

if TYPE_CHECKING:
    from clca.training.run_folder import RunFolder


class Evaluate(Arguments):
    """Evaluate a run: accuracy, a table by class, the confusion matrix, the answer for each image, cost and speed.

    The first line names the images that are judged, and those that are not. Of photographs named beside the run that
    have no splits, all are judged.

    A run that was trained for several keep rates is evaluated at each of them, unless one is chosen.

    Examples:
      clca evaluate runs/first
      clca evaluate runs/first other_photos
      clca evaluate runs/first other_photos --split val
      clca evaluate runs/first --keep-rate 0.25
      clca evaluate runs/first --sweep 1 0.7 0.5 0.25 0.1
    """

    run: Run
    data: Annotated[str | None, Spelling("DATA", positional=True)] = Field(
        None, description="Images to evaluate on instead of the run's own; of one or more of its classes."
    )
    split: Literal["test", "val", "train", "train_val", "all"] | None = Field(
        None,
        description="Split of the images to evaluate. If omitted: test, or all images of a DATA that has no splits.",
    )
    keep_rate: KeepRate = None
    sweep: tuple[Rate, ...] | None = Field(
        None,
        description="Evaluate at each of these keep rates too, in one table beside the run's own. Results that are "
        "stored for "
        "the same images are reused, so an interrupted sweep continues.",
    )
    together: Annotated[str | None, Spelling("GROUPS")] = Field(
        None,
        description="Also judge one answer for all photographs of a plant, as clca predict --together gives it: "
        "folder, or a regular expression.",
    )
    batch_size: int = Field(64, description="Images per batch.")
    workers: Workers = None
    device: Device = "auto"
    precision: Precision = "auto"
    cache: bool = Field(
        True, description="Keep the resized images on disk, so that the next evaluation need not decode them again."
    )
    cache_gb: float | None = like(TrainConfig, "cache_gb")
    out: str | None = Field(None, description="Folder for the files. If omitted: RUN/evaluation.")


def run(argv: Sequence[str]) -> int:
    chosen = dict(parse(Evaluate, "clca evaluate", argv))
    run_name, data, split = (chosen.pop(name) for name in ("run", "data", "split"))
    rates, together = chosen.pop("sweep"), chosen.pop("together")
    from clca.training.run_folder import RunFolder

    run_folder = RunFolder.of(run_name)
    if rates is None and chosen["keep_rate"] is None:
        rates = run_folder.keep_rates
    if rates is not None:
        if together is not None:
            raise ClcaError("--together judges one keep rate: choose it with --keep-rate, and omit --sweep")
        return _sweep(run_folder, rates, data, split, chosen)
    from rich.console import Console

    from clca.evaluation import evaluate as run_evaluation
    from clca.evaluation.answers import LABEL_ERRORS, MISTAKES, TABLE

    with refusing_useless_rate(run_name, chosen["keep_rate"]):
        result = run_evaluation(run_folder, data, split, **chosen, together=together, report=print_at_once)
    if is_first_process():
        result.render(Console())
        if result.folder is not None:
            names = ["evaluation.json", "classes.csv", "confusion.csv", "confusion.png", "reliability.png", TABLE]
            names += [LABEL_ERRORS]
            names += [MISTAKES] if (result.folder / MISTAKES).is_file() else []
            print(f"written to {result.folder}: {', '.join(names)}")
    return 0


def _sweep(
    run: "RunFolder", rates: tuple[float, ...], data: str | None, split: str | None, chosen: dict[str, Any]
) -> int:
    if chosen.pop("keep_rate") is not None:
        raise ClcaError("--keep-rate and --sweep do not go together: list all the rates after --sweep")
    from rich.console import Console

    from clca.evaluation import sweep

    result = sweep(run, rates, data, split, **chosen, report=print_at_once)
    if is_first_process():
        result.render(Console())
        if result.files:
            print(f"written to {result.files[0].parent}: {', '.join(path.name for path in result.files)}")
    return 0
