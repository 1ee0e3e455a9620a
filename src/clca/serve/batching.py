"""One worker thread for the model, and a queue before it that puts images into batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Job(Generic[Key, Item, Answer]):
    key: Key
    item: Item
    answer: asyncio.Future[Answer]
    arrived: float = field(default_factory=lambda: asyncio.get_running_loop().time())


class Batcher(Generic[Key, Item, Answer]):
    """Collects items and computes those of one key together, the longest waiting first.

    Everything but `compute` runs in the event loop. An item whose `submit` was cancelled is not computed, or, where its
    batch has begun, its answer is thrown away.

    Args:
        compute: (key, items) → one answer an item, in order; runs in the worker thread, one call at a time.
        max_batch: Items of a call, at most.
        wait_seconds: How long an item waits for others.
        prepare: Runs first in the worker thread.
    """

    def __init__(
        self,
        compute: Callable[[Key, list[Item]], list[Answer]],
        max_batch: int,
        wait_seconds: float,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._compute, self._max_batch, self._wait_seconds = compute, max_batch, wait_seconds
        self._jobs: deque[_Job[Key, Item, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "clca-model", initializer=prepare)

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._jobs)

    def start(self) -> None:
        """Begin to compute; called in the event loop."""
        self._task = asyncio.create_task(self._work(), name="clca-batches")

    async def stop(self) -> None:
        """Compute what waits, then end the thread."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def submit(self, key: Key, item: Item) -> Answer:
        """The answer to one item.

        Args:
            key: Items of different keys are never computed together.
            item: What `compute` takes.
        """
        if self._closing:
            raise RuntimeError("the batcher has been stopped")
        job = _Job(key, item, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._changed.set()
        return await job.answer

    async def on_worker(self, function: Callable[[], Result]) -> Result:
        """The result of something else that needs the model: it runs in the worker thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._drop_cancelled()
            if not self._jobs:
                if self._closing:
                    return
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._gather(self._jobs[0])
            batch = self._take(self._jobs[0].key) if self._jobs else []
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(
                    self._thread, self._compute, batch[0].key, [job.item for job in batch]
                )
                if len(answers) != len(batch):
                    raise RuntimeError(f"{len(answers)} answers to {len(batch)} images")
            except Exception as error:  # of these images; the next batch may go well
                for job in batch:
                    if not job.answer.done():
                        job.answer.set_exception(error)
                continue
            for job, answer in zip(batch, answers, strict=True):
                if not job.answer.done():
                    job.answer.set_result(answer)

    async def _gather(self, first: _Job[Key, Item, Answer]) -> None:
        """Wait until the batch of the first in the queue is full, or it has waited long enough."""
        end = first.arrived + self._wait_seconds
        while not self._closing:
            self._drop_cancelled()
            if sum(job.key == first.key for job in self._jobs) >= self._max_batch:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                self._drop_cancelled()
                return

    def _take(self, key: Key) -> list[_Job[Key, Item, Answer]]:
        batch = [job for job in self._jobs if job.key == key][: self._max_batch]
        taken = set(map(id, batch))
        self._jobs = deque(job for job in self._jobs if id(job) not in taken)
        return batch

    def _drop_cancelled(self) -> None:
        if any(job.answer.done() for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.answer.done())
