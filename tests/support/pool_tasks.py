"""Tasks for the workers of a pool, which import them from here: the test modules themselves are no importable names."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from clca.system.worker_pool import Send


def count_to(number: int, send: Send) -> int:
    for value in range(number):
        send(value)
    return os.getpid()


def fail(error: Exception, send: Send) -> None:
    raise error


def die(send: Send) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_child(file: Path, send: Send) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()  # inherits the worker's end of the pipe
    file.write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def save_when_interrupted(path: Path, send: Send) -> str:
    path.with_suffix(".begun").touch()
    try:
        time.sleep(3600)  # until the interrupt
    except KeyboardInterrupt:
        path.write_text("saved")
    return "saved"


def wait_for_interrupt(path: Path, send: Send) -> None:
    path.touch()
    time.sleep(3600)  # until the interrupt


def number_of_worker(send: Send) -> str:
    return os.environ["WORKER_OF_TEST"]


def set_number(worker: int) -> None:
    os.environ["WORKER_OF_TEST"] = str(worker)


def never_ready(path: Path, worker: int) -> None:
    path.touch()
    time.sleep(3600)  # until the interrupt
