"""One run of a study, from its claim to its result, in the process that an executor chose for it."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TextIO

from clca.errors import ClcaError, WorkError, reason
from clca.study.results.folder import (
    FAILURE,
    LOG,
    RESULT,
    TRAINED,
    Failure,
    make_run_folder,
    read_failure,
    read_result,
    run_folder,
)
from clca.study.results.record import result_row
from clca.study.run.claim import Claim, claim
from clca.system.files import part, read_json, write_json
from clca.training.config import TrainConfig
from clca.training.run_folder import CHECKPOINT, CONFIG, WEIGHTS, RunFolder

TRAIN_AND_EVALUATE = "clca.study.run.job:train_and_evaluate"
_SPARE = 32 * 2**20  # bytes; with less disk space than this, any failure counts as caused by a full disk

Kind = Literal["finished", "failed", "taken", "interrupted", "no space", "lost"]


@dataclass(frozen=True)
class Job:
    """A run to be made, as it is sent to another process.

    Attributes:
        name: The run's name; its folder is `out`/runs/`name`.
        out: The study's folder, under a path that is valid in every process.
        row: The columns known before the run (`record.settings_row`).
        config: The run's settings (`TrainConfig` as JSON).
        split: The split that it is evaluated on.
        keep: What is kept of it: "none", "weights" or "all".
        threads: CPU threads; None for torch's choice.
        known_failures: Number of the attempt up to which failures are retried; 0 if a failed run stays failed.
        gone: The claim whose owner the driver has found to be gone (`claim.Watch.gone`), if there is one.
        work: The function that makes the run, as module:function; called with (job, folder), returns the record.
    """

    name: str
    out: str
    row: dict[str, Any]
    config: dict[str, Any]
    split: str = "test"
    keep: str = "weights"
    threads: int | None = None
    known_failures: int = 0
    gone: tuple[int, int] | None = None
    work: str = TRAIN_AND_EVALUATE


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: The run's name.
        kind: "finished"; "failed" (the error is in its folder); "taken" (another process has claimed it);
            "interrupted" (its state is saved); "no space" (the disk is full); "lost" (its process died).
        detail: The reason, in one line.
        row: The run's row of the table, if it is finished.
        here: Whether this job finished the run, and no other process did before.
        host: Name of the machine.
    """

    name: str
    kind: Kind
    detail: str = ""
    row: dict[str, Any] | None = None
    here: bool = False
    host: str = field(default_factory=platform.node)


def perform(job: Job, own_process: bool = True) -> Outcome:
    """Make a run, unless it has ended or another process is making it.

    Args:
        job: The run.
        own_process: Redirect the output of this process to the run's log.
    """
    folder = run_folder(Path(job.out), job.name)
    try:
        make_run_folder(Path(job.out), job.name, {"format": "clca-study-run-1", "row": job.row, "train": job.config})
        if (ended := _ended_outcome(job, folder)) is not None:
            return ended
        held = claim(folder, gone=job.gone)
    except WorkError as error:
        return _failed_outside(job, folder, error)
    if held is None:
        return Outcome(job.name, "taken")
    try:
        # The previous owner may have ended it between the check above and the claim.
        return _ended_outcome(job, folder) or _attempt(job, folder, held, own_process)
    finally:
        held.release()


def _ended_outcome(job: Job, folder: Path) -> Outcome | None:
    """The outcome of a run that has ended; None if it is still to be made."""
    if (result := read_result(folder)) is not None:
        return Outcome(job.name, "finished", row={**job.row, **result, "name": job.name})
    failure = read_failure(folder)
    if failure is not None and failure.attempt > job.known_failures:
        return Outcome(job.name, "failed", failure.error)
    return None


def _attempt(job: Job, folder: Path, held: Claim, own_process: bool) -> Outcome:
    """Make a claimed run, and write its result or failure."""
    earlier = read_failure(folder)
    if earlier is not None:
        _set_failure_aside(folder, earlier)
    began = monotonic()
    try:
        with _logging_to(folder / LOG, own_process):
            module, _, function = job.work.partition(":")
            numbers = getattr(import_module(module), function)(job, folder)
        row = {**job.row, "state": "finished", "error": None, **numbers, "seconds": round(monotonic() - began, 3)}
        if not held.still_held():  # this machine was suspended for so long that another process took the run over
            return Outcome(job.name, "taken")
        write_json(folder / RESULT, row)
    except KeyboardInterrupt as stop:
        return Outcome(job.name, "interrupted", str(stop))
    except Exception as error:
        return _failed(job, folder, error, (earlier.attempt if earlier else 0) + 1)
    _tidy(job, folder / TRAINED)
    return Outcome(job.name, "finished", row=row, here=True)


