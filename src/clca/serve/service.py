"""From uploads to answers: admission, decoding, batching, computing, and the end of all of it."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from clca.data.decoding import Decoders
from clca.models.ranking import most_likely
from clca.serve.batching import Batcher
from clca.serve.decoding import decode, decode_image
from clca.serve.errors import Refusal
from clca.serve.metrics import Metrics
from clca.serve.served_model import Rates, ServedModel
from clca.serve.settings import ServeSettings
from clca.serve.upload import Upload

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranked:
    """The answer to one image: the most likely classes, best first, and their probabilities.

    Attributes:
        classes, probabilities: Of the most likely classes.
        unfamiliarity: How far the image is from the known classes, beyond 1 for one of none of them; None where the
            model's confidence was not set at the keep rate.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    unfamiliarity: float | None = None

    @property
    def is_unfamiliar(self) -> bool | None:
        """Whether the image is taken for none of the classes; None where that is not known."""
        return None if self.unfamiliarity is None else self.unfamiliarity > 1

    @classmethod
    def of(cls, served: ServedModel, answer: Tensor, k: int) -> "Ranked":
        """The `k` most likely of a model's classes, or all that it has, by a row of `ServedModel.answers`, [K + 1]."""
        best, index = most_likely(answer[:-1], k)
        last = answer[-1].item()
        unfamiliarity = None if math.isnan(last) else last
        return cls(tuple(served.classes[i] for i in index.tolist()), tuple(best.tolist()), unfamiliarity)


class Place:
    """The part of the service's capacity that a request takes, from its first byte to its answer."""

    def __init__(self, service: "Service") -> None:
        self._service, self.images, self.bytes = service, 0, 0

    def more_images(self, count: int) -> None:
        """Take capacity for images; a `Refusal` (429) if the service is full."""
        if self._service.under_way + count > self._service.settings.queue:
            raise self._service.busy()
        self.images += count
        self._service.under_way += count

    def more_bytes(self, count: int) -> None:
        """Take capacity for bytes; a `Refusal` (429) if the service is full."""
        if self._service.held_bytes + count > self._service.settings.held_bytes:
            raise self._service.busy()
        self.bytes += count
        self._service.held_bytes += count


class Service:
    """The models of an endpoint and what is under way; used from one event loop.

    Args:
        models: The first answers where none is named.
        settings: Limits and batching.
        metrics: What is counted.
    """

    def __init__(self, models: Sequence[ServedModel], settings: ServeSettings, metrics: Metrics) -> None:
        self.models = {model.name: model for model in models}
        self.settings, self.metrics = settings, metrics
        self.under_way = self.held_bytes = 0
        self.accepts = False
        self._requests = 0
        self._idle = asyncio.Event()
        self.drained = asyncio.Event()  # what still waits then, waits for nothing
        self._seconds_an_image = 0.1  # until it is known
        # As many slow images as quick ones; each has a thread here that waits for its process.
        self._waiting = ThreadPoolExecutor(2 * settings.decoders, "clca-decode")
        self._decoders: Decoders | None = None
        self._batcher: Batcher[tuple[str, Rates], Tensor, Tensor] = Batcher(
            self._compute, settings.max_batch, settings.wait_ms / 1000, self._prepare
        )
        metrics.watch(lambda: self.under_way, lambda: len(self._batcher))

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer; called in the event loop."""
        self._decoders = Decoders(
            self.settings.decoders,
            seconds=self.settings.decode_seconds,
            max_pixels=self.settings.pixels,
            slow=self.settings.decoders,
        )
        self._batcher.start()
        self.accepts = True

    async def drain(self) -> None:
        """Accept nothing more, and wait until everything accepted is answered, or for `grace_seconds`."""
        self.accepts = False
        try:
            async with asyncio.timeout(self.settings.grace_seconds):
                while self._requests:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            pass
        self.drained.set()

    async def stop(self) -> None:
        """`drain`, then end the threads and processes."""
        await self.drain()
        await self._batcher.stop()
        if self._decoders is not None:
            self._decoders.close()
        self._waiting.shutdown(cancel_futures=True)

    # -- requests --------------------------------------------------------------------------------------------------

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Capacity for a request, with one image to begin with; released at the end.

        Raises:
            Refusal: 503 while the service stops, 429 if it is full.
        """
        if not self.accepts:
            raise Refusal(503, "stopping", "the server is stopping", {"Retry-After": "5"})
        place = Place(self)
        place.more_images(1)
        self._requests += 1
        try:
            yield place
        finally:
            self.under_way -= place.images
            self.held_bytes -= place.bytes
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    def busy(self) -> Refusal:
        """The error of a full service, with the time to try again."""
        seconds = min(60, max(1, math.ceil(self.under_way * self._seconds_an_image)))
        return Refusal(429, "busy", "too much is under way: try again later", {"Retry-After": str(seconds)})

    def find(self, name: str | None) -> ServedModel:
        """The model that a request names, or the first."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refusal(404, "no_such_model", f"no model of this name: there are {', '.join(self.models)}")
        return self.models[name]

    async def answer(
        self, uploads: Sequence[Upload], served: ServedModel, rates: Rates, top_k: int
    ) -> list[Ranked | Refusal]:
        """An answer, or the reason for none, to each image, in order."""
        turns = asyncio.Semaphore(self.settings.decoders)  # so that many images of one request keep out no other
        work = (self._answer(upload, served, rates, top_k, turns) for upload in uploads)
        return list(await asyncio.gather(*work))

    async def open(self, data: bytes) -> Image.Image:
        """Decode an image; a `Refusal` as of `decode_image`."""
        assert self._decoders is not None
        return await asyncio.get_running_loop().run_in_executor(self._waiting, decode_image, data, self._decoders)

    async def _answer(
        self, upload: Upload, served: ServedModel, rates: Rates, top_k: int, turns: asyncio.Semaphore
    ) -> Ranked | Refusal:
        assert self._decoders is not None
        loop = asyncio.get_running_loop()
        try:
            async with turns:
                image = await loop.run_in_executor(
                    self._waiting, decode, bytes(upload.data), served.transform, self._decoders
                )
        except Refusal as refusal:
            self.metrics.images.labels(served.name, refusal.code).inc()
            return refusal
        found = await self._batcher.submit((served.name, rates), image)
        if not bool(torch.isfinite(found[:-1]).all()):
            self.metrics.images.labels(served.name, "not_finite").inc()
            return Refusal(500, "not_finite", "the model gave no finite probabilities for this image")
        self.metrics.images.labels(served.name, "answered").inc()
        return Ranked.of(served, found, top_k)

    async def on_worker(self, function: Callable[[], Result]) -> Result:
        """The result of anything else that needs a model, run between two batches in the thread that has them."""
        return await self._batcher.on_worker(function)

    # -- in the worker thread --------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)

    def _compute(self, key: tuple[str, Rates], images: list[Tensor]) -> list[Tensor]:
        name, rates = key
        began = time.perf_counter()
        answers = self.models[name].answers(rates, images)
        seconds = time.perf_counter() - began
        self._seconds_an_image += 0.2 * (seconds / len(images) - self._seconds_an_image)
        self.metrics.batches.labels(name).observe(len(images))
        self.metrics.compute.labels(name).observe(seconds)
        return list(answers)
