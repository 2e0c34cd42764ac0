"""Claim free positions of a stream and learn them, until no position is left to learn."""

import time
from collections.abc import Iterator, Mapping
from functools import partial

from continual.learning.learn import LearnedTask
from continual.streams.position_learner import PositionLearner
from continual.streams.stream_run import StreamRun
from registry import claim_next

POLL_SECONDS = 1.0  # seconds between two looks at positions that other controllers hold


def learn_claimed_positions(run: StreamRun, holder: str) -> Iterator[Mapping[str, LearnedTask]]:
    """Claim and learn positions in the name of `holder`, and yield what each round learned, by delta.

    A round yields nothing where all open positions are held by others. The iterator ends when no position is left that
    could become free.
    """
    learner = PositionLearner(run.backbone, run.registry, run.stream, run.callbacks, holder, run.migrated_from)
    while True:
        learned = run.retry_on_disconnect(partial(_learn_next, run, learner))
        if learned is None:
            open_positions = run.retry_on_disconnect(run.open_positions)
            if not open_positions:
                return
            for position in open_positions:
                run.callbacks.on_wait(position.task, position.holder or "")
            time.sleep(POLL_SECONDS)
        yield learned or {}


def _learn_next(run: StreamRun, learner: PositionLearner) -> dict[str, LearnedTask] | None:
    """Learn the next free position and those learned jointly with it; None where none is free."""
    number = claim_next(run.registry, run.stream.name, max_attempts=run.max_attempts, holder=learner.holder)
    if number is None:
        return None
    return learner.learn_positions(
        {
            position: run.loaded[position]
            for position in (number, *_claim_joint_positions(run, number, holder=learner.holder))
        }
    )


def _claim_joint_positions(run: StreamRun, number: int, *, holder: str) -> Iterator[int]:
    """Claim further free positions that may be learned jointly with this one, up to its limit."""
    for _ in range(_joint_limit(run, number) - 1):
        among = {candidate: limit for candidate, limit in run.max_attempts.items() if _joint_limit(run, candidate) > 1}
        claimed = claim_next(run.registry, run.stream.name, max_attempts=among, holder=holder)
        if claimed is None:
            return
        yield claimed


def _joint_limit(run: StreamRun, number: int) -> int:
    budget = run.loaded[number].spec.budget
    return budget.joint if budget else 1
