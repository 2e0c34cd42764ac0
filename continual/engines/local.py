"""The engine that learns in this process, one task after another, and measures in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from continual.claiming import learn_claimed_positions
from continual.engines.engine import Engine
from continual.job import StreamRun
from continual.measuring import StreamEvaluator
from registry import current_process_id


class LocalEngine:
    """Needs nothing but this process."""

    @contextmanager
    def prepare(self, job: StreamRun) -> Iterator[Callable[[], None]]:
        yield partial(_learn, job)


def _learn(job: StreamRun) -> None:
    measuring = StreamEvaluator(job)
    measuring.evaluate_available()
    for learned in learn_claimed_positions(job, current_process_id()):
        measuring.add_learned(learned)
        measuring.evaluate_available()
    measuring.evaluate_available()


LOCAL_ENGINE: Engine = LocalEngine()
