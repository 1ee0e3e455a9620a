"""`clca train`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from clca.cli.arguments import Argument, Arguments, Spelling, arguments_of, spelled
from clca.cli.parsing import read
from clca.errors import ClcaError
from clca.system.processes import is_first_process, require_torchrun
from clca.training import settings
from clca.training.run_folder import RunFolder
from clca.training.start_from import recipe_of, recorded_classes

if TYPE_CHECKING:
    from clca.training import TrainConfig


SUMMARY = """Train a classifier with token reduction, and write a run folder.

DATA is a folder with train/, val/ and test/ and one folder per class in each. --recipe sets the defaults of the other
settings: quick (the default) fits a linear head to the frozen pretrained model, in a minute or two; best starts from
quick and trains all layers; published is the recipe of the paper. The same command again continues an interrupted run.

Examples:
  clca train photos --model vit_small_patch14_dinov2 --img-size 224 --reduction evit --keep-rate 0.25
  clca train photos --model vit_small_patch14_dinov2 --img-size 224 --reduction evit --keep-rate 0.25 --recipe best
  clca train photos --model deit3_small_patch16_224.fb_in1k --recipe published --epochs 30 --out runs/first
  torchrun --nproc-per-node 4 -m clca train photos --model deit3_base_patch16_224.fb_in1k --recipe best
  clca train more_photos --from runs/first --out runs/second
  clca train --resume runs/first
  clca train moved/photos --resume runs/first
"""


class _Files(Arguments):
    """The arguments that are no settings of a run."""

    config: str | None = Field(None, description="YAML file with any of these settings; flags take precedence over it.")
    resume: str | None = Field(
        None,
        description="Run folder of an interrupted run to continue. It needs nothing else, but DATA if its images were "
        "moved.",
    )


def arguments() -> list[Argument]:
    """The flags of `clca train`: the settings of a run, DATA by its place, and the two flags that name files."""
    listed = arguments_of(_Files)
    for group, members in settings.setting_fields().items():
        for name, info in members.items():
            info = spelled(info, Spelling(positional=True), required=False) if name == "data" else info
            info = spelled(info, Spelling(flag="--from"), required=False) if name == "start_from" else info
            listed.append(Argument(name, info, f"{group} options"))
    return listed


def run(argv: Sequence[str]) -> int:
    about = {f"{group} options": description for group, description in settings.GROUPS.items()}
    given = read(arguments(), "clca train", argv, SUMMARY, about)
    resumed, file = given.pop("resume", None), given.pop("config", None)
    if resumed is not None:
        _refuse_changes(given, file)
    from_file = settings.read_file(file) if file is not None else {}
    if file is None and resumed is None and "recipe" not in given:
        given["recipe"] = _default_recipe(given)
    require_torchrun()
    from clca.training import resume, train

    if resumed is not None:
        result = resume(resumed, given.get("data"), cache=given.get("cache", True))
    else:
        config = settings.to_config(given, from_file)
        if config.data.folds is not None and config.data.fold is None:
            return _cross_validate(config)
        result = train(config)
    if is_first_process():
        watched = f"top-1 {result.watched['top1']:.1%} on the watched images, " if result.watched else ""
        print(f"{result.folder}: {watched}weights: {result.kept} (epoch {result.kept_epoch} of {result.epochs})")
    run_folder = RunFolder(result.folder)
    if recorded_classes(run_folder) is not None:
        _compare_classes(run_folder)
    elif is_first_process():
        print(f"next: clca evaluate {result.folder}")
    return 0


def _cross_validate(config: "TrainConfig") -> int:
    """A run for every part of the images; returns the exit code."""
    from rich.console import Console

    from clca.evaluation.cross_validation import cross_validate

    result = cross_validate(config)
    if is_first_process():
        result.render(Console())
        print(f"{result.folder}: one run in each fold-N; folds.csv, predictions.csv and confusion.png of all together")
        print(f"next: clca report {result.folder}")
    return 0


def _compare_classes(run: RunFolder) -> None:
    """Evaluate a run with more classes than the one that it started from, on the test images of its set."""
    from clca.evaluation import evaluate

    config = run.config
    settings = {"workers": config.workers, "device": config.device, "cache": config.cache, "cache_gb": config.cache_gb}
    try:
        found = evaluate(run, split="test", **settings)  # type: ignore[arg-type]
    except ClcaError as error:  # there are no test images
        if is_first_process():
            print(f"known and new classes are not compared: {error}")
        return
    if is_first_process():
        print(found.known_and_new())
        print(f"written to {found.folder}; next: clca report {run}")


def _default_recipe(given: Mapping[str, Any]) -> str:
    """What serves somebody with photographs of their own: quick, unless there are no pretrained features to read.

    A run that starts from another one has the recipe of that.
    """
    if given.get("start_from") is not None:
        return recipe_of(given["start_from"])
    return "published" if given.get("pretrained") is False and "weights" not in given else "quick"


def _refuse_changes(given: Mapping[str, Any], file: str | None) -> None:
    """Refuse other settings beside --resume: a resumed run has those that it was started with."""
    named = [] if file is None else ["--config"]
    named += [settings.flag_of(name) for name in given if name not in ("cache", "data")]
    if named:
        raise ClcaError(f"--resume continues with the settings of the run: omit {named[0]}, or train into a new --out")