def _set_failure_aside(folder: Path, failure: Failure) -> None:
    """Rename the file of an earlier failure, and remove a damaged checkpoint, which would fail again."""
    os.replace(folder / FAILURE, folder / f"failure.{failure.attempt}.json")
    if CHECKPOINT in failure.error and "damaged" in failure.error:
        shutil.rmtree(folder / TRAINED, ignore_errors=True)


def _failed(job: Job, folder: Path, error: Exception, attempt: int) -> Outcome:
    line = one_line(error)
    if is_full(folder, error):
        return Outcome(job.name, "no space", line)
    text = "".join(traceback.format_exception(error))
    # Writing may fail for the same reason; the outcome has the error in any case.
    with suppress(OSError, WorkError), _opened(folder / LOG) as log:
        log.write(text)
    with suppress(WorkError):
        write_failure(folder, line, text, attempt)
    return Outcome(job.name, "failed", line)


def _failed_outside(job: Job, folder: Path, error: WorkError) -> Outcome:
    """The outcome of a run whose folder or claim cannot be written, so that neither can the failure."""
    return Outcome(job.name, "no space" if is_full(folder.parent, error) else "failed", one_line(error))


def write_failure(folder: Path, line: str, text: str, attempt: int) -> None:
    """Mark a run as failed."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(
        folder / FAILURE,
        {"error": line, "traceback": text, "attempt": attempt, "host": platform.node(), "time": now},
    )


def one_line(error: BaseException) -> str:
    """The message of an error on one line, after its type if it is no error of this library."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (ClcaError, WorkError)) and text else f"{type(error).__name__}: {text}"


def is_full(folder: Path, error: BaseException) -> bool:
    """Whether an error is caused by a full disk, and not by the run."""
    text = str(error).lower()
    if "no space left" in text or "the disk has" in text:
        return True
    try:
        return shutil.disk_usage(folder).free < _SPARE
    except OSError:
        return False


def _tidy(job: Job, trained: Path) -> None:
    """Remove the files of a finished run that `keep` does not include."""
    unwanted = {"all": (), "weights": (CHECKPOINT,), "none": (CHECKPOINT, WEIGHTS)}[job.keep]
    for name in unwanted:
        (trained / name).unlink(missing_ok=True)


@contextmanager
def _opened(log: Path) -> Iterator[TextIO]:
    """Open the log of a run for appending.

    Raises:
        WorkError: It cannot be opened.
    """
    try:
        file = open(log, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise WorkError(f"{log}: cannot be written ({reason(error)})") from error
    with file:
        yield file


class _RunLog(logging.StreamHandler):
    """Writes log records to the log of a run."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore errors: on a full disk the run's own files fail too, and that error has the reason."""


@contextmanager
def _only_handler(handler: logging.Handler) -> Iterator[None]:
    """Send the library's log to this handler only, from INFO on."""
    logger = logging.getLogger("clca")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


@contextmanager
def _logging_to(path: Path, own_process: bool) -> Iterator[None]:
    """Write the library's log during a run to the run's own file only; in a process of its own, all output too."""
    with _opened(path) as file, _only_handler(_RunLog(file)):
        if not own_process:
            yield
            return
        sys.stdout.flush()
        sys.stderr.flush()
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in saved:
                os.dup2(file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in saved.items():
                os.dup2(old, number)
                os.close(old)


def train_and_evaluate(job: Job, folder: Path) -> dict[str, Any]:
    """Train with the job's settings, evaluate the result, and return its record."""
    import torch

    from clca.evaluation import evaluate
    from clca.training import train
    from clca.training.progress import Display

    config = TrainConfig.model_validate(job.config).model_copy(update={"out": folder / TRAINED})
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    _update_paths(folder / TRAINED, config)
    train(config, display=partial(Display, bar=False))
    trained = RunFolder(folder / TRAINED)
    evaluation = evaluate(
        trained,
        split=job.split,
        batch_size=max(64, config.batch_size),
        workers=config.workers,
        device=config.device,
        precision=config.precision,
        cache=config.cache,
        cache_gb=config.cache_gb,
    )
    return result_row(trained, evaluation, job.threads)


def _update_paths(trained: Path, config: TrainConfig) -> None:
    """Let a run resume after its study, or its images, were moved.

    A study identifies images and weights by their digests: with other ones, the run would have another name.
    """
    stored = read_json(trained / CONFIG)
    if stored is None or not isinstance(part(stored, "train").get("data"), dict):
        return
    current, earlier = config.model_dump(mode="json"), stored["train"]
    paths = {name: current["data"][name] for name in ("root", "source")}
    moved = {**earlier, "weights": current["weights"], "data": {**earlier["data"], **paths}}
    if moved != earlier:
        write_json(trained / CONFIG, {**stored, "train": moved})
