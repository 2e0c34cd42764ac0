"""Read the signatures of learned tasks from the registry and its blobs."""

import logging
from collections.abc import Collection

from continual.backbones.backbone import Backbone
from continual.errors import BackboneError
from continual.features.signature import Signature
from registry import BackboneRecord, Registry, StoredSignature
from registry.errors import BlobError

log = logging.getLogger(__name__)


def stored_signatures(registry: Registry, backbone: Backbone | BackboneRecord) -> dict[str, Signature]:
    """The signature of every task in a backbone's frozen features.

    Raises BackboneError where a signature was taken of features that were pooled otherwise.
    """
    found = {stored.task: read_signature(registry, stored) for stored in signature_records(registry, backbone)}
    return {task: own for task, own in found.items() if own}


def read_signature(registry: Registry, stored: StoredSignature) -> Signature | None:
    """A signature, or None and a warning where it cannot be read."""
    try:
        return Signature.from_bytes(registry.blobs.get(stored.digest))
    except BlobError as error:
        log.warning("task %s cannot be routed to or compared with: %s", stored.task, error)
        return None


def signature_records(
    registry: Registry, backbone: Backbone | BackboneRecord, *, deltas: Collection[str] | None = None
) -> tuple[StoredSignature, ...]:
    """Where the signatures of the tasks on a backbone lie. Raises BackboneError as `stored_signatures` does.

    deltas: those whose signatures are wanted, where they are not the champions; one without is left out.
    """
    found = registry.signatures(backbone.fingerprint, deltas=deltas)
    for stored in found:
        if stored.pooling != backbone.pooling:
            raise BackboneError(
                f"the signature of task {stored.task!r} is of {stored.pooling}-pooled features, and backbone "
                f"{backbone.name!r} pools by {backbone.pooling}; load it as it was, or use another home"
            )
    return found
