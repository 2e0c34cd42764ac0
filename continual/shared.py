"""The proof that another process has found the registry that is meant, and its blobs."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from uuid import uuid4

from continual.errors import BlobError, InputError
from registry import Registry, redact, registry_identity

PROBE_REFRESH_SECONDS = 1200.0  # seconds after which a probe is put again, before it is old enough to be collected

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegistryProbe:
    """identity: what the registry is known by · probe: the digest of a blob that lies with its blobs, and nowhere
    else.
    """

    identity: str
    probe: str

    def verify(self, registry: Registry) -> None:
        """Raises InputError where this is another registry, or other blobs lie beside it."""
        at = redact(str(registry.engine.url))
        if registry_identity(registry) != self.identity:
            raise InputError(
                f"{at} is another registry here than where the command was given; put it where all nodes reach it: "
                "PostgreSQL, or a file system that they share"
            )
        if not registry.blobs.exists(self.probe):
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
