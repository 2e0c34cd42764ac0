"""What `/metrics` tells Prometheus: requests, rows by task, how long they took, what waits, and where deltas lie."""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from continual.inference.delta_cache import cache_key
from continual.inference.predictor import Prediction
from continual.serve.core.batcher import DynamicBatcher
from continual.serve.core.champions import ChampionServer, Embedding, InferenceRequest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ABSTAINED = ""  # in place of a task, of what belongs to none
WINDOW_SECONDS = 60  # of the inputs that were answered of late


class ServerMetrics:
    """The numbers of one server. recent: how many inputs were answered of late."""

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
            buckets=SECONDS,
            registry=self._registry,
        )

    def watch(self, serving: ChampionServer, batcher: DynamicBatcher[InferenceRequest, Prediction | Embedding]) -> None:
        """Tell what these hold at the moment of asking, too."""
        self._registry.register(_Held(serving, batcher))

    def count_request(self, path: str, status: int) -> None:
        """Count a request, by its operation."""
        self._requests.labels(path, str(status)).inc()

    def count_answers(self, answers: Sequence[Prediction | Embedding], seconds: float) -> None:
        """Count the answers of one request, which took so long."""
        self.recent.add(len(answers))
        for own in answers:
            if isinstance(own, Embedding):
                continue
            outcome = "abstained" if own.abstained else "failed" if own.error else "answered"
            self._rows.labels(own.task or ABSTAINED, outcome).inc()
            self._seconds.labels(own.task or ABSTAINED).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Held(Collector):
    def __init__(
        self, serving: ChampionServer, batcher: DynamicBatcher[InferenceRequest, Prediction | Embedding]
    ) -> None:
        self._serving, self._batcher = serving, batcher

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("continual_waiting_rows", "Inputs that wait", value=len(self._batcher))
        yield GaugeMetricFamily(
            "continual_wait_seconds", "How long one more would wait", value=self._batcher.estimated_wait
        )
        places = self._serving.places
        held = GaugeMetricFamily("continual_resident", "Whether a task's delta lies there", labels=["task", "place"])
        for task, champion in self._serving.champions.items():
            for place, names in places.items():
                held.add_metric([task, place], cache_key(champion) in names)
        yield held


class RollingCounter:
    """Counts by the second, of which those of the last minute are kept."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._counts: dict[int, int] = {}

    @property
    def uptime(self) -> float:
        """Seconds since the count began."""
        return self._clock() - self._began

    def add(self, count: int) -> None:
        """Count what came at this moment."""
        now = int(self._clock())
        self._counts[now] = self._counts.get(now, 0) + count
        while (oldest := next(iter(self._counts))) < now - WINDOW_SECONDS:
            del self._counts[oldest]

    def by_second(self) -> list[int]:
        """The counts of the last 60 full seconds, oldest first: the second that still runs is not among them."""
        now = int(self._clock())
        return [self._counts.get(second, 0) for second in range(now - WINDOW_SECONDS, now)]
