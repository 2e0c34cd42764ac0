"""Frozen records that go into the registry and come out of it; live ORM rows never leave it."""

from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Literal

from registry.errors import NotFound

IMPORTED = "imported"  # warm start of a delta that was trained elsewhere and may have no scores
PositionState = Literal["waiting", "held", "learned", "failed", "cancelled"]  # cancelled: arrivals only
DeltaStatus = Literal["champion", "candidate", "archived", "purged"]  # purged: a tombstone, needed by the lineage
LineageKind = Literal["warm_start", "merged", "subspace", "retrained", "stage", "import"]
EventKind = Literal["learned", "imported", "promoted", "succeeded", "archived", "purged"]
OutboxTopic = Literal["delta", "stream", "champion", "purged"]  # kinds of messages for MLflow
ScoreMode = Literal[
    "oracle", "routed", "scratch", "frozen", "neighbour", "curve", "random_init", "calibration"
]  # calibration: measured beside the score, lower is better


@dataclass(frozen=True, kw_only=True)
class BackboneRecord:
    """A frozen pretrained transformer.

    Attributes:
        fingerprint: SHA-256 over config and weights.
        name: How to load it: a name of settings, a hub id or a folder, with its bits if quantised.
        family: The model family, which decides where edits are placed.
        hidden_size: Width of its hidden states.
        parameters: Number of its parameters.
        pooling: Default pooling of its features.
    """

    fingerprint: str
    name: str
    family: str
    hidden_size: int
    parameters: int
    pooling: str


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A registered task.

    Attributes:
        name: The task's name.
        kind: Classification, regression, span or generation.
        metric: The metric that decides between versions.
        labels: Sorted; empty for kinds without labels.
        spec: The task's spec as JSON.
        fingerprints: SHA-256 of the rows, by split.
        rows: Number of rows, by split.
    """

    name: str
    kind: str
    metric: str
    labels: tuple[str, ...]
    spec: dict[str, Any]
    fingerprints: dict[str, str]
    rows: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """How the test rows of a classification were answered, in counts; its C labels are indices of the delta's `labels`.

    Attributes:
        support: Number of rows of each label [C].
        answered: Number of rows answered with each label [C].
        correct: Number of rows of each label answered with it [C].
        confused: Triples (label, answer, rows) of wrong answers, the most frequent ones first; rare ones may be left
            out, so that there is a bound for any number of labels.
        bins: By the answer's probability in bins of equal width, triples (rows, sum of probabilities, right answers).
    """

    support: tuple[int, ...]
    answered: tuple[int, ...]
    correct: tuple[int, ...]
    confused: tuple[tuple[int, int, int], ...]
    bins: tuple[tuple[int, float, int], ...]

    def __post_init__(self) -> None:
        totals = (self.support, self.answered, self.correct)
        counts = [
            *chain(*totals),
            *chain(*self.confused),
            *(count for rows, _, right in self.bins for count in (rows, right)),
        ]
        if len(set(map(len, totals))) > 1 or not self.bins or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("counts of answers must be integers from 0, one per label")
        if any(max(label, answer) >= len(self.support) for label, answer, _ in self.confused):
            raise ValueError("counts of answers name a label that the delta lacks")


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """Reference to the data that a version was learned from; the rows themselves are not stored.

    It says how to read the rows again, and how to recognise them.

    Attributes:
        spec: The task's spec as it was learned.
        folder: Base of its relative paths; None if unknown.
        seed: Seed of carving and sampling.
        fingerprints: SHA-256 of the rows, by split.
        rows: Number of rows, by split.
        warnings: What was suspicious in the rows; the sentences hold none of their texts.
        answers: How the version answered the test rows; None for kinds without labels and where it was not measured.
    """

    spec: dict[str, Any]
    folder: str | None
    seed: int
    fingerprints: dict[str, str]
    rows: dict[str, int]
    warnings: tuple[str, ...] = ()
    answers: AnswerCounts | None = None


@dataclass(frozen=True, kw_only=True)
class _DeltaFields:
    """Common fields of `DeltaRecord` and `StoredDelta`."""

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
    """A trained delta: how it was made, and the digests of its blobs.

    Attributes:
        task: The task's name.
        backbone: The backbone's fingerprint.
        method: The method's name.
        settings: The method's settings.
        budget: The budget it was trained with.
        bytes: Size of its values.
        parameters: Number of its parameters.
        share: Its parameters over the backbone's, a fraction.
        seed: Seed of training.
        labels: Labels that its head answers with, by index.
        versions: Versions of the libraries that trained it.
        warm_start: How its initial values were chosen; `IMPORTED` if it was trained elsewhere.
        seconds: Duration of learning.
        examples_per_second: Training throughput.
        predictions: Digest of its predictions on the test rows.
        replay: Digest of its outputs on fixed inputs.
        tried: Candidates that a search over methods evaluated.
        data: The data it was learned from; None if it was trained elsewhere on unknown rows.
        digest: Digest of its values.
    """

    digest: str


@dataclass(frozen=True, kw_only=True)
class StoredDelta(_DeltaFields):
    """A registered delta: the fields of `DeltaRecord`, and what the registry adds.

    Attributes:
        digest: Digest of its values; None if it was purged.
        name: Its public name, such as sst2@1.
        version: Its number among the task's deltas, from 1.
        status: Champion, candidate, archived or purged.
        reason: Why it does not serve.
        mlflow_run: Id of its MLflow run.
        created_at: Time of registration.
        kind: Its task's kind.
        metric: Its task's metric.
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
        """The digest of its values.

        Raises:
            NotFound: The values were purged.
        """
        return require_digest(self.digest, self.name)


