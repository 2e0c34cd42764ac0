"""The test rows that a delta answers wrongly: read again from their source, since rows are never stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from continual.backbones.backbone import Backbone
from continual.deltas import load_delta
from continual.errors import WrongKind
from continual.inference.opinions import DeltaQuery, query_delta
from continual.kinds import Answer
from continual.learning.champion_contest import matching_recorded_rows
from continual.metrics import metric_score, metrics_of
from registry import Registry, StoredDelta
from registry.errors import NotFound
from tasks import AnswerSpan, GenerationTarget, LabelledTexts, TaskSpec, Text, load_task
from tasks.errors import DataError, StreamError
from tasks.rows import Target

SPLIT = "test"


@dataclass(frozen=True)
class WrongAnswer:
    """A test row whose answer is wrong.

    Attributes:
        row: Its number in the test split, from 0.
        text: The text or pair.
        label: The right answer; several of a task that accepts several.
        answer: The delta's answer.
        score: The answer's probability; None for kinds without.
    """

    row: int
    text: Text
    label: str | tuple[str, ...]
    answer: str
    score: float | None


@dataclass(frozen=True)
class WrongAnswers:
    """The wrong answers of a delta.

    Attributes:
        delta: The delta's name.
        rows: Number of rows that were answered.
        wrong: The rows with a wrong answer: the highest probability first, then in order.
        change: How the rows differ from those that the delta was scored on, in words; None where they do not.
    """

    delta: str
    rows: int
    wrong: tuple[WrongAnswer, ...]
    change: str | None


def find_wrong_answers(backbone: Backbone, registry: Registry, task: str) -> WrongAnswers:
    """Read the test rows of a task's champion again, answer them, and return those that are answered wrongly.

    Raises:
        NotFound: No version serves the task on this backbone.
        WrongKind: The task is a regression, whose answers are more or less close.
        DataError: The rows cannot be read again.
    """
    registered = registry.task(task)
    champion = next((delta for delta in registry.serving(task) if delta.backbone == backbone.fingerprint), None)
    if champion is None:
        raise NotFound(
            f"no version of {task!r} serves on backbone {backbone.name!r}; `continual tasks show {task}` lists all"
        )
    if registered.kind != "classification" and "exact_match" not in metrics_of(registered.kind):
        raise WrongKind(
            f"task {task!r} is a {registered.kind}, whose answers are not right or wrong but more or less close; "
            "`continual report` has its score"
        )
    rows, change = _reload_test_rows(champion)
    delta = load_delta(registry.blobs.get(champion.values))
    query = DeltaQuery(rows.texts, int(champion.budget["max_length"]))
    wrong = _wrong_rows(rows, query_delta(backbone, delta, query).answers, kind=registered.kind)
    return WrongAnswers(champion.name, len(rows), tuple(sorted(wrong, key=lambda row: -(row.score or 0.0))), change)


def _wrong_rows(rows: LabelledTexts, answers: Sequence[Answer], *, kind: str) -> Iterator[WrongAnswer]:
    for number, (text, target, answer) in enumerate(zip(rows.texts, rows.targets, answers, strict=True)):
        accepted = _accepted(target)
        right = (
            answer.label == target
            if kind == "classification"
            else metric_score("exact_match", [accepted], [answer.label], kind=kind) == 1.0
        )
        if not right:
            label = accepted[0] if len(accepted) == 1 else accepted
            yield WrongAnswer(number, text, label, str(answer.label), answer.score)


def _accepted(target: Target) -> tuple[str, ...]:
    """Return the texts of the right answers."""
    if isinstance(target, GenerationTarget):
        return target.references
    if isinstance(target, tuple):
        return tuple(dict.fromkeys(span.text for span in target if isinstance(span, AnswerSpan)))
    return (str(target),)


def _reload_test_rows(delta: StoredDelta) -> tuple[LabelledTexts, str | None]:
    """Read the test rows of a version again; return them, and how they differ from those it was scored on."""
    data = delta.data
    if data is None or data.folder is None:
        raise DataError(
            f"where the rows of {delta.name} came from is not known, as of a version that was imported without rows; "
            f"learn {delta.task!r} again"
        )
    try:
        spec = TaskSpec.model_validate(data.spec | {"strict": None})
        rows = load_task(spec, folder=Path(data.folder), seed=data.seed).test
    except (DataError, StreamError, ValidationError) as error:
        raise DataError(f"the rows of {delta.name} are not stored, and cannot be read again: {error}") from error
    if (same := matching_recorded_rows(rows, data, SPLIT)) is not None:
        return same, None
    return rows, (
        f"the source has changed since {delta.name} was learned: {SPLIT} has {len(rows)} rows now, {data.rows[SPLIT]} "
        "then, and they are not the same. These are its answers to the rows of now; it may have been trained on some"
    )
