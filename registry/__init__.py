"""What has been learned: tasks, deltas, lineage and scores in SQL, and the bytes they name as blobs.

`Registry.open(url, blobs)` opens it, its methods read, `Registry.unit()` writes; `claim_next` and its kin share a
stream among controllers, `keep_checkpoint` lets one go on where another died, `verify` finds damage, `upgrade`
migrates, `dump` and `restore` carry all of it in one file.
"""

from registry.access import Role
from registry.arrivals import ARRIVALS, Arrival, known_as
from registry.blobs import Blobs, StoredBlob
from registry.checkpoints import keep_checkpoint, last_checkpoint, last_epoch
from registry.claims import claim_arrival, claim_next, heartbeat, held, release, release_all
from registry.collection import GRACE, collect
from registry.dump import dump
from registry.errors import (
    ArchiveError,
    BlobError,
    ClaimLost,
    DatabaseUnavailable,
    Disconnected,
    Interrupted,
    NotFound,
    NothingToDo,
    RegistryError,
    SchemaError,
    StreamChanged,
    TaskChanged,
    TaskNeeded,
    not_found,
)
from registry.holders import this_holder
from registry.keys import add_key, key_digest, revoke_key
from registry.names import BITS, Bits, delta_name, parse_delta, split_bits, with_bits
from registry.outbox import Pending, identity, is_purged, postpone, settle, take, waiting
from registry.promotion import archive_delta, promote_delta
from registry.records import (
    IMPORTED,
    BackboneRecord,
    Champion,
    Comparison,
    Contest,
    DataRecord,
    DeltaRecord,
    Mode,
    Origin,
    Parent,
    Score,
    SignatureRecord,
    State,
    Status,
    StepRecord,
    StepScore,
    StoredConfusion,
    StoredDelta,
    StoredPosition,
    StoredScore,
    StoredSignature,
    StoredStrategy,
    StoredStream,
    StrategyRecord,
    TaskRecord,
)
from registry.registry import Registry
from registry.removal import delete_task, purge_task
from registry.restore import restore
from registry.schema import upgrade
from registry.secrets import shown
from registry.strategies import begin_strategy, keep_step, note_strategy_run
from registry.unit import Unit
from registry.verify import notes, verify

__all__ = [
    "ARRIVALS",
    "BITS",
    "GRACE",
    "IMPORTED",
    "ArchiveError",
    "Arrival",
    "BackboneRecord",
    "Bits",
    "BlobError",
    "Blobs",
    "Champion",
    "ClaimLost",
    "Comparison",
    "Contest",
    "DataRecord",
    "DatabaseUnavailable",
    "DeltaRecord",
    "Disconnected",
    "Interrupted",
    "Mode",
    "NotFound",
    "NothingToDo",
    "Origin",
    "Parent",
    "Pending",
    "Registry",
    "RegistryError",
    "Role",
    "SchemaError",
    "Score",
    "SignatureRecord",
    "State",
    "Status",
    "StepRecord",
    "StepScore",
    "StoredBlob",
    "StoredConfusion",
    "StoredDelta",
    "StoredPosition",
    "StoredScore",
    "StoredSignature",
    "StoredStrategy",
    "StoredStream",
    "StrategyRecord",
    "StreamChanged",
    "TaskChanged",
    "TaskNeeded",
    "TaskRecord",
    "Unit",
    "add_key",
    "archive_delta",
    "begin_strategy",
    "claim_arrival",
    "claim_next",
    "collect",
    "delete_task",
    "delta_name",
    "dump",
    "heartbeat",
    "held",
    "identity",
    "is_purged",
    "keep_checkpoint",
    "keep_step",
    "key_digest",
    "known_as",
    "last_checkpoint",
    "last_epoch",
    "not_found",
    "note_strategy_run",
    "notes",
    "parse_delta",
    "postpone",
    "promote_delta",
    "purge_task",
    "release",
    "release_all",
    "restore",
    "revoke_key",
    "settle",
    "shown",
    "split_bits",
    "take",
    "this_holder",
    "upgrade",
    "verify",
    "waiting",
    "with_bits",
]
