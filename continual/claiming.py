"""One process's part in learning a stream: it claims what is free, and learns it, until nothing is left to learn."""

import time
from collections.abc import Iterator, Mapping
from functools import partial

from continual.job import Job
from continual.learn import Learned
from continual.positions import Learning
from registry import claim_next

WAIT = 1.0  # seconds between looks at positions that other controllers hold


def learned_here(job: Job, holder: str) -> Iterator[Mapping[str, Learned]]:
    """Claim and learn in the name of `holder`; after each round what it brought, by its delta.

    That is nothing where all that is left is held by others; it ends where nothing is left that could become free.
    """
    learning = Learning(job.backbone, job.registry, job.stream, job.watcher, holder, job.moved)
    while True:
        found = job.again(partial(_round, job, learning))
        if found is None:
            left = job.again(job.left)
            if not left:
                return
            for position in left:
                job.watcher.waiting(position.task, position.holder or "")
            time.sleep(WAIT)
        yield found or {}


def _round(job: Job, learning: Learning) -> dict[str, Learned] | None:
    """Learn the next position that is free, with what is learned beside it; None where none is free."""
    number = claim_next(job.registry, job.stream.name, among=job.most, holder=learning.holder)
    if number is None:
        return None
    return learning.learn({n: job.loaded[n] for n in (number, *_beside(job, number, holder=learning.holder))})


def _beside(job: Job, number: int, *, holder: str) -> Iterator[int]:
    """Further positions that are free and that are learned together with this one."""
    for _ in range(_joint(job, number) - 1):
        among = {other: most for other, most in job.most.items() if _joint(job, other) > 1}
        further = claim_next(job.registry, job.stream.name, among=among, holder=holder)
        if further is None:
            return
        yield further


def _joint(job: Job, number: int) -> int:
    budget = job.loaded[number].spec.budget
    return budget.joint if budget else 1
