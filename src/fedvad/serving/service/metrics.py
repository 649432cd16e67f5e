"""Counters and times of one service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from fedvad._version import __version__

METRICS_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ServiceMetrics:
    """A registry of its own, so that two services in one process do not add up."""

    def __init__(self, in_flight: Callable[[], int], uploads: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "fedvad_http_requests", "Answered requests.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "fedvad_http_request_seconds",
            "From the first byte of a request to the first of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter(
            "fedvad_images", "Image files received.", ("outcome",), registry=registry
        )
        self.image_seconds = Histogram(
            "fedvad_image_seconds",
            "Decoding and scoring of one image.",
            buckets=_SECONDS,
            registry=registry,
        )
        Gauge(
            "fedvad_requests_in_flight", "Requests waiting or worked on.", registry=registry
        ).set_function(in_flight)
        Gauge(
            "fedvad_uploads_in_progress", "Requests being received.", registry=registry
        ).set_function(uploads)
        Gauge("fedvad_build", "Constant 1.", ("version",), registry=registry).labels(
            __version__
        ).set(1)
        ProcessCollector(registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def image(self, outcome: str) -> None:
        """Count one image file: normal, anomalous, unjudged, unreadable or too_large."""
        self._images.labels(outcome).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
