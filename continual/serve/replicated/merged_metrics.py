"""Merging the replicas' metrics and loads into one response."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from continual.serve.api.status import LoadStatus
from continual.serve.replicated.replica import ReplicaResponse


class _MergedCollector(Collector):
    def __init__(self, responses: Sequence[ReplicaResponse]) -> None:
        self._responses = responses

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for response in self._responses:
            for family in text_string_to_metric_families(response.body.decode()):
                metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {"replica": response.replica, **sample.labels}
                    metric.samples.append(sample._replace(labels=labels))
        yield from merged.values()


def merge_metrics(responses: Sequence[ReplicaResponse]) -> bytes:
    """Return the metrics of all replicas in Prometheus' text format, with the replica's name as a label."""
    registry = CollectorRegistry()
    registry.register(_MergedCollector(responses))
    return generate_latest(registry)


def merge_load(responses: Sequence[ReplicaResponse]) -> bytes:
    """Merge the replicas' `LoadStatus`: mostly sums.

    `wait_seconds` is the shortest, since one more input would go there; `tasks` is the least and `seconds` the most.
    """
    loads = [LoadStatus.model_validate_json(response.body) for response in responses]
    merged = LoadStatus(
        backbone=loads[0].backbone,
        tasks=min(load.tasks for load in loads),
        waiting=sum(load.waiting for load in loads),
        wait_seconds=min(load.wait_seconds for load in loads),
        inputs_per_second=sum(load.inputs_per_second for load in loads),
        inputs_by_second=[sum(counts) for counts in zip(*(load.inputs_by_second for load in loads), strict=True)],
        on_device=sum(load.on_device for load in loads),
        in_memory=sum(load.in_memory for load in loads),
        seconds=max(load.seconds for load in loads),
    )
    return merged.model_dump_json().encode()


MERGED_PATHS: Mapping[str, Callable[[Sequence[ReplicaResponse]], bytes]] = {
    "/metrics": merge_metrics,
    "/v1/load": merge_load,
}
