"""Connect to a Ray cluster, count processes that fit on it, and verify that nodes share a registry.

Needs the extra `ray`.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from threading import Event
from uuid import uuid4

import ray

from continual.errors import EngineError
from registry import Registry, StoreMismatch, redact, registry_identity
from registry.errors import BlobError
from tasks.errors import InputError

log = logging.getLogger(__name__)

# Of a cluster that is started here: no usage statistics, and workers with the priority of this process.
LOCAL_CLUSTER_ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster for the duration of the block; an open connection is used and stays open.

    Args:
        address: host:port of a cluster, or `local` to start one for the block. Without an address it is the cluster
            named by RAY_ADDRESS or running on this machine, else one started for the block.

    Raises:
        EngineError: There is no such cluster, or the address is one of Ray Client.
    """
    if ray.is_initialized():
        yield
        return
    if address and address.startswith("ray://"):
        raise EngineError(f"address {address!r} is of Ray Client; run on a node of the cluster, and give host:port")
    for name, value in LOCAL_CLUSTER_ENV.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,  # a running cluster refuses False
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS') or 'this machine'} can be used: {reason} "
            "Start one (`ray start --head`), or leave --address out for one of this machine alone"
        ) from error
    try:
        with redirect_stdout(sys.stderr):  # Ray prints which workers died; stdout is for the command's result alone
            yield
    finally:
        ray.shutdown()


# Resources: how many processes fit.

PROCESS_BYTES = 1 << 30  # of a process that has loaded PyTorch and transformers, but no backbone
Resources = Mapping[str, float]  # by Ray's names: "CPU", "GPU", "memory" in bytes


def node_resources() -> list[Resources]:
    """Return the total resources of each node that is alive, whether in use or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of one process, all on the same node.

    Attributes:
        cpus: Number of CPUs, may be a fraction.
        gpus: Number of GPUs, may be a fraction.
        memory: Bytes of memory.
    """

    cpus: float
    gpus: float
    memory: int = 0

    def fits_on(self, node: Resources) -> int:
        """Return how many such processes fit on a node.

        >>> ResourceRequest(cpus=0.2, gpus=0, memory=1 << 30).fits_on({"CPU": 1.0, "memory": 6 * 2.0**30})
        5
        """
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in amounts.items() if amount)

    def require_capacity(self, nodes: Sequence[Resources], count: int, *, what: str, advice: str) -> int:
        """Return how many such processes fit on the nodes together, at least `count`.

        Args:
            nodes: Resources of each node.
            count: Number of processes that are needed.
            what: Noun for a process in the error, such as "worker".
            advice: End of the error: the settings to change.

        Raises:
            EngineError: Fewer than `count` fit.
        """
        if (capacity := sum(map(self.fits_on, nodes))) >= count:
            return capacity
        raise EngineError(
            f"the cluster has room for {capacity} {what}s with {_describe(self.cpus, self.gpus, self.memory)} each, "
            f"and {count} {'is' if count == 1 else 'are'} needed; its nodes have "
            f"{'; '.join(_describe(*_amounts(node)) for node in nodes) or 'nothing'}. {advice}"
        )


def _amounts(node: Resources) -> tuple[float, float, float]:
    return node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)


def _describe(cpus: float, gpus: float, memory: float) -> str:
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / (1 << 30):.1f} GiB"


# Shared storage: whether every node reaches the same database and blobs.

PROBE_REFRESH_SECONDS = 1200.0  # a probe is written again before it is old enough to be garbage-collected


@dataclass(frozen=True)
class RegistryProbe:
    """Evidence by which another process verifies that it opened the same registry with the same blobs.

    Attributes:
        identity: Identity of the registry's database.
        blob_digest: Digest of a random blob that was stored with the registry's blobs, and nowhere else.
    """

    identity: str
    blob_digest: str

    def verify(self, registry: Registry) -> None:
        """Check that `registry` is the probed one.

        Raises:
            InputError: It is another database, or has another blob store.
        """
        url = redact(str(registry.engine.url))
        try:
            identity = registry_identity(registry)
        except StoreMismatch:  # a registry without an identity, which does not get one beside another's blobs
            identity = ""
        if identity != self.identity:
            raise InputError(
                f"{url} is another registry here than where the command was given; put it where all nodes reach it: "
                "PostgreSQL, or a file system that they share"
            )
        if not registry.blobs.exists(self.blob_digest):
            raise InputError(
                f"{redact(registry.blobs.url)} does not hold the blobs of the registry at {url} here; put them where "
                "all nodes reach them: an object store (CONTINUAL_BLOBS_URL), or a file system that they share"
            )


@contextmanager
def publish_probe(registry: Registry) -> Iterator[RegistryProbe]:
    """Store a random blob for the duration of the block, and yield the probe that names it.

    Raises:
        InputError: No other process can reach the registry, such as one in memory.
        StoreMismatch: The blob store belongs to another registry.
    """
    registry.urls()
    registry.claim_store()  # before the probe, which would look like a blob of another registry in a new one
    data, ended = uuid4().bytes, Event()
    digest = registry.blobs.put(data)

    def refresh() -> None:
        while not ended.wait(PROBE_REFRESH_SECONDS):
            try:
                registry.blobs.put(data)
            except BlobError as error:
                log.warning("a process that starts now may not find the blobs: %s", error)

    try:
        with ThreadPoolExecutor(1, "probe") as executor:
            executor.submit(refresh)
            try:
                yield RegistryProbe(registry_identity(registry), digest)
            finally:
                ended.set()
    finally:
        with suppress(BlobError):  # a blob that stays behind is garbage-collected
            if blob := registry.blobs.stat(digest):
                registry.blobs.delete(blob, put_before=None)
