"""Champion rules: a new version replaces the champion if it scores as well on held-out rows."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.reads.lookups import is_champion, main_score_filter
from registry.records import IMPORTED, Contest, Score
from registry.schema.score_tables import ScoreRow
from registry.schema.tables import Delta, Task
from registry.writes.events import record_event

MANUAL_HINT = "`continual deltas promote` decides by hand"


def rejection_reason(new: float | None, *, champion: str, score: float | None, measure: str) -> str | None:
    """Return why a delta of score `new` does not replace `champion` of `score`; None if it does.

    Args:
        new: The new delta's score; None if it was not measured.
        champion: The champion's name.
        score: The champion's score; None if it was not measured.
        measure: Split and metric, for the message.

    >>> rejection_reason(0.80, champion="sst2@1", score=0.91, measure="validation accuracy")
    'validation accuracy 0.8000 is lower than 0.9100 of sst2@1'
    """
    if score is None:
        return None
    if new is None:
        return f"no {measure}, and {score:.4f} of {champion} serves"
    return None if new >= score else f"{measure} {new:.4f} is lower than {score:.4f} of {champion}"


def rejection_after_contest(contest: Contest, *, champion: str, metric: str) -> str | None:
    """Return why a delta does not replace `champion` after a contest; None if it does.

    >>> from registry import Comparison
    >>> rows = Comparison(rows="the validation rows of sst2@1", new=0.8, old=0.91)
    >>> contest = Contest(champion="sst2@1", comparisons=(rows,))
    >>> rejection_after_contest(contest, champion="sst2@1", metric="accuracy")
    'accuracy 0.8000 is lower than 0.9100 of sst2@1 on the validation rows of sst2@1'
    """
    if contest.champion != champion:
        return f"it was compared with {contest.champion}, and meanwhile {champion} serves. {MANUAL_HINT}"
    for comparison in contest.comparisons:
        if comparison.new < comparison.old:
            return (
                f"{metric} {comparison.new:.4f} is lower than {comparison.old:.4f} of {champion} on {comparison.rows}"
            )
    return f"{contest.undecided_reason}. {MANUAL_HINT}" if contest.undecided_reason else None


def rejection_against_other_backbone(new: float | None, *, rival: str, score: float | None, measure: str) -> str | None:
    """Return why a delta of score `new` does not replace `rival` of another backbone; None if it does.

    Args:
        new: The new delta's score; None if it was not measured.
        rival: The rival's name and backbone.
        score: The rival's score; None if it was not measured.
        measure: Split and metric, for the message.

    >>> rejection_against_other_backbone(0.80, rival="sst2@1 on minilm", score=0.91, measure="validation accuracy")
    'worse than sst2@1 on minilm: validation accuracy 0.8000 against 0.9100'
    """
    if score is None or rejection_reason(new, champion=rival, score=score, measure=measure) is None:
        return None
    return f"worse than {rival}: {measure} {'unknown' if new is None else f'{new:.4f}'} against {score:.4f}"


def register_status(
    session: Session,
    delta: Delta,
    *,
    scores: Iterable[Score],
    split: str,
    contest: Contest | None,
    rival: Delta | None = None,
) -> None:
    """Register a new delta as champion or candidate, and archive the champion that it replaces.

    Args:
        session: The unit's session.
        delta: The new delta, not yet added.
        scores: The new delta's scores.
        split: The held-out split that decides.
        contest: Comparisons with the champion on the same rows; without it, the stored scores decide.
        rival: A delta of another backbone, learned from the same rows, that the new one is to replace.
    """
    champion, metric = champion_of(session, delta), delta.task.metric
    new, measure = oracle_score(scores, split=split, metric=metric), f"{split} {metric}"
    if champion and contest:
        delta.reason = rejection_after_contest(contest, champion=champion.name, metric=metric)
    elif champion:
        score = _stored_score(session, champion, split=split)
        delta.reason = rejection_reason(new, champion=champion.name, score=score, measure=measure)
    if rival is not None and delta.reason is None:
        score, name = _stored_score(session, rival, split=split), f"{rival.name} on {rival.backbone.name}"
        delta.reason = rejection_against_other_backbone(new, rival=name, score=score, measure=measure)
    delta.status = "candidate"
    session.add(delta)
    session.flush()
    record_event(session, delta, "imported" if delta.warm_start == IMPORTED else "learned", reason=delta.reason)
    if delta.reason is None:
        promote(session, delta)


def promote(session: Session, delta: Delta, *, reason: str | None = None) -> None:
    """Make `delta` the champion of its task and backbone; archive the champion that it replaces."""
    champion = champion_of(session, delta)
    if champion:
        champion.status, champion.reason = "archived", f"succeeded by {delta.name}"
        record_event(session, champion, "succeeded", reason=champion.reason)
        session.flush()  # before the new champion is set: a unique index allows one
    delta.status, delta.reason = "champion", None
    record_event(session, delta, "promoted", reason=reason)


def champion_of(session: Session, delta: Delta) -> Delta | None:
    """Return the champion of a delta's task on its backbone, if any."""
    where = (Delta.task_id == delta.task.id, Delta.backbone_id == delta.backbone.id, is_champion())
    return session.scalar(select(Delta).where(*where))


def oracle_score(scores: Iterable[Score], *, split: str, metric: str) -> float | None:
    """Return the value among `scores` that `main_score_filter` selects once they are stored, if any."""
    wanted = ("oracle", None, 0, split, metric)
    return next((s.value for s in scores if (s.mode, s.stream, s.step, s.split, s.metric) == wanted), None)


def _stored_score(session: Session, delta: Delta, *, split: str) -> float | None:
    values = select(ScoreRow.value).join(Task, Task.id == ScoreRow.task_id)
    return session.scalar(values.where(ScoreRow.delta_id == delta.id, *main_score_filter(split)))
