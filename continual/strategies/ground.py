"""What all strategies have in common: what the frozen backbone says of the tasks, and the router that it gives."""

from collections.abc import Sequence
from dataclasses import dataclass

from continual.evaluate import metric_score
from continual.frozen import Frozen
from continual.kinds import labels_of
from continual.learn import Task
from continual.routing import Statistics, build_router
from continual.routing.totals import Totals


@dataclass(frozen=True)
class Known:
    """A task in frozen features. tested: its test rows · frozen: the score of the head in closed form."""

    routing: Statistics
    tested: Frozen
    frozen: float


class Ground:
    """Taken of each task when it is first asked for, so that a comparison that goes on takes what is still needed."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks, self._totals = tasks, Totals()
        self._known: dict[int, Known] = {}
        self._right: dict[int, tuple[list[bool], ...]] = {}

    def known(self, number: int) -> Known:
        """The task of that number."""
        if number not in self._known:
            self._known[number] = _known(self._tasks[number])
        return self._known[number]

    def right(self, step: int) -> tuple[list[bool], ...]:
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


def _known(task: Task) -> Known:
    rows, held_out, tested = task.seen
    routing = task.routing(None, train=rows, held_out=held_out)
    outputs = task.kind.outputs(tested, task.kind.start(rows, held_out).head)
    answers = labels_of(task.kind.answers(task.backbone, outputs, task.test))
    score = metric_score(task.data.spec.metric, task.test.truth, answers, kind=task.kind.scored)
    return Known(routing, tested.frozen, score)
