"""Synthetic leaves of a study, drawn once into its folder for all runs, nodes and image sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from clca.data import is_leaves
from clca.study.plan.expand import Plan, PlannedRun
from clca.study.results.folder import DATA, appearing


def drawn(
    plan: Plan, out: Path, runs: Sequence[PlannedRun], say: Callable[[str], None], progress: bool = True
) -> dict[str, Path]:
    """Folders with the leaves that runs ask for by "leaves:…", drawn if they are not there yet.

    Args:
        plan: The study's plan.
        out: Its folder.
        runs: Those to be made.
        say: Called with a line before something is drawn.
        progress: Show a bar.

    Returns:
        The folder for each text.

    Raises:
        WorkError: They cannot be written.
    """
    sets = [plan.config(run).data for run in [*plan.pretraining, *runs]]
    texts = dict.fromkeys(data.root for data in sets if is_leaves(data.root, data.source))
    return {text: _folder(out, text, say, progress) for text in texts}


def _folder(out: Path, text: str, say: Callable[[str], None], progress: bool) -> Path:
    folder = out / DATA / f"leaves-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    from clca.data.synthetic.leaves import DrawnLeaves, write_leaves

    leaves = DrawnLeaves.from_text(text, split="all", transform=None)
    images = len(leaves) // len(leaves.classes)
    say(f"drawing {len(leaves):,} leaves into {folder}")
    with appearing(folder) as making:
        write_leaves(
            making, len(leaves.classes), images, leaves.size, leaves.seed, leaves.difficulty, progress=progress
        )
    return folder
