"""`clca evaluate`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from clca.cli.parsing import parse, rate, refusing_useless_rate
from clca.errors import ClcaError
from clca.system.processes import is_first_process


def run(argv: Sequence[str]) -> int:
    import tyro

    def evaluate(
        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None,
        *,
        split: Literal["test", "val", "train", "train_val"] = "test",
        keep_rate: tuple[float, ...] = (),
        sweep: Annotated[tuple[float, ...] | None, tyro.conf.arg(help_behavior_hint="")] = None,
        batch_size: int = 64,
        workers: int | None = None,
        device: Literal["auto", "cpu"] = "auto",
        precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
        cache: bool = True,
        cache_gb: float | None = None,
        out: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate a run: accuracy, a table by class, the confusion matrix, cost and speed.

        The files go to RUN/evaluation.

        Examples:
          clca evaluate runs/first
          clca evaluate runs/first other_photos --split val
          clca evaluate runs/first --keep-rate 0.25
          clca evaluate runs/first --sweep 1 0.7 0.5 0.25 0.1

        Args:
            run: Run folder, or a saved model's folder or hub id.
            data: Other images than the run's own, of the same classes.
            split: Which part of the images.
            keep_rate: Keep this share of tokens, or one share a location, instead of what the run was trained with.
            sweep: Evaluate at each of these shares of tokens too, in one table beside the run's own; what was evaluated
                before on the same images is taken over, so an interrupted sweep goes on.
            batch_size: Images at once.
            workers: Processes that read images. If omitted: one a core, at most 8.
            device: auto takes the GPU if there is one.
            precision: auto takes bf16 where the device computes it fast.
            cache: Keep the resized images on disk, so that the next evaluation need not decode them again.
            cache_gb: Gigabytes that all resized images may take. If omitted: $CLCA_CACHE_GB, else 20.
            out: Folder for the files.
        """
        return dict(locals())

    chosen = parse(evaluate, "clca evaluate", argv)
    run_name, data, split = (chosen.pop(name) for name in ("run", "data", "split"))
    chosen["keep_rate"], rates = rate(chosen["keep_rate"]), chosen.pop("sweep")
    if rates is not None:
        return _sweep(run_name, rates, data, split, chosen)
    from rich.console import Console

    from clca.evaluation import evaluate as run_evaluation

    with refusing_useless_rate(run_name, chosen["keep_rate"]):
        result = run_evaluation(run_name, data, split, **chosen)
    if is_first_process():
        result.render(Console())
        if result.folder is not None:
            print(f"written to {result.folder}: evaluation.json, classes.csv, confusion.csv, confusion.png")
    return 0


def _sweep(run: str, rates: tuple[float, ...], data: str | None, split: str, chosen: dict[str, Any]) -> int:
    if chosen.pop("keep_rate") is not None:
        raise ClcaError("--keep-rate and --sweep do not go together: name all the rates after --sweep")
    if not rates:
        raise ClcaError("--sweep needs keep rates, such as --sweep 1 0.7 0.5 0.25 0.1")
    from rich.console import Console

    from clca.evaluation import sweep

    console = Console(stderr=True) if is_first_process() else None
    result = sweep(run, rates, data, split, console=console, **chosen)
    if is_first_process():
        result.render(Console())
        if result.files:
            print(f"written to {result.files[0].parent}: {', '.join(path.name for path in result.files)}")
    return 0
