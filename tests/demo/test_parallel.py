"""Pieces of work in processes of their own: all are done, and whatever ends one is told in one line."""

import io
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from clca.demo.parallel import Piece, RelayedDisplay, Steps, Stopped, Tell, side_by_side
from clca.errors import ClcaError, WorkError


def write(path: Path, seconds: float, tell: Tell) -> None:
    began = time.time()
    for step in range(10):
        time.sleep(seconds / 10)
        Steps(tell)(step + 1, 10, "of ten")
    tell("line", f"on {torch.get_num_threads()} thread")
    path.write_text(f"{began} {time.time()}")


def fail(error: Exception, tell: Tell) -> None:
    raise error


def die(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_to_be_stopped(path: Path, tell: Tell) -> None:
    path.with_suffix(".begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        path.write_text("saved")
        raise


def show(tell: Tell) -> None:
    display = RelayedDisplay(tell, 2, 3, 0, True, None)
    display.step(3, 0.5, 100.0)
    display.epoch(1, {"loss": 0.5, "top1": 0.25}, None, "val", False)
    display.close()


def silent() -> Console:
    return Console(file=io.StringIO(), width=100)


def printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_all_are_done_two_at_a_time_the_dearest_first(tmp_path: Path) -> None:
    console = silent()

    side_by_side([Piece(f"{i}", partial(write, tmp_path / f"{i}", 0.5), cost=i) for i in range(3)], 2, console)

    begins, ends = zip(*(map(float, (tmp_path / f"{i}").read_text().split()) for i in range(3)), strict=True)
    assert max(begins[2], begins[1]) < min(ends[2], ends[1])
    assert begins[0] >= min(ends[1:])
    assert printed(console).count("on 1 thread") == 3


def test_a_terminal_shows_a_bar_for_each(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)

    side_by_side([Piece("one", partial(write, tmp_path / "1", 0.3)), Piece("another", show)], 2, console)

    assert "10/10" in printed(console)
    assert "3/6" in printed(console)
    assert "loss 0.500  100 images/s" in printed(console)


def test_the_lines_of_a_run_bear_its_name() -> None:
    console = silent()

    side_by_side([Piece("EViT", show)], 1, console)

    assert printed(console) == "EViT: epoch 1/2  train loss 0.500 top-1 25.0%\n"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ClcaError("keep_rate is 2: needs 0 to 1"), ClcaError, "keep_rate is 2: needs 0 to 1"),
        (WorkError("the disk is full"), WorkError, "the disk is full"),
        (KeyError("x"), WorkError, "KeyError: 'x'"),
    ],
)
def test_a_failure_is_told_as_it_was_and_the_others_save(
    error: Exception, kind: type[Exception], text: str, tmp_path: Path
) -> None:
    pieces = [
        Piece("first", partial(wait_to_be_stopped, tmp_path / "kept"), cost=2),
        Piece("bad", partial(fail_once_begun, error, tmp_path / "kept.begun"), cost=1),
        Piece("never", partial(write, tmp_path / "never", 0)),
    ]

    with pytest.raises(kind) as caught:
        side_by_side(pieces, 2, silent())

    assert str(caught.value) == text
    assert "fail_once_begun" in caught.value.__notes__[0]  # for --debug
    assert (tmp_path / "kept").read_text() == "saved"
    assert not (tmp_path / "never").exists()


def fail_once_begun(error: Exception, other: Path, tell: Tell) -> None:
    while not other.exists():
        time.sleep(0.05)
    fail(error, tell)


def test_a_killed_process_is_named() -> None:
    with pytest.raises(WorkError, match=r"EViT: its process ended \(SIGKILL, .*\); the same command goes on"):
        side_by_side([Piece("EViT", die)], 1, silent())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_save(number: signal.Signals, tmp_path: Path) -> None:
    def send() -> None:
        while not (tmp_path / "kept.begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    pieces = [
        Piece("first", partial(wait_to_be_stopped, tmp_path / "kept")),
        Piece("second", partial(write, tmp_path / "2", 0)),
    ]
    with pytest.raises(Stopped, match="the same command goes on") as stopped:
        side_by_side(pieces, 1, silent())

    assert stopped.value.signal == number
    assert (tmp_path / "kept").read_text() == "saved"
    assert not (tmp_path / "2").exists()
