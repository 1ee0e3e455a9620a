"""The queue before the model: what shares a batch, who gets which answer, and what is dropped."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clca.serve.batching import Batcher


class Recorder:
    """Answers each item with (key, item), slowly, and keeps the batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches, self.threads = seconds, [], set()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, key: str, items: list[int]) -> list[tuple[str, int]]:
        self.threads.add(threading.get_ident())
        self.batches.append((key, list(items)))
        assert self.go.wait(5)
        time.sleep(self.seconds)
        if -1 in items:
            raise ValueError("a bad one")
        return [(key, item) for item in items]


def with_batcher(
    recorder: Recorder, work: Callable[[Any], Awaitable[None]], max_batch: int = 4, wait: float = 0.02
) -> None:
    async def main() -> None:
        batcher: Batcher[str, int, tuple[str, int]] = Batcher(recorder, max_batch, wait)
        batcher.start()
        async with asyncio.timeout(10):
            await work(batcher)
            await batcher.stop()

    asyncio.run(main())


def test_everyone_gets_their_own_answer_and_keys_are_never_mixed() -> None:
    recorder = Recorder(0.001)

    async def work(batcher: Any) -> None:
        asked = [("ab"[item % 2], item) for item in range(50)]
        assert await asyncio.gather(*(batcher.submit(*pair) for pair in asked)) == asked

    with_batcher(recorder, work)
    assert sorted(item for _, items in recorder.batches for item in items) == list(range(50))
    assert all(len(items) <= 4 and {item % 2 for item in items} == {"ab".index(key)} for key, items in recorder.batches)
    assert len(recorder.batches) <= 14  # 25 of each, in fours
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads


def test_one_alone_waits_no_longer_than_it_is_told_and_a_full_batch_not_at_all() -> None:
    recorder = Recorder()

    async def work(batcher: Any) -> None:
        assert await batcher.submit("a", 1) == ("a", 1)

    with_batcher(recorder, work, wait=0.01)

    async def full(batcher: Any) -> None:
        await asyncio.gather(*(batcher.submit("a", item) for item in range(4)))  # within the ten seconds of the test

    with_batcher(recorder, full, wait=1000)
    assert recorder.batches == [("a", [1]), ("a", [0, 1, 2, 3])]


def test_who_has_gone_is_not_computed_and_the_others_are() -> None:
    recorder = Recorder()

    async def work(batcher: Any) -> None:
        recorder.go.clear()
        first = asyncio.create_task(batcher.submit("a", 0))
        while not recorder.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit("a", item)) for item in (1, 2, 3)]
        await asyncio.sleep(0)
        first.cancel(), others[1].cancel()  # one within its batch, one before
        await asyncio.sleep(0)
        recorder.go.set()
        assert await asyncio.gather(others[0], others[2]) == [("a", 1), ("a", 3)]
        assert len(batcher) == 0

    with_batcher(recorder, work)
    assert recorder.batches == [("a", [0]), ("a", [1, 3])]


def test_a_batch_that_fails_fails_alone() -> None:
    async def work(batcher: Any) -> None:
        with pytest.raises(ValueError, match="a bad one"):
            await batcher.submit("a", -1)
        assert await batcher.submit("a", 7) == ("a", 7)

    with_batcher(Recorder(), work)


def test_the_event_loop_runs_on_while_the_model_computes() -> None:
    async def work(batcher: Any) -> None:
        job, turns = asyncio.create_task(batcher.submit("a", 1)), 0
        while not job.done():
            await asyncio.sleep(0.005)
            turns += 1
        assert turns >= 5

    with_batcher(Recorder(0.3), work)


def test_stopping_answers_what_waits_and_takes_nothing_more() -> None:
    recorder = Recorder(0.01)

    async def work(batcher: Any) -> None:
        jobs = [asyncio.create_task(batcher.submit("a", item)) for item in range(6)]
        await asyncio.sleep(0)
        await batcher.stop()
        assert [job.result()[1] for job in jobs] == list(range(6))
        with pytest.raises(RuntimeError, match="stopped"):
            await batcher.submit("a", 9)

    with_batcher(recorder, work, wait=1000)


def test_other_work_runs_in_the_models_thread() -> None:
    recorder = Recorder()

    async def work(batcher: Any) -> None:
        await batcher.submit("a", 1)
        assert await batcher.on_worker(threading.get_ident) in recorder.threads

    with_batcher(recorder, work)
