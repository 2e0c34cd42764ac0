"""The engine that learns in this process, one task after another, and measures in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from continual.claiming import learned_here
from continual.engines.engine import Engine
from continual.job import Job
from continual.measuring import Measuring
from registry import this_holder


class Local:
    """Needs nothing but this process."""

    @contextmanager
    def ready(self, job: Job) -> Iterator[Callable[[], None]]:
        yield partial(_learn, job)


def _learn(job: Job) -> None:
    measuring = Measuring(job)
    measuring.look_around()
    for learned in learned_here(job, this_holder()):
        measuring.keep(learned)
        measuring.look_around()
    measuring.look_around()


LOCAL: Engine = Local()
