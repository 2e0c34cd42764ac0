"""What has been learned: tasks, deltas, lineage and scores in SQL, and the bytes they name as blobs.

`Registry.open(url, blobs)` opens it, its methods read, `Registry.unit()` writes; `claim` and its kin share a stream
among controllers, `verify` finds damage, `upgrade` migrates, `dump` and `restore` carry all of it in one file.
"""

from registry.blobs import Blobs
from registry.claims import claim, heartbeat, held, release
from registry.dump import dump
from registry.errors import (
    ArchiveError,
    BlobError,
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
from registry.restore import restore
from registry.schema import upgrade
from registry.unit import Unit
from registry.verify import verify

__all__ = [
    "IMPORTED",
    "ArchiveError",
    "BackboneRecord",
    "BlobError",
    "Blobs",
    "Champion",
    "DeltaRecord",
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
    "delta_name",
    "dump",
    "heartbeat",
    "held",
    "not_found",
    "parse_delta",
    "release",
    "restore",
    "this_holder",
    "upgrade",
    "verify",
]
