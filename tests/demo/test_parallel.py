"""Tasks of the demo in parallel: all run, each with its bar or log lines, and any failure is reported in one line."""

import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from demo_tasks import die, fail_after, train_for_show, wait_for_interrupt, write
from waiting import until

from clca.demo import parallel
from clca.demo.parallel import Stopped, Task
from clca.errors import ClcaError, WorkError

pytestmark = pytest.mark.slow

run_tasks = partial(parallel.run_tasks, preload=["clca.demo.parallel", "torch"])


def test_all_are_run_two_at_a_time_the_most_expensive_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "clca"):
        run_tasks([Task(f"{i}", partial(write, tmp_path / f"{i}", 0.5), cost=i) for i in range(3)], 2)

    begins, ends = zip(*(map(float, (tmp_path / f"{i}").read_text().split()) for i in range(3)), strict=True)
    assert max(begins[2], begins[1]) < min(ends[2], ends[1])
    assert begins[0] >= min(ends[1:])
    assert sorted(caplog.messages) == [f"{i}: on 1 thread" for i in range(3)]


def test_a_terminal_shows_a_bar_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")

    run_tasks([Task("one", partial(write, tmp_path / "1", 0.3)), Task("another", train_for_show)], 2)

    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "3/6" in shown
    assert "loss 0.500  100 images/s" in shown


def test_log_lines_of_a_run_carry_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "clca"):
        run_tasks([Task("EViT", train_for_show)], 1)

    assert caplog.messages == ["EViT: epoch 1/2  train loss 0.500 top-1 25.0%"]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ClcaError("keep_rate is 2: needs 0 to 1"), ClcaError, "keep_rate is 2: needs 0 to 1"),
        (WorkError("the disk is full"), WorkError, "the disk is full"),
        (KeyError("x"), WorkError, "KeyError: 'x'"),
    ],
)
def test_a_failure_is_raised_as_it_was_and_the_others_save(
    error: Exception, kind: type[Exception], text: str, tmp_path: Path
) -> None:
    tasks = [
        Task("first", partial(wait_for_interrupt, tmp_path / "kept"), cost=2),
        Task("bad", partial(fail_after, error, tmp_path / "kept.begun"), cost=1),
        Task("never", partial(write, tmp_path / "never", 0)),
    ]

    with pytest.raises(kind) as caught:
        run_tasks(tasks, 2)

    assert str(caught.value) == text
    assert "fail_after" in caught.value.__notes__[0]  # for --debug
    assert (tmp_path / "kept").read_text() == "saved"
    assert not (tmp_path / "never").exists()


def test_a_killed_process_is_named() -> None:
    with pytest.raises(WorkError, match=r"EViT: its process ended \(SIGKILL, .*\); the same command continues"):
        run_tasks([Task("EViT", die)], 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_save(number: signal.Signals, tmp_path: Path) -> None:
    def send_signal() -> None:
        until((tmp_path / "kept.begun").exists, 120)
        os.kill(os.getpid(), number)

    threading.Thread(target=send_signal, daemon=True).start()
    tasks = [
        Task("first", partial(wait_for_interrupt, tmp_path / "kept")),
        Task("second", partial(write, tmp_path / "2", 0)),
    ]
    with pytest.raises(Stopped, match="the same command continues") as stopped:
        run_tasks(tasks, 1)

    assert stopped.value.signal == number
    assert (tmp_path / "kept").read_text() == "saved"
    assert not (tmp_path / "2").exists()
