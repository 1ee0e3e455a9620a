"""`evaluations(run)`: what has been found out about a run before, read back from its folder without torch."""

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
_MOST = 1e15  # beyond it a number is no measurement


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation of a run on its own images, as `clca evaluate` left it; shares in 0 … 1.

    Attributes:
        split: "test", "val", "train" or "train_val".
        keep_rate: Share of tokens kept, or one share a location.
        top1, top5, macro: Share of images right at first, among the five most likely, and mean share over classes.
        images: How many.
        gmacs: Multiply-accumulates of one image in 10⁹, as the method counts them.
        images_per_second: Measured then, on the machine and in the precision that `evaluation.json` names.
        folder: Where it lies.
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
    """What is in `RUN/evaluation` for the run's own images; nothing is computed.

    Args:
        run: Run folder. What is no run, a hub id for one, has no stored evaluations.

    Returns:
        Test images first, then val, train and train_val; within a split the keep rate rises (a list of rates goes by
        its mean). One for a split and keep rate: the newest. What cannot be read, and what was found on other
        images than the run's own, is left out.
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
        with contextlib.suppress(OSError):  # gone since it was read
            key, age = (stored.split, stored.keep_rate), path.stat().st_mtime_ns
            if key not in newest or age >= newest[key][0]:
                newest[key] = (age, stored)
    found = (stored for _, stored in newest.values())
    return sorted(found, key=lambda each: (SPLITS.index(each.split), *by_rate(each.keep_rate)))


def standard_error(share: float, images: int) -> float:
    """Standard error of a share of images that are right.

    One image more is counted right and one wrong, so that no error of 0 is claimed where all are right.
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
