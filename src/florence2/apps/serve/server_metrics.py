"""The metrics of a server, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ServerMetrics:
    """Counters, gauges and a histogram in a registry of their own, so that several servers fit in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "florence2_http_requests", "HTTP requests by route and status", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "florence2_http_request_seconds",
            "Time from the first byte of a request to the last of its response",
            ["route"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._predictions = Counter(
            "florence2_predictions",
            "Predictions by model, task and result",
            ["model", "task", "result"],
            registry=self.registry,
        )
        self._tokens = Counter("florence2_generated_tokens", "Generated tokens", ["model"], registry=self.registry)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended; 499 is the status of a client that left."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_prediction(self, model: str, task: str, num_tokens: int, *, has_error: bool) -> None:
        """Count a prediction; `task` is the name of a task, or `prompt`."""
        self._predictions.labels(model, task, "error" if has_error else "ok").inc()
        self._tokens.labels(model).inc(num_tokens)

    def watch(self, name: str, help_text: str, value: Callable[[], float], **labels: str) -> None:
        """Add a gauge that is read when the metrics are."""
        gauge = Gauge(name, help_text, list(labels), registry=self.registry)
        (gauge.labels(**labels) if labels else gauge).set_function(value)

    def watch_each(self, name: str, help_text: str, values: dict[str, Callable[[], float]]) -> None:
        """Add a gauge with one value for each model."""
        gauge = Gauge(name, help_text, ["model"], registry=self.registry)
        for model, value in values.items():
            gauge.labels(model=model).set_function(value)

    def text(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
