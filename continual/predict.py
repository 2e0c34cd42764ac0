"""Answer inputs with what has been learned, each by its task's delta, whether or not its task is named."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from continual.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.errors import InputError
from continual.features import features, making_room, tokenize
from continual.kinds import Answer, Seen, fitted, kind_of_delta
from continual.neighbours import stored_signatures
from continual.routing import Router, build_router
from registry import Champion, Registry, not_found
from tasks import Rows, Text


@dataclass(frozen=True)
class Prediction:
    """One answer: the label, by whose delta, and how sure.

    label: the answer, of a regression a number, else a text · score: its probability, a fraction, None for a number ·
    routed: whether the router chose the task · confidence: its share of
    the likelihood of all tasks, None where the task was given. The router is forced to choose: it never abstains.
    """

    text: Text
    task: str | None
    label: str | float | None
    score: float | None
    routed: bool
    confidence: float | None
    abstained: bool
    delta: str | None


class Predictor:
    """The champions of a registry on one backbone, as they were when it was made; each is loaded when first needed.

    serving: the deltas that answer, where they are not the champions.

    Raises InputError where nothing has been learned on the backbone.
    """

    def __init__(self, backbone: Backbone, registry: Registry, *, serving: Iterable[Champion] | None = None) -> None:
        self._backbone, self._registry = backbone, registry
        found = registry.champions(backbone.fingerprint) if serving is None else serving
        self._champions = {champion.task: champion for champion in found}
        self._deltas: dict[str, Delta] = {}
        self._router: Router | None = None
        if not self._champions:
            raise InputError(
                f"nothing has been learned on backbone {backbone.name!r} yet; learn a task first "
                "(`continual run STREAM.yaml`), or give the --home that holds what was learned"
            )

    def predict(self, texts: Sequence[Text], *, task: str | None = None) -> list[Prediction]:
        """One prediction per text, in order; without `task` the router chooses.

        Raises NotFound for a task that has no delta on this backbone.
        """
        if not texts:
            return []
        routes = self._route(texts) if task is None else [(self._champion(task).task, None)] * len(texts)
        numbers: dict[str, list[int]] = defaultdict(list)
        for number, (name, _) in enumerate(routes):
            numbers[name].append(number)
        found = {
            number: Prediction(
                text=texts[number],
                task=name,
                label=answer.label,
                score=answer.score,
                routed=task is None,
                confidence=routes[number][1],
                abstained=False,
                delta=self._champions[name].delta,
            )
            for name, chosen in numbers.items()
            for number, answer in zip(chosen, self._answers(name, [texts[i] for i in chosen]), strict=True)
        }
        return [found[number] for number in range(len(texts))]

    def load(self, task: str) -> Delta:
        """A task's delta, which is read when it is first asked for. Raises NotFound, or BlobError."""
        if task not in self._deltas:
            self._deltas[task] = load_delta(self._registry.blobs.get(self._champion(task).digest))
        return self._deltas[task]

    def _answers(self, task: str, texts: Sequence[Text]) -> list[Answer]:
        """What a task's delta answers to each text."""
        return answers_of(self._backbone, self.load(task), texts, max_length=_longest(self._champion(task)))

    def _route(self, texts: Sequence[Text]) -> list[tuple[str, float | None]]:
        """The task of each text by the router, and its confidence."""
        router = self._router = self._router or self._build_router()
        tokens = tokenize(self._backbone, texts, max_length=max(map(_longest, self._champions.values())))
        routed = router.route(features(self._backbone, tokens))
        return [
            (router.tasks[i], sure) for i, sure in zip(routed.tasks.tolist(), routed.confidence.tolist(), strict=True)
        ]

    def _build_router(self) -> Router:
        signatures = stored_signatures(self._registry, self._backbone)
        routable = {task: own for task, own in signatures.items() if task in self._champions}
        if not routable:
            raise InputError(
                "no task on this backbone has a signature, so nothing can be routed; name the task of the inputs "
                f"(--task): {', '.join(self._champions)}"
            )
        return build_router(routable)

    def _champion(self, task: str) -> Champion:
        if task not in self._champions:
            raise not_found(f"task learned on backbone {self._backbone.name!r}", task, known=self._champions)
        return self._champions[task]


def answers_of(backbone: Backbone, delta: Delta, texts: Sequence[Text], *, max_length: int) -> list[Answer]:
    """What a delta answers to each text, cut at `max_length` tokens; it needs to know no more than the text."""
    kind = kind_of_delta(delta)
    backbone = fitted(making_room(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, Rows(tuple(texts), ()), max_length=max_length)
    return kind.answers(backbone, kind.outputs(Seen(backbone, delta, rows), delta.head), rows)


def _longest(champion: Champion) -> int:
    """How many tokens of a text the task's rows were cut at."""
    return int(champion.budget["max_length"])
