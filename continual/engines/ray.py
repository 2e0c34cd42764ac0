"""The engine that learns by the workers of a Ray cluster, one task each, and measures here."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from continual.cluster import connected, nodes
from continual.engines.crew import Crew
from continual.engines.worker import Given
from continual.errors import EngineError
from continual.estimate import memory
from continual.job import Job
from continual.room import PROCESS, Share
from continual.shared import Proof, proof
from registry import known_as

ADVICE = (
    "Give smaller --worker-cpus, --worker-gpus or --worker-memory, a smaller batch_size or max_length, "
    "budget: {checkpointing: true}, a backbone in 8 or 4 --bits, or larger nodes"
)

log = logging.getLogger(__name__)


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
        with proof(job.registry) as known:
            given = _given(job, share, known)
            with connected(self.address):
                room = share.require_room(nodes(), 1, what="worker", advice=ADVICE)
                crew = Crew(job, ray.put(given), share)
                try:
                    if count := self._count(room, tasks=len(job.loaded.keys() - learned)):
                        crew.gather(count)
                    yield crew.learn
                finally:
                    crew.end()

    def _count(self, room: int, *, tasks: int) -> int:
        wanted = min(self.workers or room, tasks)
        if wanted > room:
            log.warning("%d workers are asked for; the cluster has room for %d, and so many learn", wanted, room)
        return min(wanted, room)

    def _share(self, job: Job) -> Share:
        gpus = self.worker_gpus if self.worker_gpus is not None else float(job.backbone.device.type == "cuda")
        if self.worker_memory is not None:
            taken = int(self.worker_memory * (1 << 30))
        else:  # what is learned on a GPU lies in its memory
            taken = PROCESS + memory(job.backbone, () if gpus else job.loaded.values())
        return Share(self.worker_cpus, gpus, taken)


def _given(job: Job, share: Share, known: Proof) -> Given:
    backbone, (registry, blobs) = job.backbone, job.registry.urls()
    return Given(
        registry=registry,
        blobs=blobs,
        proof=known,
        name=backbone.name,
        where=known_as(backbone.name),
        fingerprint=backbone.fingerprint,
        pooling=backbone.pooling,
        device="cuda" if share.gpus else "cpu",
        dtype=str(backbone.dtype).removeprefix("torch."),
        threads=int(share.cpus),
        stream=job.stream,
        loaded=job.loaded,
        most=job.most,
        moved=job.moved,
    )
