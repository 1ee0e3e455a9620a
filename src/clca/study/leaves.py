"""Synthetic leaves of a study, drawn once into its folder for all runs, nodes and image sizes."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from clca.errors import WorkError
from clca.study.folder import DATA
from clca.study.plan import Plan, PlannedRun
from clca.training.run_folder import reason


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
    texts = dict.fromkeys(plan.config(run).data.root for run in [*plan.pretraining, *runs])
    return {text: _folder(out, text, say, progress) for text in texts if text.partition(":")[0] == "leaves"}


def _folder(out: Path, text: str, say: Callable[[str], None], progress: bool) -> Path:
    folder = out / DATA / f"leaves-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    from clca.data.leaves import DrawnLeaves, write_leaves

    leaves = DrawnLeaves.from_text(text, split="all", transform=None)
    images = len(leaves) // len(leaves.classes)
    say(f"drawing {len(leaves):,} leaves into {folder}")
    making = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        write_leaves(
            making, len(leaves.classes), images, leaves.size, leaves.seed, leaves.difficulty, progress=progress
        )
        os.rename(making, folder)
    except OSError as error:
        if not folder.is_dir():  # else another driver was faster
            raise WorkError(f"{folder}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder
