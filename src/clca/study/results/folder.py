"""A study's folder: the files of each run, and the state that follows from them.

OUT/study.json          what the study is
OUT/results.parquet     the table, rebuilt from the runs at any time
OUT/data/               synthetic leaves, drawn once for all runs
OUT/runs/NAME/          one folder per run: run.json, claim.N, log.txt, run/ (from `clca train`), and at the end
                        result.json, or failure.json
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clca.errors import ClcaError, WorkError, brief, reason
from clca.study.results.rows import LONGEST_NAME, MOST_AXES, checked_row
from clca.system.files import as_utf8, read_json
from clca.system.numbers import integer

STUDY, RUNS, DATA, TABLE = "study.json", "runs", "data", "results.parquet"
PRETRAINING = "pretraining-"
"""Prefix of the names of pretraining runs, which are no rows of the table."""
DESCRIPTION, RESULT, FAILURE, LOG, TRAINED = "run.json", "result.json", "failure.json", "log.txt", "run"
FORMAT = "clca-study-1"
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}")  # as `new_folder` names it; other hidden folders are not ours

_MOST_BYTES = 64 << 20  # of study.json

State = Literal["new", "started", "finished", "failed"]


def run_folder(out: Path, name: str) -> Path:
    return out / RUNS / name


def state_of(folder: Path) -> State:
    """The state of a run; "started" may be running, here or elsewhere, or interrupted."""
    if (folder / RESULT).exists():
        return "finished"
    if (folder / FAILURE).exists():
        return "failed"
    return "started" if folder.exists() else "new"


def states(out: Path, names: Iterable[str]) -> dict[str, State]:
    """The states of many runs, without a file access for each of those that have not begun."""
    begun = set(begun_runs(out))
    return {name: state_of(run_folder(out, name)) if name in begun else "new" for name in names}


def begun_runs(out: Path) -> Iterator[str]:
    """The names of all runs that have a folder, except pretraining runs."""
    try:
        with os.scandir(out / RUNS) as entries:
            for entry in entries:
                if not entry.name.startswith((".", PRETRAINING)) and entry.is_dir():
                    yield entry.name
    except FileNotFoundError:
        return


def make_run_folder(out: Path, name: str, description: dict[str, Any]) -> Path:
    """Make the folder of a run with its run.json atomically, unless it is there.

    Raises:
        WorkError: It cannot be made.
    """
    folder = run_folder(out, name)
    if folder.is_dir():
        return folder
    with new_folder(folder) as temporary:
        temporary.mkdir(parents=True)
        with open(temporary / DESCRIPTION, "w", encoding="utf-8") as file:
            file.write(json.dumps(description, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return folder


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A path for a folder that is renamed to `folder` when the block ends without an error.

    If several processes do this at the same time, the first one wins, and the others' folders are removed.

    Raises:
        WorkError: It cannot be made.
    """
    temporary = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        yield temporary
        os.rename(temporary, folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise WorkError(f"{folder}: cannot be made ({reason(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished_folders(out: Path, seconds: float = 86400.0) -> None:
    """Remove unfinished folders of killed processes that are older than `seconds`."""
    for part in (RUNS, DATA):
        for path in (out / part).glob(".*"):
            with contextlib.suppress(OSError):
                if _UNFINISHED.fullmatch(path.name) and path.is_dir() and time.time() - path.stat().st_mtime > seconds:
                    shutil.rmtree(path, ignore_errors=True)


def of_study(study: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """A test whether a run in the folder, by its row, is part of the study, which may have changed since the run.

    Args:
        study: The content of study.json; if it does not list its runs, all are part of it. So are all runs on data sets
            whose images were missing when it was written: their names were not known.
    """
    if not isinstance(listed := study.get("runs"), dict):
        return lambda row: True
    if not all(isinstance(listed.get(name), list) for name in ("digits", "unseen")):
        return lambda row: True
    digits, unseen = set(map(str, listed["digits"])), set(map(str, listed["unseen"]))
    return lambda row: str(row["name"]).rpartition("-")[2] in digits or row.get("data") in unseen


def left_out(count: int) -> str:
    """A sentence on the runs in a folder that are no longer part of its study."""
    runs = "1 run in the folder is" if count == 1 else f"{count:,} runs in the folder are"
    return f"{runs} of the study as it was before it was changed, and left out."


def read_result(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run; None if there is none or it cannot be read."""
    result = read_json(folder / RESULT)
    return checked_row(result) if result is not None and result.get("state") == "finished" else None


@dataclass(frozen=True)
class Failure:
    """The content of failure.json.

    Attributes:
        error: The error in one line; empty if the file has none.
        attempt: Number of the failed attempt, from 1.
        traceback: Of the error.
    """

    error: str
    attempt: int
    traceback: str


def read_failure(folder: Path) -> Failure | None:
    """The failure of a run; None if it has not failed or the file cannot be read."""
    content = read_json(folder / FAILURE)
    if content is None:
        return None
    attempt = integer(content.get("attempt"))
    error, traceback = (text if isinstance(text := content.get(name), str) else "" for name in ("error", "traceback"))
    attempt = min(attempt, 10**6) if attempt and attempt > 0 else 1
    return Failure(brief(as_utf8(error), 2000), attempt, traceback[:100_000])


def read_study_file(out: Path) -> dict[str, Any]:
    """The content of study.json.

    Raises:
        ClcaError: The folder holds no study.
    """
    content = study_content(out)
    if content is None or content.get("format") != FORMAT:
        if content is None and (out / STUDY).is_file():
            raise ClcaError(f"{out / STUDY}: is damaged; run clca study run again, which rewrites it")
        raise ClcaError(f"{out}: holds no study ({STUDY} is missing); name the folder that clca study run wrote")
    if (wrong := _wrong_field(content)) is not None:
        raise ClcaError(f"{out / STUDY}: {wrong} is not as clca study run writes it; run it again")
    return dict(as_utf8(content))


def study_content(out: Path) -> dict[str, Any] | None:
    """The unchecked content of study.json; None if there is none or it cannot be read."""
    return read_json(out / STUDY, _MOST_BYTES)


def _wrong_field(study: Mapping[str, Any]) -> str | None:
    """The first field of a study.json that is missing or of the wrong type; None if all are right."""
    if absent := [name for name in ("name", "axes", "total") if name not in study]:
        return absent[0]
    kinds = {"name": str, "about": str, "split": str, "axes": dict, "planned": dict, "seeds": list}
    for name, kind in kinds.items():
        if not isinstance(study.get(name, kind()), kind):
            return name
    if not isinstance(total := study.get("total"), int) or not 0 <= total <= 10**9:
        return "total"
    if len(axes := study.get("axes", {})) > MOST_AXES or not all(map(_are_labels, axes.values())):
        return "axes"
    if not all(isinstance(counts, dict) and _are_counts(counts) for counts in study.get("planned", {}).values()):
        return "planned"
    return None if all(isinstance(seed, int) for seed in study.get("seeds", [])) else "seeds"


def _are_labels(labels: Any) -> bool:
    return isinstance(labels, list) and all(isinstance(label, str) and len(label) <= LONGEST_NAME for label in labels)


def _are_counts(counts: Mapping[str, Any]) -> bool:
    return all(isinstance(count, int) and 0 <= count <= 10**9 for count in counts.values())
