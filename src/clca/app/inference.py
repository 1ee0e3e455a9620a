"""What the page asks of a model: an answer to one photograph with its stages, cost and time, and its reasons."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from clca.explain import Explanation, Stage, View, explain, stages
from clca.models.cost import cost
from clca.serve.errors import Refusal
from clca.serve.served_model import Rates, ServedModel
from clca.serve.service import Ranked, Service
from clca.serve.settings import MIB

TOP = 5
_TIMINGS, _TIMING_SECONDS = 5, 0.5
_PRICES = 512  # kept, of models and keep rates; anyone may send another rate


@dataclass(frozen=True)
class Price:
    """What one image costs at a keep rate.

    Attributes:
        gmacs: As the published method counts them.
        share: Of the same at a keep rate of 1.
    """

    gmacs: float
    share: float


@dataclass(frozen=True)
class Look:
    """What a model makes of a photograph.

    Attributes:
        image: The photograph, upright.
        ranked: The most likely classes.
        milliseconds: Of the model alone, one image: the median of up to five times.
        price: What it costs.
        view, stages: What the model saw of it, and what each reduction left.
    """

    image: Image.Image
    ranked: Ranked
    milliseconds: float
    price: Price
    view: View
    stages: tuple[Stage, ...]


class PhotoInference:
    """Asks a `Service`'s models about single photographs, within its limits.

    Args:
        service: With the models.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._gmacs = lru_cache(_PRICES)(_count)  # counting takes longer than the answer of a small model

    async def open(self, path: Path) -> Image.Image:
        """Decode an uploaded file, whatever it is called.

        Raises:
            Refusal: It is too long, too large, damaged or no image, or too much is under way.
        """
        settings = self.service.settings

        def read() -> bytes:
            if path.stat().st_size > settings.file_bytes:
                raise Refusal(413, "file_too_long", f"a file is over the limit of {settings.file_bytes / MIB:g} MiB")
            return path.read_bytes()

        try:
            with self.service.place():
                return await self.service.open(await asyncio.to_thread(read))
        except FileNotFoundError:
            raise Refusal(410, "gone", "the photograph is no longer here: upload it again") from None

    async def look(self, served: ServedModel, rates: Rates, image: Image.Image) -> Look:
        """The answer to one photograph.

        Args:
            served: The model.
            rates: As `ServedModel.rates` returned.
            image: As `open` returned.

        Raises:
            Refusal: Too much is under way, or the model gives no finite number.
        """
        with self.service.place():
            pixels = await asyncio.to_thread(served.transform, image)
            return await self.service.on_worker(lambda: self._look(served, rates, image, pixels))

    async def reasons(self, served: ServedModel, rates: Rates, image: Image.Image) -> Explanation:
        """Why: evidence, attention and what each depth adds; takes some 40 times as long as the answer.

        Raises:
            Refusal: Too much is under way.
        """

        def compute() -> Explanation:
            served.model.keep_rate = rates
            return explain(served.model, image)

        with self.service.place():
            return await self.service.on_worker(compute)

    def _look(self, served: ServedModel, rates: Rates, image: Image.Image, pixels: torch.Tensor) -> Look:
        began = time.perf_counter()
        times = []
        while True:
            start = time.perf_counter()
            answer = served.answers(rates, [pixels])[0]
            times.append(time.perf_counter() - start)
            if len(times) == _TIMINGS or time.perf_counter() - began > _TIMING_SECONDS:
                break
        if not bool(torch.isfinite(answer[:-1]).all()):
            raise Refusal(500, "not_finite", "the model gave no finite probabilities for this image")
        ranked = Ranked.of(served, answer, TOP)
        view, found = stages(served.model, image)
        return Look(image, ranked, 1000 * median(times), self._price(served, rates, pixels), view, found)

    def _price(self, served: ServedModel, rates: Rates, pixels: torch.Tensor) -> Price:
        if served.model.pads:  # the cost depends on the image: it is that of this photograph
            gmacs = _count_of(served, rates, pixels)
            return Price(gmacs, gmacs / (_count_of(served, 1.0, pixels) if served.keep_rate_is_free else gmacs))
        gmacs = self._gmacs(served, rates)
        return Price(gmacs, gmacs / (self._gmacs(served, 1.0) if served.keep_rate_is_free else gmacs))


def _count(served: ServedModel, rates: Rates) -> float:
    served.model.keep_rate = rates
    return served.cost.gmacs if rates == served.keep_rate else cost(served.model).gmacs


def _count_of(served: ServedModel, rates: Rates, pixels: torch.Tensor) -> float:
    served.model.keep_rate = rates
    try:
        return cost(served.model, images=served.normalized([pixels])).gmacs
    finally:
        served.model.keep_rate = served.keep_rate
