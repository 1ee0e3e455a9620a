"""`evaluations(run)`: earlier evaluations of a run, read from its folder without torch."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clca.errors import ClcaError
from clca.models.config import by_rate as by_rate  # its former home, for those that import it from here
from clca.system.files import read_json
from clca.training.run_folder import RunFolder

FOLDER, NUMBERS = "evaluation", "evaluation.json"
SPLITS = ("test", "val", "train", "train_val")
_MOST = 1e15  # larger numbers are not plausible


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation of a run on its own images, as written by `clca evaluate`; shares in 0 … 1.

    Attributes:
        split: "test", "val", "train" or "train_val".
        keep_rate: Share of tokens kept, or one for each location.
        top1, top5, macro: Share of images classified correctly, with the true class among the five most likely, and
            mean share over classes.
        images: Number of images.
        gmacs: Multiply-accumulates per image in 10⁹, as the published method counts them.
        images_per_second: Throughput measured then, on the device and in the precision named in `evaluation.json`.
        folder: The folder of its files.
    """

    split: str
    keep_rate: float | tuple[float, ...]
    top1: float
    top5: float
    macro: float
    images: int
    gmacs: float
    images_per_second: float
    folder: Path

    @property
    def top1_error(self) -> float:
        """Standard error of `top1`, 0 … 1."""
        return standard_error(self.top1, self.images)


def evaluations(run: str | Path | RunFolder) -> list[StoredEvaluation]:
    """The evaluations in `RUN/evaluation` on the run's own images; nothing is computed.

    Args:
        run: Run folder. Anything else, such as a hub id, has no stored evaluations.

    Returns:
        Test images first, then val, train and train_val; within a split by ascending keep rate (the mean of several).
        Only the newest for each split and keep rate. Files that cannot be read, and evaluations on other images, are
        left out.
    """
    run = RunFolder.of(run)
    try:
        own = run.content["train"]["data"]["root"]
    except (ClcaError, KeyError, TypeError):
        return []
    newest: dict[tuple[str, float | tuple[float, ...]], tuple[int, StoredEvaluation]] = {}
    for path in sorted(run.path.glob(f"{FOLDER}/*/{NUMBERS}")):
        numbers = read_json(path)
        stored = _stored(numbers, path.parent) if numbers is not None and numbers.get("data") == own else None
        if stored is None:
            continue
        with contextlib.suppress(OSError):  # deleted since it was read
            key, age = (stored.split, stored.keep_rate), path.stat().st_mtime_ns
            if key not in newest or age >= newest[key][0]:
                newest[key] = (age, stored)
    found = (stored for _, stored in newest.values())
    return sorted(found, key=lambda each: (SPLITS.index(each.split), *by_rate(each.keep_rate)))


def standard_error(share: float, images: int) -> float:
    """Standard error of an accuracy `share` on this many images.

    One correct and one wrong image are added, so that the error is not 0 if all are correct.
    """
    share = (share * images + 1) / (images + 2)
    return math.sqrt(share * (1 - share) / images)


def _stored(numbers: dict[str, Any], folder: Path) -> StoredEvaluation | None:
    split, rate, images = numbers.get("split"), _rate(numbers.get("keep_rate")), numbers.get("images")
    shares = {name: numbers.get(name) for name in ("top1", "top5", "macro")}
    costs = {name: numbers.get(name) for name in ("gmacs", "images_per_second")}
    if split not in SPLITS or rate is None or not isinstance(images, int) or not _within(images, 1, _MOST):
        return None
    if not all(_within(each, 0, 1) for each in shares.values()):
        return None
    if not all(_within(each, 0, _MOST) for each in costs.values()):
        return None
    measured = {name: float(value) for name, value in (shares | costs).items() if value is not None}
    return StoredEvaluation(split, rate, images=images, folder=folder, **measured)


def _rate(value: Any) -> float | tuple[float, ...] | None:
    if isinstance(value, list):
        return tuple(map(float, value)) if value and all(_is_rate(rate) for rate in value) else None
    return float(value) if _is_rate(value) else None


def _is_rate(value: Any) -> bool:
    return _within(value, 0, 1) and value > 0


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
