"""The engine that learns by the workers of a Ray cluster, one task each, and measures here."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from continual.cluster import PROCESS_BYTES, RegistryProbe, ResourceRequest, node_resources, publish_probe, ray_cluster
from continual.errors import EngineError
from continual.streams.estimate import estimate_memory
from continual.streams.job import StreamRun
from continual.streams.ray.worker import WorkerConfig
from continual.streams.ray.worker_pool import WorkerPool
from registry import normalized_backbone_name

NO_ROOM_HINT = (
    "Give smaller --worker-cpus, --worker-gpus or --worker-memory, a smaller batch_size or max_length, "
    "budget: {checkpointing: true}, a backbone in 8 or 4 --bits, or larger nodes"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayEngine:
    """Learns on the cluster at `address`, or on the one that runs here, or on one of this machine that ends with it.

    workers: how many at most; as many as the nodes hold unless said otherwise, and never more than there are tasks ·
    worker_cpus: cores of each, and its threads · worker_gpus: of each, 1 where the driver has one · worker_memory: GiB
    of its node's memory that are set aside for each, estimated unless said otherwise.
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
    def prepare(self, job: StreamRun) -> Iterator[Callable[[], None]]:
        """See `Engine.ready`."""
        learned = {position.number for position in job.positions() if position.delta}
        share = self._share(job)
        with publish_probe(job.registry) as known:
            given = _given(job, share, known)
            with ray_cluster(self.address):
                room = share.require_capacity(node_resources(), 1, what="worker", advice=NO_ROOM_HINT)
                crew = WorkerPool(job, ray.put(given), share)
                try:
                    if count := self._worker_count(room, tasks=len(job.loaded.keys() - learned)):
                        crew.start_workers(count)
                    yield crew.run_until_done
                finally:
                    crew.shutdown()

    def _worker_count(self, room: int, *, tasks: int) -> int:
        wanted = min(self.workers or room, tasks)
        if wanted > room:
            log.warning("%d workers are asked for; the cluster has room for %d, and so many learn", wanted, room)
        return min(wanted, room)

    def _share(self, job: StreamRun) -> ResourceRequest:
        gpus = self.worker_gpus if self.worker_gpus is not None else float(job.backbone.device.type == "cuda")
        if self.worker_memory is not None:
            taken = int(self.worker_memory * (1 << 30))
        else:  # what is learned on a GPU lies in its memory
            taken = PROCESS_BYTES + estimate_memory(job.backbone, () if gpus else job.loaded.values())
        return ResourceRequest(self.worker_cpus, gpus, taken)


def _given(job: StreamRun, share: ResourceRequest, known: RegistryProbe) -> WorkerConfig:
    backbone, (registry, blobs) = job.backbone, job.registry.urls()
    return WorkerConfig(
        registry=registry,
        blobs=blobs,
        registry_probe=known,
        name=backbone.name,
        backbone_source=normalized_backbone_name(backbone.name),
        fingerprint=backbone.fingerprint,
        pooling=backbone.pooling,
        device="cuda" if share.gpus else "cpu",
        dtype=str(backbone.dtype).removeprefix("torch."),
        threads=int(share.cpus),
        stream=job.stream,
        loaded=job.loaded,
        max_attempts=job.max_attempts,
        migrated_from=job.migrated_from,
    )
