"""What has been learned: tasks, deltas, lineage and scores in SQL, and the bytes they name as blobs.

`Registry.open(url, blobs)` opens it, its methods read, `Registry.unit()` writes; `claim` and its kin share a stream
among controllers, `verify` finds damage, `upgrade` migrates.
"""

from registry.blobs import Blobs
from registry.claims import claim, heartbeat, held, release
from registry.errors import (
    BlobError,
    DatabaseUnavailable,
    NotFound,
    RegistryError,
    SchemaError,
    StreamChanged,
    TaskChanged,
    not_found,
)
from registry.holders import this_holder
from registry.names import delta_name, parse_delta
from registry.outbox import Pending, identity, is_purged, postpone, settle, take, waiting
from registry.records import (
    IMPORTED,
    BackboneRecord,
    Champion,
    DeltaRecord,
    Mode,
    Parent,
    Score,
    SignatureRecord,
    State,
    Status,
    StoredDelta,
    StoredPosition,
    StoredScore,
    StoredSignature,
    StoredStream,
    TaskRecord,
)
from registry.registry import Registry
from registry.schema import upgrade
from registry.secrets import shown
from registry.unit import Unit
from registry.verify import verify

__all__ = [
    "IMPORTED",
    "BackboneRecord",
    "BlobError",
    "Blobs",
    "Champion",
    "DatabaseUnavailable",
    "DeltaRecord",
    "Mode",
    "NotFound",
    "Parent",
    "Pending",
    "Registry",
    "RegistryError",
    "SchemaError",
    "Score",
    "SignatureRecord",
    "State",
    "Status",
    "StoredDelta",
    "StoredPosition",
    "StoredScore",
    "StoredSignature",
    "StoredStream",
    "StreamChanged",
    "TaskChanged",
    "TaskRecord",
    "Unit",
    "claim",
    "delta_name",
    "heartbeat",
    "held",
    "identity",
    "is_purged",
    "not_found",
    "parse_delta",
    "postpone",
    "release",
    "settle",
    "shown",
    "take",
    "this_holder",
    "upgrade",
    "verify",
    "waiting",
]
