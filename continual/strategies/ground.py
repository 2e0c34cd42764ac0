"""What all strategies have in common: what the frozen backbone says of the tasks, and the router that it gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from continual.evaluate import metric_score
from continual.frozen import FrozenFeatures
from continual.kinds import answer_labels
from continual.learn import PreparedTask
from continual.routing import RoutingStatistics, build_router
from continual.routing.totals import AccumulatedMoments


@dataclass(frozen=True)
class FrozenTask:
    """A task in frozen features. tested: its test rows · frozen: the score of the head in closed form."""

    routing: RoutingStatistics
    tested: FrozenFeatures
    frozen: float


class FrozenBaseline:
    """Taken of each task when it is first asked for, so that a comparison that goes on takes what is still needed."""

    def __init__(self, tasks: Sequence[PreparedTask]) -> None:
        self._tasks, self._totals = tasks, AccumulatedMoments()
        self._known: dict[int, FrozenTask] = {}
        self._right: dict[int, tuple[list[bool], ...]] = {}

    def known(self, number: int) -> FrozenTask:
        """The task of that number."""
        if number not in self._known:
            self._known[number] = _known(self._tasks[number])
        return self._known[number]

    def routed_correctly(self, step: int) -> tuple[list[bool], ...]:
        """Which test rows of each task up to a step the router of these tasks sends to their own.

        By frozen features alone: the second look of `continual.routing.decision` asks deltas that were learned apart.
        """
        if step not in self._right:
            known = [self.known(number) for number in range(step + 1)]
            router = build_router({str(i): task.routing for i, task in enumerate(known)}, totals=self._totals)
            sent = [router.log_p(task.tested).argmax(dim=1) for task in known]
            own = [router.tasks.index(str(number)) for number in range(step + 1)]
            self._right[step] = tuple((rows == i).tolist() for rows, i in zip(sent, own, strict=True))
        return self._right[step]


def _known(task: PreparedTask) -> FrozenTask:
    rows, held_out, tested = task.frozen_views
    routing = task.routing_statistics(None, train=rows, held_out=held_out)
    outputs = task.kind.outputs(tested, task.kind.closed_form_start(rows, held_out).head)
    answers = answer_labels(task.kind.answers(task.backbone, outputs, task.test))
    score = metric_score(task.data.spec.metric, task.test.truth, answers, kind=task.kind.metric_kind)
    return FrozenTask(routing, tested.frozen, score)
