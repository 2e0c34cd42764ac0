"""A connection to a cluster of Ray. Needs the extra `ray`."""

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
from registry import Registry, redact, registry_identity
from registry.errors import BlobError
from tasks.errors import InputError

# Of a cluster that is started here: it tells nobody, and its workers are as urgent as learning in this process is.
LOCAL_CLUSTER_ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
PROCESS_BYTES = 1 << 30  # bytes of a process that has PyTorch and transformers loaded, and no backbone yet
Resources = Mapping[str, float]
PROBE_REFRESH_SECONDS = 1200.0  # seconds after which a probe is put again, before it is old enough to be collected
log = logging.getLogger(__name__)


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`; one that was open before stays open.

    Without an address that is the one that RAY_ADDRESS names or that runs on this machine, else one that begins and
    ends with the block; `local` is always such a one. Raises EngineError where none can be had.
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
            include_dashboard=False if address == "local" else None,  # a cluster that runs already says no to it
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS') or 'this machine'} can be used: {reason} "
            "Start one (`ray start --head`), or leave --address out for one of this machine alone"
        ) from error
    try:
        with redirect_stdout(sys.stderr):  # Ray prints there which workers died, where our answer is to stand alone
            yield
    finally:
        ray.shutdown()


def node_resources() -> list[Resources]:
    """What each node of the cluster has that is alive, whoever uses it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class ResourceRequest:
    """What a process takes of its node; memory in bytes."""

    cpus: float
    gpus: float
    memory: int = 0

    def fits_on(self, node: Resources) -> int:
        """How many such processes a node of these resources holds.

        >>> Share(cpus=0.2, gpus=0, memory=1 << 30).times({"CPU": 1.0, "memory": 6 * 2.0**30})
        5
        """
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount)

    def require_capacity(self, nodes: Sequence[Resources], count: int, *, what: str, advice: str) -> int:
        """How many of them these nodes hold, none of which lies on two. Raises EngineError where that is below `count`.

        what: they are called · advice: what to give instead.
        """
        if (room := sum(map(self.fits_on, nodes))) >= count:
            return room
        raise EngineError(
            f"the cluster has room for {room} {what}s with {_said(self.cpus, self.gpus, self.memory)} each, and "
            f"{count} {'is' if count == 1 else 'are'} needed; its nodes have "
            f"{'; '.join(_said(*_amounts(node)) for node in nodes) or 'nothing'}. {advice}"
        )


def _amounts(node: Resources) -> tuple[float, float, float]:
    return node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)


def _said(cpus: float, gpus: float, memory: float) -> str:
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / (1 << 30):.1f} GiB"


@dataclass(frozen=True)
class RegistryProbe:
    """identity: what the registry is known by · probe: the digest of a blob that lies with its blobs, and nowhere
    else.
    """

    identity: str
    blob_digest: str

    def verify(self, registry: Registry) -> None:
        """Raises InputError where this is another registry, or other blobs lie beside it."""
        at = redact(str(registry.engine.url))
        if registry_identity(registry) != self.identity:
            raise InputError(
                f"{at} is another registry here than where the command was given; put it where all nodes reach it: "
                "PostgreSQL, or a file system that they share"
            )
        if not registry.blobs.exists(self.blob_digest):
            raise InputError(
                f"{redact(registry.blobs.url)} does not hold the blobs of the registry at {at} here; put them where "
                "all nodes reach them: an object store (CONTINUAL_BLOBS_URL), or a file system that they share"
            )


@contextmanager
def publish_probe(registry: Registry) -> Iterator[RegistryProbe]:
    """What others can prove while the block runs. Raises InputError for a registry that no other process can reach."""
    registry.urls()
    data, ended = uuid4().bytes, Event()
    digest = registry.blobs.put(data)

    def keep() -> None:
        while not ended.wait(PROBE_REFRESH_SECONDS):
            try:
                registry.blobs.put(data)
            except BlobError as error:
                log.warning("who begins now may not find the blobs: %s", error)

    try:
        with ThreadPoolExecutor(1, "probe") as aside:
            aside.submit(keep)
            try:
                yield RegistryProbe(registry_identity(registry), digest)
            finally:
                ended.set()
    finally:
        with suppress(BlobError):  # what is left is collected
            if blob := registry.blobs.stat(digest):
                registry.blobs.delete(blob, put_before=None)
