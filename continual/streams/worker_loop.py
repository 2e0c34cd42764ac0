"""One process's part in learning a stream: it claims what is free, and learns it, until nothing is left to learn."""

import time
from collections.abc import Iterator, Mapping
from functools import partial

from continual.learning.learn import LearnedTask
from continual.streams.job import StreamRun
from continual.streams.positions import PositionLearner
from registry import claim_next

POLL_SECONDS = 1.0  # seconds between looks at positions that other controllers hold


def learn_claimed_positions(job: StreamRun, holder: str) -> Iterator[Mapping[str, LearnedTask]]:
    """Claim and learn in the name of `holder`; after each round what it brought, by its delta.

    That is nothing where all that is left is held by others; it ends where nothing is left that could become free.
    """
    learning = PositionLearner(job.backbone, job.registry, job.stream, job.watcher, holder, job.migrated_from)
    while True:
        found = job.retry_on_disconnect(partial(_round, job, learning))
        if found is None:
            left = job.retry_on_disconnect(job.open_positions)
            if not left:
                return
            for position in left:
                job.watcher.on_wait(position.task, position.holder or "")
            time.sleep(POLL_SECONDS)
        yield found or {}


def _round(job: StreamRun, learning: PositionLearner) -> dict[str, LearnedTask] | None:
    """Learn the next position that is free, with what is learned beside it; None where none is free."""
    number = claim_next(job.registry, job.stream.name, among=job.max_attempts, holder=learning.holder)
    if number is None:
        return None
    return learning.learn_positions({n: job.loaded[n] for n in (number, *_beside(job, number, holder=learning.holder))})


def _beside(job: StreamRun, number: int, *, holder: str) -> Iterator[int]:
    """Further positions that are free and that are learned together with this one."""
    for _ in range(_joint(job, number) - 1):
        among = {other: most for other, most in job.max_attempts.items() if _joint(job, other) > 1}
        further = claim_next(job.registry, job.stream.name, among=among, holder=holder)
        if further is None:
            return
        yield further


def _joint(job: StreamRun, number: int) -> int:
    budget = job.loaded[number].spec.budget
    return budget.joint if budget else 1
