"""Tasks, deltas, lineage and scores in SQL, with their bytes in a content-addressed blob store.

`Registry.open(url, blobs)` opens it; its methods read, `Registry.unit_of_work()` writes. `claim_next` and the other
claim functions share a stream among controllers, `save_checkpoint` lets one controller continue where another died,
`find_damage` checks integrity, `upgrade` migrates the schema, `dump_registry` and `restore_registry` export and import
everything as one file.
"""

from registry.blobs import BlobStore, StoredBlob
from registry.errors import (
    ArchiveError,
    BlobError,
    ClaimLost,
    DatabaseDamaged,
    DatabaseUnavailable,
    Disconnected,
    Interrupted,
    NotFound,
    NothingToDo,
    RegistryError,
    RegistryMissing,
    SchemaError,
    StoreMismatch,
    StreamChanged,
    TaskChanged,
    TaskNeeded,
    not_found,
)
from registry.holders import current_process_id
from registry.names import BITS, Bits, delta_name, parse_delta, quantized_name, split_bits
from registry.operations.api_keys import add_key, key_digest, revoke_key
from registry.operations.checkpoints import checkpoint_epoch, load_checkpoint, save_checkpoint
from registry.operations.claims import claim_arrival, claim_next, heartbeat, hold_claim, release, release_claims_of
from registry.operations.deletion import delete_task, purge_task
from registry.operations.dump import dump_registry
from registry.operations.garbage_collection import GRACE_PERIOD, collect_garbage
from registry.operations.outbox import (
    OutboxMessage,
    claim_message,
    delete_sent,
    has_sent_runs,
    is_purged,
    list_pending,
    registry_identity,
    reschedule,
    resend_all,
)
from registry.operations.promotion import archive_delta, promote_delta
from registry.operations.restore import restore_registry
from registry.operations.strategy_runs import note_strategy_run, save_strategy_step, start_strategy_run
from registry.operations.verify import find_damage, find_row_damage, warnings
from registry.records import (
    IMPORTED,
    AnswerCounts,
    BackboneRecord,
    Champion,
    Comparison,
    Contest,
    DataRecord,
    DeltaRecord,
    DeltaStatus,
    LineageKind,
    Parent,
    PositionState,
    Score,
    ScoreMode,
    SignatureRecord,
    StoredConfusion,
    StoredDelta,
    StoredScore,
    StoredSignature,
    TaskRecord,
)
from registry.redaction import quote, redact
from registry.registry import Registry, holds_registry
from registry.schema.connections import sqlite_file, sqlite_url
from registry.schema.file_damage import file_damage
from registry.schema.migrate import upgrade
from registry.schema.tables import Role
from registry.stream_records import StepRecord, StepScore, StoredPosition, StoredStrategy, StoredStream, StrategyRecord
from registry.unit_of_work import UnitOfWork
from registry.writes.arrivals import ARRIVAL_STREAM, Arrival, normalized_backbone_name

__all__ = [
    "ARRIVAL_STREAM",
    "BITS",
    "GRACE_PERIOD",
    "IMPORTED",
    "AnswerCounts",
    "ArchiveError",
    "Arrival",
    "BackboneRecord",
    "Bits",
    "BlobError",
    "BlobStore",
    "Champion",
    "ClaimLost",
    "Comparison",
    "Contest",
    "DataRecord",
    "DatabaseDamaged",
    "DatabaseUnavailable",
    "DeltaRecord",
    "DeltaStatus",
    "Disconnected",
    "Interrupted",
    "LineageKind",
    "NotFound",
    "NothingToDo",
    "OutboxMessage",
    "Parent",
    "PositionState",
    "Registry",
    "RegistryError",
    "RegistryMissing",
    "Role",
    "SchemaError",
    "Score",
    "ScoreMode",
    "SignatureRecord",
    "StepRecord",
    "StepScore",
    "StoreMismatch",
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
    "UnitOfWork",
    "add_key",
    "archive_delta",
    "checkpoint_epoch",
    "claim_arrival",
    "claim_message",
    "claim_next",
    "collect_garbage",
    "current_process_id",
    "delete_sent",
    "delete_task",
    "delta_name",
    "dump_registry",
    "file_damage",
    "find_damage",
    "find_row_damage",
    "has_sent_runs",
    "heartbeat",
    "hold_claim",
    "holds_registry",
    "is_purged",
    "key_digest",
    "list_pending",
    "load_checkpoint",
    "normalized_backbone_name",
    "not_found",
    "note_strategy_run",
    "parse_delta",
    "promote_delta",
    "purge_task",
    "quantized_name",
    "quote",
    "redact",
    "registry_identity",
    "release",
    "release_claims_of",
    "reschedule",
    "resend_all",
    "restore_registry",
    "revoke_key",
    "save_checkpoint",
    "save_strategy_step",
    "split_bits",
    "sqlite_file",
    "sqlite_url",
    "start_strategy_run",
    "upgrade",
    "warnings",
]
