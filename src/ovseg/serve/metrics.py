"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The figures of one service, apart from those of others in the process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter("ovs_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "ovs_request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge("ovs_queue_length", "Requests that wait.", ["pipeline"], registry=self._registry)
        self._batches = Histogram(
            "ovs_batch_size",
            "Requests that a worker takes at once.",
            ["pipeline"],
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def watch_queue(self, pipeline: str, length: Callable[[], int]) -> None:
        """Report the length of a queue whenever the figures are asked for."""
        self._waiting.labels(pipeline).set_function(length)

    def count_batch(self, pipeline: str, size: int) -> None:
        """Count a batch."""
        self._batches.labels(pipeline).observe(size)

    def text(self) -> bytes:
        """Return the figures in Prometheus's text format."""
        return generate_latest(self._registry)
