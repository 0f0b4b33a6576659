"""Counts and durations of requests, in the text format of Prometheus."""

import re
import time
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import Response
from starlette.types import Message, Send

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds


class Metrics:
    """The metrics of one server, with those of its process.

    Attributes: paths, counted by name, such as /api/heat/{id} (others count as "other"); pictures, ready and waiting,
    gauges.
    """

    def __init__(self) -> None:
        self.paths, self._registry = frozenset[str](), CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("ivt_requests", "Requests answered or refused.", ["path", "status"], **own)
        seconds = "Seconds from the head of a request to the end of its answer."
        self._seconds = Histogram("ivt_request_seconds", seconds, ["path"], buckets=_BUCKETS, **own)
        self.ready = Gauge("ivt_index_ready", "1 if the index can be searched, else 0.", **own)
        self.pictures = Gauge("ivt_index_pictures", "Pictures in the index.", **own)
        self.waiting = Gauge("ivt_model_waiting", "Requests that wait for the model.", **own)

    def watched(self, path: str, send: Send) -> Send:
        """Returns a `send` that counts the answer to a request of this path."""
        start, status = time.monotonic(), 0
        path = re.sub(r"/\d+$", "/{id}", path)
        path = path if path in self.paths else "other"  # clients must not be able to add paths

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                self._requests.labels(path, status).inc()
                self._seconds.labels(path).observe(time.monotonic() - start)
            await send(message)

        return watch

    def answer(self) -> Response:
        """Returns the answer to GET /metrics."""
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})
