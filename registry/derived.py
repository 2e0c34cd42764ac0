"""Files derived from the signatures of a backbone's champions, such as a router: a cache beside the blobs.

A file's name holds the backbone and a digest of the signatures, so that one that is out of date is not found. Nothing
references it: it may be deleted at any time, and what is missing or damaged is computed again.
"""

import json
from collections.abc import Iterable
from hashlib import sha256

from registry.blobs import StoredBlob
from registry.records import StoredSignature
from registry.registry import Registry


def derived_name(backbone: str, signatures: Iterable[StoredSignature], kind: str) -> str:
    """Return the name of a derived file.

    Args:
        backbone: The backbone's fingerprint.
        signatures: The signatures it is derived from.
        kind: What it is, with the version of its format.
    """
    return f"{_prefix(backbone, signatures)}{kind}"


def store_derived(registry: Registry, name: str, data: bytes) -> None:
    """Store a derived file, and delete those that are out of date.

    Raises:
        StoreMismatch: The blob store belongs to another registry.
        RegistryError: The registry cannot be read, or the store not written.
    """
    registry.require_own_store()
    registry.blobs.put_derived(name, data)
    delete_stale(registry)  # also this file, if a signature was removed before it was stored


def stale_files(registry: Registry) -> list[StoredBlob]:
    """Return the derived files that are not of the signatures of a backbone's present champions."""
    if not (files := list(registry.blobs.iterate_derived())):
        return []
    names = [backbone.fingerprint for backbone in registry.backbones()]
    current = tuple(_prefix(backbone, registry.signatures(backbone)) for backbone in names)
    return [file for file in files if not file.name.startswith(current)]


def delete_stale(registry: Registry) -> list[StoredBlob]:
    """Delete the derived files that are out of date; return them."""
    return [file for file in stale_files(registry) if registry.blobs.delete(file, put_before=None)]


def _prefix(backbone: str, signatures: Iterable[StoredSignature]) -> str:
    sources = sorted((record.task, record.digest, record.routing) for record in signatures)
    return f"{backbone}/{sha256(json.dumps(sources).encode()).hexdigest()}."
