"""What goes into the registry and what comes out: frozen records, never live rows."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from registry.errors import NotFound

IMPORTED = "imported"  # in place of a warm start, for a delta that was trained elsewhere and may have no scores
PositionState = Literal["waiting", "held", "learned", "failed", "cancelled"]  # the last of arrivals alone
DeltaStatus = Literal["champion", "candidate", "archived", "purged"]  # purged: a tombstone, kept for the lineage alone
LineageKind = Literal["warm_start", "merged", "subspace", "retrained", "stage", "import"]
EventKind = Literal["learned", "imported", "promoted", "succeeded", "archived", "purged"]
OutboxTopic = Literal["delta", "stream", "champion", "purged"]  # what MLflow is to be told of
ScoreMode = Literal["oracle", "routed", "scratch", "frozen", "neighbour", "curve"]


@dataclass(frozen=True, kw_only=True)
class BackboneRecord:
    """A frozen pretrained transformer; `fingerprint` covers its config and weights."""

    fingerprint: str
    name: str
    family: str
    hidden_size: int
    parameters: int
    pooling: str


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A task as registered; `fingerprints` and `rows` are by split."""

    name: str
    kind: str
    metric: str
    labels: tuple[str, ...]
    spec: dict[str, Any]
    fingerprints: dict[str, str]
    rows: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The rows that a version was learned from, never themselves: how to read them again, and how to know them.

    `spec` is the task's as it was learned, `folder` what its relative paths start from, None where that is not known,
    `seed` what rows are carved and sampled by; `fingerprints` and `rows` are by split.
    """

    spec: dict[str, Any]
    folder: str | None
    seed: int
    fingerprints: dict[str, str]
    rows: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _DeltaFields:
    """How a delta was made, and the digests of its blobs but for its values."""

    task: str
    backbone: str
    method: str
    settings: dict[str, Any]
    budget: dict[str, Any]
    bytes: int
    parameters: int
    share: float
    seed: int
    labels: tuple[str, ...]
    versions: dict[str, str]
    warm_start: str
    seconds: float
    examples_per_second: float | None
    predictions: str | None = None
    replay: str | None = None
    tried: tuple[dict[str, Any], ...] = ()
    data: DataRecord | None = None


@dataclass(frozen=True, kw_only=True)
class DeltaRecord(_DeltaFields):
    """A trained delta: how it was made, and the digests of its blobs, `digest` that of its values.

    `backbone` is a fingerprint; `settings` are the method's, `budget` is what it was trained with; `share` is
    parameters over the backbone's parameters, a fraction; `tried` is what a search for the method looked at; `data` is
    None where it was made elsewhere, of rows that nobody has shown.
    """

    digest: str


@dataclass(frozen=True, kw_only=True)
class StoredDelta(_DeltaFields):
    """A delta as the registry holds it, with its task's kind and metric; `reason` says why it does not serve.

    `digest` is None of one that was purged.
    """

    digest: str | None
    name: str
    version: int
    status: DeltaStatus
    reason: str | None
    mlflow_run: str | None
    created_at: datetime
    kind: str
    metric: str

    @property
    def values(self) -> str:
        """The digest of its values. Raises: NotFound, where they were purged."""
        return require_digest(self.digest, self.name)


def require_digest(digest: str | None, delta: str) -> str:
    """The digest of a delta's values. Raises: NotFound, where they were purged."""
    if digest is None:
        raise NotFound(f"{delta} was purged: nothing but its place in the lineage is kept. Learn its task again.")
    return digest


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of a new delta and of the champion on the same rows, by the task's metric; `rows` says which."""

    rows: str
    new: float
    old: float


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What was measured of a new delta and the `champion` that it may succeed, and why that is not enough to decide."""

    champion: str
    comparisons: tuple[Comparison, ...] = ()
    undecided_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A delta that another one came from.

    score: the start's with it, on held-out rows before training · gain: over that of scratch there.
    """

    delta: str
    kind: LineageKind
    weight: float
    score: float | None = None
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured value, a fraction, with its interval; a routed one was measured after position `step`."""

    split: str
    metric: str
    value: float
    rows: int
    low: float | None = None
    high: float | None = None
    step: int = 0
    mode: ScoreMode = "oracle"
    stream: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredScore(Score):
    """A score with the delta and the task that it belongs to; of two of one step the later has the higher `id`."""

    id: int
    delta: str
    task: str


@dataclass(frozen=True, kw_only=True)
class SignatureRecord:
    """Where a task's additive statistics lie (float64 matrices, a blob) and what they were taken of.

    routing: where that lies which a router needs besides, None of what an older release learned.
    """

    digest: str
    rows: int
    pooling: str
    layer: int = -1
    routing: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredSignature(SignatureRecord):
    """A signature with its task and the delta whose it is."""

    task: str
    delta: str


@dataclass(frozen=True, kw_only=True)
class StoredConfusion:
    """How many test rows of a delta were sent to another, of those learned up to position `step` of a stream."""

    delta: str
    routed_to: str
    rows: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The delta that serves a task, as the bank and the router need it."""

    task: str
    delta: str
    method: str
    settings: dict[str, Any]
    budget: dict[str, Any]
    digest: str


@dataclass(frozen=True, kw_only=True)
class StoredPosition:
    """One place in a stream; `delta` is set once learned, `error` once failed, `holder` while held.

    attempts: how often learning it was begun · purged: whether all that was learned there is gone but its name.
    """

    number: int
    task: str
    recipe: str
    state: PositionState
    delta: str | None
    error: str | None
    holder: str | None
    attempts: int
    purged: bool


@dataclass(frozen=True, kw_only=True)
class StoredStream:
    """A stream as begun, its positions in order; `backbone` is a fingerprint."""

    name: str
    backbone: str
    spec: dict[str, Any]
    digest: str
    mlflow_run: str | None
    created_at: datetime
    positions: tuple[StoredPosition, ...]


@dataclass(frozen=True, kw_only=True)
class StrategyRecord:
    """A strategy that learns a stream, to compare with; `recipe` is the digest of all that decides what comes of it."""

    stream: str
    strategy: str
    recipe: str
    settings: dict[str, Any]
    tasks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepScore:
    """A value measured on a task's test rows after a step of a strategy."""

    task: str
    mode: ScoreMode
    metric: str
    value: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What a strategy came to after the task at position `number`.

    seconds: what learning it took · parameters: that answer all tasks so far · bytes: of all that is kept of them.
    """

    number: int
    seconds: float
    parameters: int
    bytes: int
    scores: tuple[StepScore, ...]


@dataclass(frozen=True, kw_only=True)
class StoredStrategy(StrategyRecord):
    """How far a strategy has come; `state` is the digest of what it goes on from."""

    id: int
    state: str | None
    mlflow_run: str | None
    created_at: datetime
    finished_at: datetime | None
    steps: tuple[StepRecord, ...]
