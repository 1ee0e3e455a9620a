"""A run is a folder: `config.json`, `images.csv`, `metrics.jsonl`, `model.safetensors`, `last.ckpt`, `summary.json`;
also `confidence.safetensors` where there were images to set it on.

All files except the growing `metrics.jsonl` are written atomically: an interruption or a full disk leaves the previous
version intact.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clca.data.sources.listing import Grouping
from clca.errors import ClcaError
from clca.models.stored_model import check_count, read_config, stored_config
from clca.system.files import part
from clca.training.config import TrainConfig, identity

if TYPE_CHECKING:
    from clca.models.token_reduced_vit import TokenReducedViT

CONFIG, IMAGES, METRICS, WEIGHTS, CONFIDENCE, CHECKPOINT, SUMMARY = (
    "config.json",
    "images.csv",
    "metrics.jsonl",
    "model.safetensors",
    "confidence.safetensors",
    "last.ckpt",
    "summary.json",
)
FILES = (CONFIG, IMAGES, METRICS, WEIGHTS, CONFIDENCE, CHECKPOINT, SUMMARY)

State = Literal["new", "started", "finished"]


@dataclass(frozen=True)
class RunImages:
    """The images that a run was trained on.

    Attributes:
        name: Their location as the run's settings give it.
        root: Where they are read from on this machine.
        source: Layout of the data, None to detect it.
        train_split: "train" or "train_val".
        grouping: Which of them stay together, and the part that is tested on.
    """

    name: str
    root: str
    source: str | None
    train_split: str
    grouping: Grouping = field(default_factory=Grouping)


class RunFolder:
    """The folder of a run, or of a saved model, or a name under which there is no folder here (a hub id).

    Nothing is read until it is needed, and `config.json` is read once: create one object per command and pass it on.

    Args:
        run: The folder, which need not exist yet.

    Attributes:
        name: The argument, as text.
        path: The folder.
    """

    def __init__(self, run: str | Path) -> None:
        self.name, self.path = str(run), Path(run)

    @staticmethod
    def of(run: "str | Path | RunFolder") -> "RunFolder":
        """The object itself if it is one already, with what it has read."""
        return run if isinstance(run, RunFolder) else RunFolder(run)

    def __str__(self) -> str:
        return self.name

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG

    @property
    def image_list(self) -> Path:
        return self.path / IMAGES

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def confidence(self) -> Path:
        return self.path / CONFIDENCE

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def summary(self) -> Path:
        return self.path / SUMMARY

    @property
    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self.path.is_dir()

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of `config.json`.

        Raises:
            ClcaError: It does not exist, or cannot be read.
        """
        if not os.path.exists(self.config_file):
            raise ClcaError(f"{self.path}: no {CONFIG} there, so it is no run; name the folder that clca train wrote")
        return read_config(self.config_file)

    @cached_property
    def config(self) -> TrainConfig:
        """The settings that the run was started with.

        Raises:
            ClcaError: The folder holds no run, or one of another version of this program.
        """
        check_count(self.content.get("train"), str(self.config_file))
        try:
            return TrainConfig.model_validate(self.content["train"])
        except KeyError:
            raise ClcaError(f"{self.path}: holds a saved model, not a run") from None
        except ValueError as error:
            raise ClcaError(
                f"{self.config_file}: settings of another version of clca ({type(error).__name__})"
            ) from None

    @property
    def resolved(self) -> dict[str, Any]:
        """What the settings became on the machine that started the run: its folder, precision, number of images …"""
        return part(self.content, "resolved")

    @property
    def precision(self) -> str:
        """The precision that the run was started with: "no", "bf16" or "fp16"; "auto" if it was not recorded."""
        precision = self.resolved.get("precision")
        return precision if precision in ("no", "bf16", "fp16") else "auto"

    @property
    def keep_rates(self) -> tuple[float, ...] | None:
        """The keep rates that the model was trained for; None for one, or for a hub id.

        Raises:
            ClcaError: The settings of the model cannot be read.
        """
        if not self.config_file.is_file():
            return None
        return stored_config(self.content.get("model"), str(self.config_file)).keep_rates

    @property
    def images(self) -> RunImages | None:
        """The images that the run was trained on; None for a saved model or a hub id.

        A relative path is resolved against the current folder, then against the one that the run was started in.

        Raises:
            ClcaError: The run's settings cannot be read.
        """
        if not self.exists or "train" not in self.content:
            return None
        data, started_in = self.config.data, self.resolved.get("started_in")
        root = data.root
        there = os.path.join(started_in, root) if isinstance(started_in, str) else root
        if not os.path.exists(root) and os.path.exists(there):
            root = there
        return RunImages(data.root, root, data.source, data.train_split, data.grouping)

    def state_for(self, config: TrainConfig) -> State:
        """Whether the folder holds nothing yet, or the run with these settings, started or finished.

        Raises:
            ClcaError: It holds another run, or other files.
        """
        folder = self.path
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return "new"
        if not folder.is_dir():
            raise ClcaError(f"--out {folder}: is a file; choose another folder")
        if not self.config_file.is_file():
            if all(entry.name.startswith(".") or _is_empty_log(entry) for entry in folder.iterdir()):
                return "new"
            raise ClcaError(f"--out {folder}: holds other files and no run; choose a new folder")
        if "train" not in self.content:
            raise ClcaError(f"--out {folder}: holds a saved model, not a run; choose another folder")
        there, here = identity(self.config), identity(config)
        different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        if different:
            listed = ", ".join(
                f"{name} is {there.get(name)!r} there and {here.get(name)!r} now" for name in different[:3]
            )
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise ClcaError(f"--out {folder}: holds a different run ({listed}{more}); choose another folder")
        return "finished" if self.summary.is_file() else "started"

    def load_model(self) -> "TokenReducedViT":
        """The trained model, in evaluation mode; a name without a folder is looked up on the Hugging Face hub.

        Raises:
            ClcaError: There is no such model, or its files do not belong together.
        """
        from clca.models.pretrained import from_pretrained, load_folder  # imports torch, which most commands do without

        if not self.exists:
            return from_pretrained(self.name)
        return load_folder(self.path, self.content if self.config_file.is_file() else None)

    def remove_temporary_files(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote a file of the run."""
        names = "|".join(map(re.escape, FILES))
        temporary = re.compile(rf"\.({names})\.(\d+\.tmp|[a-z0-9_]{{8}})")  # of `replacing` and of `save_pretrained`
        for path in self.path.iterdir():
            if temporary.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()


def _is_empty_log(path: Path) -> bool:
    """Whether it is an empty `metrics.jsonl`, all that is left of a run that ended before `config.json` was written."""
    return path.name == METRICS and path.is_file() and not path.stat().st_size


def refuse_run_file(out: Path, run: Path) -> None:
    """Refuse to overwrite a file of a run or a saved model, also through links.

    Args:
        out: The file to write, which may exist.
        run: The run in use; another run is recognised by the `config.json` beside `out`.

    Raises:
        ClcaError: It is such a file.
    """
    target = Path(os.path.realpath(out))
    for folder in (run, out.parent, target.parent):
        if (folder / CONFIG).is_file() and str(target) in (os.path.realpath(folder / name) for name in FILES):
            raise ClcaError(f"--out {out}: is a file of the run or saved model in {folder}; choose another name")


def distinct(runs: Iterable[str]) -> tuple[str, ...]:
    """Drop repeated names of runs and models; two paths of the same folder are the same run.

    Raises:
        ClcaError: A name is empty.
    """
    found: dict[str, str] = {}
    for run in runs:
        if not run.strip():
            raise ClcaError("the name of a run or model is empty: name a folder or a model")
        found.setdefault(os.path.realpath(run) if os.path.isdir(run) else run, run)
    return tuple(found.values())


def unique_labels(runs: Iterable[str]) -> dict[str, str]:
    """A unique label for each run: the name of its folder, with as many parent folders as are needed.

    A folder called `run`, as a study creates them, is labelled by its parent. A name without a folder is kept.
    """
    candidates = {run: _labels(run) for run in runs}
    chosen = dict.fromkeys(candidates, 0)
    while True:
        labels = {run: candidates[run][number] for run, number in chosen.items()}
        count = Counter(labels.values())
        ambiguous = [
            run for run, label in labels.items() if count[label] > 1 and chosen[run] + 1 < len(candidates[run])
        ]
        if not ambiguous:
            return labels
        for run in ambiguous:
            chosen[run] += 1


def _labels(run: str) -> list[str]:
    """The possible labels of a run, shortest first."""
    if not os.path.isdir(run):
        return [run]
    parts = Path(run).resolve().parts
    tails = ["/".join(parts[-count:]) for count in range(1, len(parts))]
    if parts[-1] == "run" and len(parts) > 2:
        return [name for tail in tails[1:] for name in (tail.removesuffix("/run"), tail)]
    return tails or [run]
