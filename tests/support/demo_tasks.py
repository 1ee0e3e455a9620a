"""Tasks for `clca.demo.parallel`, which other processes import from here."""

import os
import signal
import time
from pathlib import Path

import torch

from clca.demo.parallel import RelayedDisplay, StepSender
from clca.system.worker_pool import Send


def write(path: Path, seconds: float, send: Send) -> None:
    began = time.time()
    for step in range(10):
        time.sleep(seconds / 10)
        StepSender(send)(step + 1, 10, "of ten")
    send(f"on {torch.get_num_threads()} thread")
    path.write_text(f"{began} {time.time()}")


def fail_after(error: Exception, other: Path, send: Send) -> None:
    while not other.exists():
        time.sleep(0.05)
    raise error


def die(send: Send) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_interrupt(path: Path, send: Send) -> None:
    path.with_suffix(".begun").touch()
    try:
        time.sleep(3600)  # until the interrupt
    except KeyboardInterrupt:
        path.write_text("saved")
        raise


def train_for_show(send: Send) -> None:
    display = RelayedDisplay(send, 2, 3, 0, True)
    display.step(3, 0.5, 100.0)
    display.epoch(1, {"loss": 0.5, "top1": 0.25}, None, "val", False)
    display.close()
