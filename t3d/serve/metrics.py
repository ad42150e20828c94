"""What the server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from t3d.serve.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server."""

    def __init__(self, engine: Engine, models: list[str]) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "t3d_requests", "Requests that were answered.", ["path", "status"], **own
        )
        self._seconds = Histogram(
            "t3d_request_seconds",
            "Time from a request's headers to its answer's end.",
            ["path"],
            buckets=_SECONDS,
            **own,
        )
        self._first = Histogram(
            "t3d_first_text_seconds",
            "Time from a request's headers to the first text.",
            ["model"],
            buckets=_SECONDS,
            **own,
        )
        names = ["model"]
        self._gone = Counter("t3d_disconnects", "Clients that went away unanswered.", **own)
        self._prompt = Counter("t3d_prompt_tokens", "Prompt tokens.", names, **own)
        self._response = Counter("t3d_response_tokens", "Response tokens.", names, **own)
        self._passes = Counter("t3d_passes", "Forward passes of all answers.", names, **own)
        running = Gauge("t3d_running", "Answers that are being decoded.", names, **own)
        waiting = Gauge("t3d_waiting", "Answers that wait for a slot.", names, **own)
        for name in models:
            running.labels(name).set_function(lambda name=name: engine.num_running(name))
            waiting.labels(name).set_function(lambda name=name: engine.num_waiting(name))
            # Counters are there from the start, so that their first increase is seen.
            for counter in (self._prompt, self._response, self._passes):
                counter.labels(name)

    def count(self, path: str, record: dict[str, Any]) -> None:
        """Count one request.

        Args:
            path: the route, whatever stands in its place.
            record: what the log says of it.
        """
        self._requests.labels(path, str(record["status"])).inc()
        self._seconds.labels(path).observe(record["seconds"])
        if record["status"] == GONE:
            self._gone.inc()
        if "passes" in record:
            model = record["model"]
            self._prompt.labels(model).inc(record["prompt_tokens"])
            self._response.labels(model).inc(record["response_tokens"])
            self._passes.labels(model).inc(record["passes"])
            if "first_text_seconds" in record:
                self._first.labels(model).observe(record["first_text_seconds"])


GONE = 499
"""Status in log and metrics where the client went away before the answer's end."""