def require_digest(digest: str | None, delta: str) -> str:
    """Return the digest of a delta's values.

    Raises:
        NotFound: The values were purged.
    """
    if digest is None:
        raise NotFound(f"{delta} was purged: nothing but its place in the lineage is kept. Learn its task again.")
    return digest


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of a new delta and of the champion on the same rows, by the task's metric.

    Attributes:
        rows: Which rows, in words.
        new: The new delta's score.
        old: The champion's score.
    """

    rows: str
    new: float
    old: float


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The comparisons of a new delta with the champion that it may replace.

    Attributes:
        champion: The champion's name.
        comparisons: Scores of both on the same rows.
        undecided_reason: Why the comparisons are not sufficient for a decision; None if they are.
    """

    champion: str
    comparisons: tuple[Comparison, ...] = ()
    undecided_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A delta that another one was derived from.

    Attributes:
        delta: The parent's name.
        kind: How the child was derived.
        weight: The parent's share in the child.
        score: The start's score with this parent, on held-out rows before training.
        gain: `score` minus the score of the start from scratch.
    """

    delta: str
    kind: LineageKind
    weight: float
    score: float | None = None
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured value of a delta.

    Attributes:
        split: The split whose rows were scored.
        metric: The metric's name.
        value: A fraction.
        rows: Number of rows.
        low: Lower end of the confidence interval.
        high: Upper end of the confidence interval.
        step: For routed scores, the stream position after which it was measured; otherwise 0.
        mode: How the rows were answered: task known, routed, or by a baseline; or what else was measured.
        stream: The stream it was measured in; None for a delta's own scores.
    """

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
    """A score with its delta and task.

    Attributes:
        id: Increases with time of measuring: of two scores of one step the later one has the higher id.
        delta: The delta's name.
        task: The task's name.
    """

    id: int
    delta: str
    task: str


@dataclass(frozen=True, kw_only=True)
class SignatureRecord:
    """A task's signature: where its additive statistics are stored, and how they were computed.

    Attributes:
        digest: Blob of float64 matrices.
        rows: Number of rows they were computed over.
        pooling: Pooling of the frozen features.
        layer: Layer of the frozen features.
        routing: Blob of the further statistics that routers use; None for deltas of older releases.
    """

    digest: str
    rows: int
    pooling: str
    layer: int = -1
    routing: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredSignature(SignatureRecord):
    """A signature with its task and delta.

    Attributes:
        task: The task's name.
        delta: The delta's name.
    """

    task: str
    delta: str


@dataclass(frozen=True, kw_only=True)
class StoredConfusion:
    """The number of a delta's test rows that were routed to another delta.

    Attributes:
        delta: The delta whose task the rows belong to.
        routed_to: The delta that the router chose.
        rows: Number of rows.
        step: Position in the stream; the router chose among the deltas learned up to it.
    """

    delta: str
    routed_to: str
    rows: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The delta that serves a task, as needed by the bank and the router.

    Attributes:
        task: The task's name.
        delta: The delta's name.
        method: The method's name.
        settings: The method's settings.
        budget: The budget it was trained with.
        digest: Digest of its values.
        created_at: Time of registration.
        is_routed: Whether the router may choose the task.
    """

    task: str
    delta: str
    method: str
    settings: dict[str, Any]
    budget: dict[str, Any]
    digest: str
    created_at: datetime
    is_routed: bool = True
