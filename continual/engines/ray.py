"""The engine that learns by the workers of a Ray cluster, one task each, and measures here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from continual.cluster import connected
from continual.engines.crew import Crew
from continual.engines.room import PROCESS, Resources, Share
from continual.engines.worker import Given
from continual.errors import EngineError
from continual.estimate import memory
from continual.job import Job
from registry import Registry, identity, known_as

PROBE = b"what a worker must be able to read before it learns anything\n"


@dataclass(frozen=True)
class Ray:
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
    def ready(self, job: Job) -> Iterator[Callable[[], None]]:
        """See `Engine.ready`."""
        learned = {position.number for position in job.positions() if position.delta}
        share = self._share(job)
        with _probed(job.registry) as probe:
            given = _given(job, share, probe)
            with connected(self.address):
                room = share.require_room(_nodes())
                crew = Crew(job, ray.put(given), share)
                try:
                    if count := min(self.workers or room, len(job.loaded.keys() - learned)):
                        crew.gather(count)
                    yield crew.learn
                finally:
                    crew.end()

    def _share(self, job: Job) -> Share:
        gpus = self.worker_gpus if self.worker_gpus is not None else float(job.backbone.device.type == "cuda")
        if self.worker_memory is not None:
            taken = int(self.worker_memory * (1 << 30))
        else:  # what is learned on a GPU lies in its memory
            taken = PROCESS + memory(job.backbone, () if gpus else job.loaded.values())
        return Share(self.worker_cpus, gpus, taken)


def _given(job: Job, share: Share, probe: str) -> Given:
    backbone, (registry, blobs) = job.backbone, job.registry.urls()
    return Given(
        registry=registry,
        blobs=blobs,
        identity=identity(job.registry),
        probe=probe,
        name=backbone.name,
        where=known_as(backbone.name),
        fingerprint=backbone.fingerprint,
        pooling=backbone.pooling,
        device="cuda" if share.gpus else "cpu",
        dtype=str(backbone.dtype).removeprefix("torch."),
        threads=share.cpus,
        stream=job.stream,
        loaded=job.loaded,
        most=job.most,
    )


@contextmanager
def _probed(registry: Registry) -> Iterator[str]:
    """The digest of a blob that is there while the block runs."""
    registry.urls()  # raises for what no worker could reach
    digest = registry.blobs.put(PROBE)
    try:
        yield digest
    finally:
        if blob := registry.blobs.find(digest):
            registry.blobs.delete(blob, put_before=None)


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
