"""How large gradients get during training, by arm (the paper: the base model's are larger and spikier)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Gradients:
    """Largest gradient by training step.

    Attributes:
        curves: One row an arm and step: `arm`, `step`, `median`, `low`, `high` (quartiles over runs), `runs`.
        arms: One row an arm: `arm`, `runs` (that the curves are of), `finished` (runs there are), `unreadable`,
            `median` (of the runs' median gradients), `largest` (median of their largest), `spike` (median of largest
            over median).
        pairs: One row a base/CLCA pair: the pair's columns and `ratio_median`, `ratio_max`, `ratio_spike` (base's over
            CLCA's).
        sentences: What it comes to, for the report.
    """

    curves: pd.DataFrame
    arms: pd.DataFrame
    pairs: pd.DataFrame
    sentences: list[str]


def gradients(folder: Path, table: pd.DataFrame, *, most: int = 96, points: int = 400) -> Gradients:
    """Read runs/<name>/run/metrics.jsonl of finished runs.

    Args:
        folder: The study's folder.
        table: Its results table.
        most: Runs read of an arm at most; of more, as many are taken evenly spread, the same settings for every arm.
        points: Points of a curve at most; of longer runs, neighbouring steps are taken together and the largest counts.
    """
    raise NotImplementedError
