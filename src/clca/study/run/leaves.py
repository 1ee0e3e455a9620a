"""Synthetic leaves of a study, drawn once into its folder for all runs, machines and image sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from clca.data import is_leaves
from clca.study.plan.expand import Plan, PlannedRun
from clca.study.results.folder import DATA, new_folder


def draw_leaves(
    plan: Plan, out: Path, runs: Sequence[PlannedRun], log: Callable[[str], None], progress: bool = True
) -> dict[str, Path]:
    """Draw the leaves that runs request by "leaves:…", unless their folder exists.

    Args:
        plan: The study's plan.
        out: Its folder.
        runs: The runs to be made.
        log: Called with a line before leaves are drawn.
        progress: Show a bar.

    Returns:
        The folder for each "leaves:…".

    Raises:
        WorkError: The leaves cannot be written.
    """
    sets = [plan.config(run).data for run in [*plan.pretraining, *runs]]
    texts = dict.fromkeys(data.root for data in sets if is_leaves(data.root, data.source))
    return {text: _drawn_folder(out, text, log, progress) for text in texts}


def _drawn_folder(out: Path, text: str, log: Callable[[str], None], progress: bool) -> Path:
    folder = out / DATA / f"leaves-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    from clca.data.synthetic.leaves import DrawnLeaves, write_leaves

    leaves = DrawnLeaves.from_text(text, split="all", transform=None)
    images = len(leaves) // len(leaves.classes)
    log(f"drawing {len(leaves):,} leaves into {folder}")
    with new_folder(folder) as temporary:
        write_leaves(
            temporary, len(leaves.classes), images, leaves.size, leaves.seed, leaves.difficulty, progress=progress
        )
    return folder
