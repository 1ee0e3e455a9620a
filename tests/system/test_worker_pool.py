"""The pool of worker processes: every task ends with one event, whatever becomes of its process."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from pool_tasks import (
    count_to,
    die,
    die_before_child,
    fail,
    never_ready,
    number_of_worker,
    save_when_interrupted,
    set_number,
    wait_for_interrupt,
)
from waiting import until

from clca.errors import ClcaError, WorkError
from clca.system.processes import forkserver_context
from clca.system.worker_pool import Event, WorkerPool


def events_of(pool: WorkerPool) -> list[Event]:
    """All events until no task is running."""
    events: list[Event] = []
    while pool.running():
        events += pool.wait(0.2)
    return events


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with closing(WorkerPool(2, forkserver_context())) as pool:
        yield pool


def test_messages_come_in_order_before_the_result_and_workers_are_reused(pool: WorkerPool) -> None:
    processes = set()
    for _ in range(2):
        pool.submit("three", partial(count_to, 3))
        *messages, end = events_of(pool)
        assert messages == [Event("three", "message", value) for value in range(3)]
        assert (end.name, end.kind) == ("three", "result")
        processes.add(end.value)
    assert len(processes) == 1
    assert os.getpid() not in processes


def test_single_use_workers_run_one_task_each() -> None:
    with closing(WorkerPool(1, forkserver_context(), single_use=True)) as pool:
        processes = set()
        for _ in range(2):
            pool.submit("none", partial(count_to, 0))
            processes.add(events_of(pool)[-1].value)
    assert len(processes) == 2


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ClcaError("no such folder"), ClcaError, "no such folder"),
        (WorkError("the disk is full"), WorkError, "the disk is full"),
        (ZeroDivisionError("by zero"), WorkError, "ZeroDivisionError: by zero"),
    ],
)
def test_an_error_arrives_with_its_traceback(
    pool: WorkerPool, error: Exception, kind: type[Exception], text: str
) -> None:
    pool.submit("bad", partial(fail, error))
    (event,) = events_of(pool)
    assert event.kind == "error"
    assert type(event.value) is kind
    assert str(event.value) == text
    assert "in fail" in event.value.__notes__[0]


def test_a_dead_worker_loses_its_task_alone_and_is_replaced(pool: WorkerPool) -> None:
    pool.submit("dies", die)
    pool.submit("lives", partial(count_to, 0))
    ends = {event.name: event for event in events_of(pool)}
    assert ends["lives"].kind == "result"
    assert ends["dies"].kind == "lost"
    assert "SIGKILL" in ends["dies"].value
    assert pool.free() == 2
    for name in "ab":
        pool.submit(name, partial(count_to, 0))
    assert [event.kind for event in events_of(pool)] == ["result", "result"]


def test_the_death_of_a_worker_is_noticed_while_its_children_hold_the_pipe(pool: WorkerPool, tmp_path: Path) -> None:
    pool.submit("dies", partial(die_before_child, tmp_path / "child"))
    assert [event.kind for event in events_of(pool)] == ["lost"]
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # still there


def test_an_interrupted_task_saves_and_its_event_still_comes(pool: WorkerPool, tmp_path: Path) -> None:
    pool.submit("saves", partial(save_when_interrupted, tmp_path / "saves"))
    pool.submit("ends", partial(wait_for_interrupt, tmp_path / "ends"))
    until(lambda: all((tmp_path / name).exists() for name in ("saves.begun", "ends")) and not pool.wait(0.1), 120)
    pool.interrupt()
    assert pool.free() == 0
    ends = {event.name: event.kind for event in events_of(pool)}
    assert ends == {"saves": "result", "ends": "interrupted"}
    assert (tmp_path / "saves").read_text() == "saved"


def test_an_interrupt_reaches_tasks_where_this_process_ignores_it(tmp_path: Path) -> None:
    """As a command does that a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with closing(WorkerPool(1, multiprocessing.get_context("spawn"))) as pool:
            pool.submit("ends", partial(wait_for_interrupt, tmp_path / "ends"))
            until(lambda: (tmp_path / "ends").exists() and not pool.wait(0.1), 120)
            pool.interrupt()
            (event,) = events_of(pool)
    finally:
        signal.signal(signal.SIGINT, before)
    assert event.kind == "interrupted"


def test_a_worker_that_is_not_ready_is_killed_by_an_interrupt(tmp_path: Path) -> None:
    with closing(WorkerPool(1, forkserver_context(), initialize=partial(never_ready, tmp_path / "begun"))) as pool:
        pool.submit("never", partial(count_to, 0))
        until((tmp_path / "begun").exists, 120)
        pool.interrupt()
        (event,) = events_of(pool)
    assert event.kind == "lost"


def test_workers_are_initialized_with_their_number_and_a_replacement_with_the_same() -> None:
    with closing(WorkerPool(2, forkserver_context(), initialize=set_number)) as pool:
        pool.start()
        pool.submit("dies", die)
        assert [event.kind for event in events_of(pool)] == ["lost"]
        for name in "ab":
            pool.submit(name, number_of_worker)
        assert sorted(event.value for event in events_of(pool)) == ["0", "1"]
