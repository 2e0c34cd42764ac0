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
    """Return the readable signatures of the tasks on a backbone, by task.

    Raises:
        BackboneError: A signature is of features with another pooling than the backbone's.
    """
    signatures = {record.task: read_signature(registry, record) for record in signature_records(registry, backbone)}
    return {task: signature for task, signature in signatures.items() if signature}


def read_signature(registry: Registry, record: StoredSignature) -> Signature | None:
    """Read the blob of a signature; where it cannot be read, log a warning and return None."""
    try:
        return Signature.from_bytes(registry.blobs.get(record.digest))
    except BlobError as error:
        log.warning("task %s cannot be routed to or compared with: %s", record.task, error)
        return None


def signature_records(
    registry: Registry, backbone: Backbone | BackboneRecord, *, deltas: Collection[str] | None = None
) -> tuple[StoredSignature, ...]:
    """Return the records of the signatures on a backbone, without reading their blobs.

    Args:
        registry: The registry.
        backbone: The backbone whose frozen features they are statistics of.
        deltas: Names of the deltas whose signatures are returned; None for the champions. Deltas without a signature
            are left out.

    Raises:
        BackboneError: A signature is of features with another pooling than the backbone's.
    """
    records = registry.signatures(backbone.fingerprint, deltas=deltas)
    for record in records:
        if record.pooling != backbone.pooling:
            raise BackboneError(
                f"the signature of task {record.task!r} is of {record.pooling}-pooled features, and backbone "
                f"{backbone.name!r} pools by {backbone.pooling}; load it as it was, or use another home"
            )
    return records
