"""An engine that learns in the workers of a Ray cluster, one task per worker, and evaluates here."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from continual.cluster import PROCESS_BYTES, RegistryProbe, ResourceRequest, node_resources, publish_probe, ray_cluster
from continual.errors import EngineError
from continual.streams.estimate import estimate_memory
from continual.streams.ray.worker import WorkerConfig
from continual.streams.ray.worker_pool import WorkerPool
from continual.streams.stream_run import StreamRun
from registry import normalized_backbone_name

NO_ROOM_HINT = (
    "Give smaller --worker-cpus, --worker-gpus or --worker-memory, a smaller batch_size or max_length, "
    "budget: {checkpointing: true}, a backbone in 8 or 4 --bits, or larger nodes"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayEngine:
    """Learns on the workers of a Ray cluster.

    Attributes:
        address: The address of the cluster; None takes the one that runs on this machine, or starts one that ends with
            the run.
        workers: The maximal number of workers; None takes as many as fit. There are never more than tasks.
        worker_cpus: Cores, and threads, of each worker.
        worker_gpus: GPUs of each worker; None takes 1 where the driver's backbone is on a GPU, else 0.
        worker_memory: GiB of the node's memory reserved for each worker; None takes an estimate.
    """

    address: str | None = None
    workers: int | None = None
    worker_cpus: int = 1
    worker_gpus: float | None = None
    worker_memory: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("worker_cpus", 1), ("worker_gpus", 0), ("worker_memory", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise EngineError(f"engine 'ray': {name} is {value}; allowed: {least} or more")

    @contextmanager
    def prepare(self, run: StreamRun) -> Iterator[Callable[[], None]]:
        """Connect to the cluster, start the workers, and yield the function that learns; see `Engine.prepare`.

        Raises:
            EngineError: The cluster cannot be reached, has no room for a worker, or a worker cannot start.
        """
        learned = {position.number for position in run.positions() if position.delta}
        request = self._worker_request(run)
        with publish_probe(run.registry) as probe:
            config = _worker_config(run, request, probe)
            with ray_cluster(self.address):
                capacity = request.require_capacity(node_resources(), 1, what="worker", advice=NO_ROOM_HINT)
                pool = WorkerPool(run, ray.put(config), request)
                try:
                    if count := self._worker_count(capacity, tasks=len(run.loaded.keys() - learned)):
                        pool.start_workers(count)
                    yield pool.run_until_done
                finally:
                    pool.shutdown()

    def _worker_count(self, capacity: int, *, tasks: int) -> int:
        count = min(self.workers or capacity, tasks)
        if count > capacity:
            log.warning("%d workers are asked for; the cluster has room for %d, and so many learn", count, capacity)
        return min(count, capacity)

    def _worker_request(self, run: StreamRun) -> ResourceRequest:
        gpus = self.worker_gpus if self.worker_gpus is not None else float(run.backbone.device.type == "cuda")
        if self.worker_memory is not None:
            memory = int(self.worker_memory * (1 << 30))
        else:  # on a GPU, weights and activations are in its memory
            memory = PROCESS_BYTES + estimate_memory(run.backbone, () if gpus else run.loaded.values())
        return ResourceRequest(self.worker_cpus, gpus, memory)


def _worker_config(run: StreamRun, request: ResourceRequest, probe: RegistryProbe) -> WorkerConfig:
    backbone, (registry, blobs) = run.backbone, run.registry.urls()
    return WorkerConfig(
        registry=registry,
        blobs=blobs,
        registry_probe=probe,
        name=backbone.name,
        backbone_source=normalized_backbone_name(backbone.name),
        fingerprint=backbone.fingerprint,
        pooling=backbone.pooling,
        device="cuda" if request.gpus else "cpu",
        dtype=str(backbone.dtype).removeprefix("torch."),
        threads=int(request.cpus),
        stream=run.stream,
        loaded=run.loaded,
        max_attempts=run.max_attempts,
        migrated_from=run.migrated_from,
    )
