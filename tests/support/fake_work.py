"""Stand-ins for training, for tests of what goes on around it; as fast as a file can be written."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import clca.data
from clca.errors import WorkError
from clca.study.run.job import Job


def note(job: Job, folder: Path) -> dict[str, Any]:
    """Write down that the run was made, by whom, and give numbers."""
    with open(Path(job.out) / "made.txt", "a", encoding="utf-8") as file:  # one short line is appended at once
        file.write(f"{job.name} {os.getpid()}\n")
    logging.getLogger("clca.fake_work").info("made")
    return {"top1": 0.5 + 0.01 * job.config["seed"], "gmacs": 1.0}


def look(job: Job, folder: Path) -> dict[str, Any]:
    """The same, with how many images there are to learn from."""
    data = job.config["data"]
    images = clca.data.open(data["root"], data["train_split"], source=data["source"])
    return {**note(job, folder), "train_images": len(images)}


def slowly(job: Job, folder: Path) -> dict[str, Any]:
    """The same in a fifth of a second."""
    time.sleep(0.2)
    return note(job, folder)


def among_three(job: Job, folder: Path) -> dict[str, Any]:
    """The same, once three processes are at it, however long each of them took to begin."""
    here = Path(job.out) / "at_work"
    here.mkdir(exist_ok=True)
    (here / str(os.getpid())).touch()
    until = time.monotonic() + 100
    while len(list(here.iterdir())) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    return slowly(job, folder)


def forever_once(job: Job, folder: Path) -> dict[str, Any]:
    """Hang at the first attempt, so that somebody can kill it; the next one finishes."""
    mark = folder / "begun"
    if not mark.exists():
        mark.write_text(str(os.getpid()))
        time.sleep(600)
    return note(job, folder)


def die(job: Job, folder: Path) -> dict[str, Any]:
    """End the process as the system does when memory runs out, for one of the reductions."""
    if job.config["model"]["reduction"] == "tome":
        os.kill(os.getpid(), signal.SIGKILL)
    return note(job, folder)


def fail(job: Job, folder: Path) -> dict[str, Any]:
    """Fail for one of the reductions, as long as the folder holds no file that forgives."""
    if job.config["model"]["reduction"] == "tome" and not (Path(job.out) / "mended").exists():
        raise WorkError("the loss is not finite at step 3")
    return note(job, folder)


def fail_by_name(job: Job, folder: Path) -> dict[str, Any]:
    """Fail for one of the reductions, and say on which images."""
    if job.config["model"]["reduction"] == "tome":
        raise WorkError(f"{job.config['data']['root']}: cannot be read")
    return note(job, folder)


def crash(job: Job, folder: Path) -> dict[str, Any]:
    """A mistake in the program."""
    return {"top1": 1 / 0}


def fill(job: Job, folder: Path) -> dict[str, Any]:
    """Write until the disk is full, as a checkpoint would."""
    from clca.system.files import replacing

    if (Path(job.out) / "room").exists():
        return note(job, folder)
    with replacing(folder / "last.ckpt") as temporary:
        raise OSError(28, "No space left on device", str(temporary))


def interrupted(job: Job, folder: Path) -> dict[str, Any]:
    """Be asked to stop, as by Ctrl-C, in the second run."""
    if job.config["seed"] == 1 and not (Path(job.out) / "again").exists():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        raise KeyboardInterrupt
    return note(job, folder)
