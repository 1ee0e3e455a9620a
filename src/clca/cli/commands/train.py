"""`clca train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clca.cli.parsing import parse, value_of
from clca.errors import ClcaError
from clca.system.processes import is_first_process, refuse_strangers

if TYPE_CHECKING:
    from clca.training import TrainConfig

TRAIN_HELP = """Train a classifier with token reduction, and leave a run folder.

DATA is a folder with train/, val/ and test/ and one folder a class in each. Settings that are omitted are
those of the published recipe. The same command again goes on where an interrupted run stopped.

Examples:
  clca train photos --model deit3_small_patch16_224.fb_in1k --reduction evit --keep-rate 0.1 --img-size 448
  clca train photos --model vit_small_patch14_dinov2 --img-size 224 --epochs 10 --batch-size 16
  clca train photos --model vit_tiny_patch16_224 --no-pretrained --out runs/first
  torchrun --nproc-per-node 4 -m clca train photos --model deit3_base_patch16_224.fb_in1k
  clca train --resume runs/first
"""


def run(argv: Sequence[str]) -> int:
    from clca.training import settings as flags

    given = flags.read_file(value_of("--config", argv)) if value_of("--config", argv) else {}
    parsed = parse(flags.arguments(given), "clca train", argv, TRAIN_HELP)
    refuse_strangers()
    from clca.training import resume
    from clca.training import train as run

    if parsed.resume is not None:
        _refuse_changes(argv)
        result = resume(parsed.resume) if parsed.run.cache else run(_without_cache(parsed.resume))
    else:
        config = flags.to_config(parsed, given)
        result = run(config)
    if is_first_process():
        watched = f"top-1 {result.watched['top1']:.1%} on the watched images, " if result.watched else ""
        print(f"{result.folder}: {watched}weights: {result.kept} (epoch {result.kept_epoch} of {result.epochs})")
        print(f"next: clca evaluate {result.folder}")
    return 0


def _refuse_changes(argv: Sequence[str]) -> None:
    """A resumed run has the settings it was started with; whoever names others expects them to count."""
    rest = iter(argv)
    for word in rest:
        name = word.partition("=")[0].replace("_", "-")
        if name == "--resume":
            if "=" not in word:
                next(rest, None)
        elif name not in ("--cache", "--no-cache"):
            what = name if name.startswith("-") else f"DATA ({word})"
            raise ClcaError(
                f"--resume goes on with the settings of the run: leave {what} away, or train into a new --out"
            )


def _without_cache(folder: str) -> "TrainConfig":
    """The settings of a run in a folder, but for the cache."""
    from clca.training.run_folder import stored_config

    return stored_config(Path(folder)).model_copy(update={"out": Path(folder), "cache": False})
