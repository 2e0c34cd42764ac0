"""The server's metrics for Prometheus: requests, rows by task, latencies, the queue, cached deltas."""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from continual.inference.delta_cache import cache_key
from continual.inference.predictor import Prediction
from continual.serve.core.batcher import DynamicBatcher
from continual.serve.core.champions import ChampionServer, Embedding, InferenceRequest, ServedAnswer

WINDOW_SECONDS = 60  # of `RollingCounter`
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # upper bounds, seconds
NO_TASK = ""  # the label `task` of inputs on which the router abstained


class RollingCounter:
    """Counts per second over the last minute.

    Args:
        clock: Returns the present moment in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start = clock, clock()
        self._counts: dict[int, int] = {}  # by second, oldest first

    @property
    def uptime(self) -> float:
        """Seconds since the counter was made."""
        return self._clock() - self._start

    def add(self, count: int) -> None:
        """Add to the count of the present second."""
        now = int(self._clock())
        self._counts[now] = self._counts.get(now, 0) + count
        while (oldest := next(iter(self._counts))) < now - WINDOW_SECONDS:
            del self._counts[oldest]

    def by_second(self) -> list[int]:
        """Return the counts of the last 60 full seconds, oldest first; the present second is not among them."""
        now = int(self._clock())
        return [self._counts.get(second, 0) for second in range(now - WINDOW_SECONDS, now)]


class ServerMetrics:
    """The metrics of one server.

    Attributes:
        recent: Inputs answered per second over the last minute.
    """

    def __init__(self) -> None:
        self.recent = RollingCounter()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "continual_requests", "Requests, by operation and status", ["path", "status"], registry=self._registry
        )
        self._rows = Counter(
            "continual_rows", "Inputs, by task and outcome", ["task", "outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "continual_row_seconds",
            "From request to answer, by task",
            ["task"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )

    def watch(self, server: ChampionServer, batcher: DynamicBatcher[InferenceRequest, ServedAnswer]) -> None:
        """Also export the queue of `batcher` and the cached deltas of `server`, read at each scrape."""
        self._registry.register(_StateCollector(server, batcher))

    def count_request(self, path: str, status: int) -> None:
        """Count one request, by the path of its route and the status of its response."""
        self._requests.labels(path, str(status)).inc()

    def count_answers(self, answers: Sequence[ServedAnswer], seconds: float) -> None:
        """Count the answers to one request, which took `seconds`."""
        self.recent.add(len(answers))
        for answer in answers:
            if isinstance(answer, Embedding):
                continue
            outcome = "answered"
            if isinstance(answer, Prediction) and (answer.abstained or answer.error):
                outcome = "abstained" if answer.abstained else "failed"
            self._rows.labels(answer.task or NO_TASK, outcome).inc()
            self._seconds.labels(answer.task or NO_TASK).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _StateCollector(Collector):
    """Gauges of the queue and of the cached deltas, read when they are scraped."""

    def __init__(self, server: ChampionServer, batcher: DynamicBatcher[InferenceRequest, ServedAnswer]) -> None:
        self._server, self._batcher = server, batcher

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "continual_waiting_rows", "Inputs that wait or whose answers are being written", value=len(self._batcher)
        )
        yield GaugeMetricFamily(
            "continual_wait_seconds", "How long one more would wait", value=self._batcher.estimated_wait
        )
        places = self._server.places
        resident = GaugeMetricFamily(
            "continual_resident", "Whether a task's delta lies there", labels=["task", "place"]
        )
        for task, champion in self._server.champions.items():
            for place, keys in places.items():
                resident.add_metric([task, place], cache_key(champion) in keys)
        yield resident
