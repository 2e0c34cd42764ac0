"""Who serves: a new version takes its task over if it is at least as good on held-out rows."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.lookups import own_score, serves
from registry.records import Score
from registry.tables import Delta, ScoreRow, Task


def reason_against(new: float | None, *, champion: str | None, score: float | None, measure: str) -> str | None:
    """Why a delta of score `new` does not take over from `champion` of `score`; None where it does.

    >>> reason_against(0.80, champion="sst2@1", score=0.91, measure="validation accuracy")
    'validation accuracy 0.8000 is lower than 0.9100 of sst2@1'
    """
    if champion is None or score is None:
        return None
    if new is None:
        return f"no {measure}, and {score:.4f} of {champion} serves"
    return None if new >= score else f"{measure} {new:.4f} is lower than {score:.4f} of {champion}"


def admit(session: Session, delta: Delta, *, scores: Iterable[Score], split: str) -> None:
    """Sets the status of a new `delta`, and archives the champion it succeeds."""
    champion = _champion(session, delta)
    delta.reason = reason_against(
        oracle_score(scores, split=split, metric=delta.task.metric),
        champion=champion.name if champion else None,
        score=_stored_score(session, champion, split=split) if champion else None,
        measure=f"{split} {delta.task.metric}",
    )
    delta.status = "candidate" if delta.reason else "champion"
    if champion and delta.status == "champion":
        champion.status, champion.reason = "archived", f"succeeded by {delta.name}"
        session.flush()  # before the insert, or the database sees two champions


def oracle_score(scores: Iterable[Score], *, split: str, metric: str) -> float | None:
    """The value among `scores` that `own_score` will find once they are stored."""
    wanted = ("oracle", None, 0, split, metric)
    return next((s.value for s in scores if (s.mode, s.stream, s.step, s.split, s.metric) == wanted), None)


def _champion(session: Session, delta: Delta) -> Delta | None:
    where = (Delta.task_id == delta.task.id, Delta.backbone_id == delta.backbone.id, serves())
    return session.scalar(select(Delta).where(*where))


def _stored_score(session: Session, delta: Delta, *, split: str) -> float | None:
    values = select(ScoreRow.value).join(Task, Task.id == ScoreRow.task_id)
    return session.scalar(values.where(ScoreRow.delta_id == delta.id, *own_score(split)))
