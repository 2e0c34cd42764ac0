"""What has been learned: tasks, deltas, lineage and scores in SQL, and the bytes they name as blobs.

`Registry.open(url, blobs)` opens it, its methods read, `Registry.unit()` writes; `claim` and its kin share a stream
among controllers, `keep_checkpoint` lets one go on where another died, `verify` finds damage, `upgrade` migrates.
"""

from registry.blobs import Blobs
from registry.checkpoints import keep_checkpoint, last_checkpoint
from registry.claims import claim, claim_next, heartbeat, held, release
from registry.errors import (
    BlobError,
    ClaimLost,
    Disconnected,
    Interrupted,
    NotFound,
    RegistryError,
    SchemaError,
    StreamChanged,
    TaskChanged,
    not_found,
)
from registry.holders import this_holder
from registry.names import delta_name, parse_delta
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
from registry.unit import Unit
from registry.verify import verify

__all__ = [
    "IMPORTED",
    "BackboneRecord",
    "BlobError",
    "Blobs",
    "Champion",
    "ClaimLost",
    "DeltaRecord",
    "Disconnected",
    "Interrupted",
    "Mode",
    "NotFound",
    "Parent",
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
    "claim_next",
    "delta_name",
    "heartbeat",
    "held",
    "keep_checkpoint",
    "last_checkpoint",
    "not_found",
    "parse_delta",
    "release",
    "this_holder",
    "upgrade",
    "verify",
]
