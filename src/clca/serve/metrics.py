"""Metrics for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clca.serve.root_path import path_below

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_PATHS = ("/v1/predict", "/v1/models", "/health", "/health/live", "/health/ready", "/metrics")


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("clca_requests", "Requests.", ("path", "code"), registry=registry)
        self.seconds = Histogram(
            "clca_request_seconds", "From the first byte of a request to the last of its answer.", ("path",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.images = Counter("clca_images", "Images by model and outcome.", ("model", "outcome"), registry=registry)
        self.batches = Histogram(
            "clca_batch_images", "Images a batch.", ("model",), buckets=_BATCHES, registry=registry
        )
        self.compute = Histogram(
            "clca_batch_seconds", "Time of the model for a batch.", ("model",), buckets=_SECONDS, registry=registry
        )
        self._under_way = Gauge("clca_images_under_way", "Images uploaded, decoded, waiting.", registry=registry)
        self._queue = Gauge("clca_queue_images", "Images decoded and waiting for the model.", registry=registry)

    def watch(self, under_way: Callable[[], int], queue: Callable[[], int]) -> None:
        """Ask for these numbers whenever they are read."""
        self._under_way.set_function(under_way)
        self._queue.set_function(queue)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class CountRequests:
    """ASGI middleware: counts requests by code, and how long they took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = path_below(scope)
        path = path if path in _PATHS else "other"  # what clients invent makes no series
        began, code = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.requests.labels(path, str(code)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)
