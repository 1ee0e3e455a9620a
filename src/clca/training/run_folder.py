"""A run is a folder: `config.json`, `metrics.jsonl`, `model.safetensors`, `last.ckpt`, `summary.json`.

Every file but the growing `metrics.jsonl` is written beside its place and then renamed, so that an interruption or a
full disk leaves the previous one whole.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clca.errors import ClcaError, reason
from clca.models.stored_model import check_count
from clca.system.files import parse_json, part, read_bounded
from clca.training.config import TrainConfig, identity

CONFIG, METRICS, WEIGHTS, CHECKPOINT, SUMMARY = (
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "last.ckpt",
    "summary.json",
)
FILES = (CONFIG, METRICS, WEIGHTS, CHECKPOINT, SUMMARY)

State = Literal["new", "started", "finished"]


def refuse_run_file(out: Path, run: Path) -> None:
    """Refuse a file to write to that is one of those a run or a saved model is made of, also through links.

    Args:
        out: The file, there or not.
        run: The run at hand; others are known by the `config.json` beside `out`.

    Raises:
        ClcaError: It is one.
    """
    target = Path(os.path.realpath(out))
    for folder in (run, out.parent, target.parent):
        if (folder / CONFIG).is_file() and str(target) in (os.path.realpath(folder / name) for name in FILES):
            raise ClcaError(f"--out {out}: is a file of the run or saved model in {folder}; choose another name")


def find_run(folder: Path, config: TrainConfig) -> State:
    """What the folder holds: nothing yet, this run begun, or this run finished.

    Raises:
        ClcaError: It holds another run, or files that are not a run's.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "new"
    if not folder.is_dir():
        raise ClcaError(f"--out {folder}: is a file; choose another folder")
    if not (folder / CONFIG).is_file():
        if all(entry.name.startswith(".") or _is_mere_claim(entry) for entry in folder.iterdir()):
            return "new"
        raise ClcaError(f"--out {folder}: holds other files and no run; choose a new folder")
    stored = read_config(folder)
    if "train" not in stored:
        raise ClcaError(f"--out {folder}: holds a saved model, not a run; choose another folder")
    there, here = identity(stored_config(folder)), identity(config)
    different = [name for name in here if here[name] != there.get(name)]
    if different:
        listed = ", ".join(f"{name} is {there.get(name)!r} there and {here[name]!r} now" for name in different[:3])
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ClcaError(f"--out {folder}: holds a different run ({listed}{more}); choose another folder")
    return "finished" if (folder / SUMMARY).is_file() else "started"


def _is_mere_claim(path: Path) -> bool:
    """Whether it is all that a run has left which ended before it was described."""
    return path.name == METRICS and path.is_file() and not path.stat().st_size


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        ClcaError: There is none, or it cannot be read.
    """
    path = folder / CONFIG
    try:
        content = parse_json(read_bounded(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ClcaError(
            f"{folder}: no {CONFIG} there, so it is no run; name the folder that clca train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ClcaError(f"{path}: cannot be read ({reason(error)})") from None
    if not isinstance(content, dict):
        raise ClcaError(f"{path}: is not a run's configuration")
    return content


def stored_config(folder: Path) -> TrainConfig:
    """The `TrainConfig` that a run was started with.

    Raises:
        ClcaError: The folder is no run, or one of another version of this program.
    """
    stored = read_config(folder)
    check_count(stored.get("train"), str(folder / CONFIG))
    try:
        return TrainConfig.model_validate(stored["train"])
    except KeyError:
        raise ClcaError(f"{folder}: holds a saved model, not a run") from None
    except ValueError as error:
        raise ClcaError(f"{folder / CONFIG}: settings of another version of clca ({type(error).__name__})") from None


def begun_precision(folder: Path) -> str:
    """The precision that a run was begun with: "no", "bf16" or "fp16"; "auto" where its folder does not say."""
    precision = part(read_config(folder), "resolved").get("precision")
    return precision if precision in ("no", "bf16", "fp16") else "auto"


@dataclass(frozen=True)
class OwnImages:
    """The images that a run was made from."""

    name: str
    """As the run's settings name them."""
    root: str
    """Where they are read from here."""
    source: str | None
    train_split: str


def own_images(run: str | Path) -> OwnImages | None:
    """The images that a run was made from, or None for what is no run: a hub id, a saved model.

    A relative path is looked for here, then in the folder that the run was started in.

    Raises:
        ClcaError: The run's settings cannot be read.
    """
    run = Path(run)
    stored = read_config(run) if run.is_dir() else {}
    if "train" not in stored:
        return None
    own = stored_config(run).data
    root, started_in = own.root, part(stored, "resolved").get("started_in")
    there = os.path.join(started_in, root) if isinstance(started_in, str) else root
    if not os.path.exists(root) and os.path.exists(there):
        root = there
    return OwnImages(own.root, root, own.source, own.train_split)


def distinct(runs: Iterable[str]) -> tuple[str, ...]:
    """Runs and models without those that were named before; two paths of one folder name one run.

    Raises:
        ClcaError: A name is empty.
    """
    found: dict[str, str] = {}
    for run in runs:
        if not run.strip():
            raise ClcaError("the name of a run or model is empty: name a folder or a model")
        found.setdefault(os.path.realpath(run) if os.path.isdir(run) else run, run)
    return tuple(found.values())


def told_apart(runs: Iterable[str]) -> dict[str, str]:
    """A name for each that no other has: its folder's, with as many of the folders above as that takes.

    A folder called `run`, as a study makes them, goes by the one above. What is no folder here keeps its name.
    """
    tails = {run: _tails(run) for run in runs}
    chosen = dict.fromkeys(tails, 0)
    while True:
        names = {run: tails[run][number] for run, number in chosen.items()}
        count = Counter(names.values())
        alike = [run for run, name in names.items() if count[name] > 1 and chosen[run] + 1 < len(tails[run])]
        if not alike:
            return names
        for run in alike:
            chosen[run] += 1


def _tails(run: str) -> list[str]:
    """What a run may be called, shortest first."""
    if not os.path.isdir(run):
        return [run]
    parts = Path(run).resolve().parts
    tails = ["/".join(parts[-count:]) for count in range(1, len(parts))]
    if parts[-1] == "run" and len(parts) > 2:
        return [name for tail in tails[1:] for name in (tail.removesuffix("/run"), tail)]
    return tails or [run]


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote a file of the run has left beside it."""
    names = "|".join(map(re.escape, FILES))
    ours = re.compile(rf"\.({names})\.(\d+\.tmp|[a-z0-9_]{{8}})")  # of `replacing` and of `save_pretrained`
    for path in folder.iterdir():
        if ours.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
