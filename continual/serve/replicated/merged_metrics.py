"""What all replicas say, as one answer: numbers for Prometheus, each with its replica's name, and the load of all."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from continual.serve.api.status import LoadStatus
from continual.serve.replicated.replica import ReplicaResponse


class _Labelled(Collector):
    def __init__(self, answers: Sequence[ReplicaResponse]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for answer in self._answers:
            for found in text_string_to_metric_families(answer.body.decode()):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    labels = {"replica": answer.replica, **sample.labels}
                    family.samples.append(sample._replace(labels=labels))
        yield from families.values()


def merge_metrics(answers: Sequence[ReplicaResponse]) -> bytes:
    """The numbers of each replica, with its name in the label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Labelled(answers))
    return generate_latest(registry)


def merge_load(answers: Sequence[ReplicaResponse]) -> bytes:
    """The sums over all replicas; one more input would wait where the wait is shortest."""
    loads = [LoadStatus.model_validate_json(answer.body) for answer in answers]
    return (
        LoadStatus(
            backbone=loads[0].backbone,
            tasks=min(own.tasks for own in loads),
            waiting=sum(own.waiting for own in loads),
            wait_seconds=min(own.wait_seconds for own in loads),
            inputs_per_second=sum(own.inputs_per_second for own in loads),
            inputs_by_second=[sum(counts) for counts in zip(*(own.inputs_by_second for own in loads), strict=True)],
            on_device=sum(own.on_device for own in loads),
            in_memory=sum(own.in_memory for own in loads),
            seconds=max(own.seconds for own in loads),
        )
        .model_dump_json()
        .encode()
    )


MERGED_PATHS: Mapping[str, Callable[[Sequence[ReplicaResponse]], bytes]] = {
    "/metrics": merge_metrics,
    "/v1/load": merge_load,
}  # by path
