"""Answer inputs with what has been learned, each by its task's delta, whether or not its task is named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from continual.backbone import Backbone
from continual.deltas import Delta, load_delta
from continual.errors import InputError
from continual.experts import Asked, Failed, opinion, opinions
from continual.features import tokenize
from continual.frozen import frozen
from continual.kinds import Answer
from continual.residents import SLOTS, Residents
from continual.routing import Decision, Opinion, Router, Statistics, decide, rule_names
from continual.settings import FALSE_ABSTENTIONS
from continual.stored_router import stored_router
from registry import Champion, Registry, not_found
from tasks import Text

NEAREST = 3  # tasks that are named of an input that belongs to none


@dataclass(frozen=True)
class Possible:
    """A task that an input may belong to, with the router's probability, and what its delta answers if it was asked.

    delta without a label: the delta could not be read.
    """

    task: str
    confidence: float
    label: str | float | None = None
    score: float | None = None
    delta: str | None = None


@dataclass(frozen=True)
class Prediction:
    """One answer: the label, by whose delta, and how sure.

    label: the answer, of a regression a number, else a text · score: its probability, a fraction, None for a number ·
    routed: whether the router chose the task · confidence: the probability of that task among those that are known,
    None where the task was given · abstained: whether the input is like those of no task; then nothing is answered ·
    possible: of such an input the nearest tasks; where all were asked for, all tasks that are likely enough · error:
    why there is no answer, though the task is known: its delta could not be read, or put on the device.
    """

    text: Text
    task: str | None
    label: str | float | None
    score: float | None
    routed: bool
    confidence: float | None
    abstained: bool
    delta: str | None
    possible: tuple[Possible, ...] = ()
    error: str | None = None


class Predictor:
    """The champions of a registry on one backbone, as they were when it was made; each is loaded when first needed.

    serving: the deltas that answer, where they are not the champions · router: a name of `ROUTERS`, or `auto` ·
    false_abstentions: of the inputs of known tasks, the share that may be taken for those of none; 0 for no abstaining
    · slots: how many deltas lie on the device at once.

    Raises InputError where nothing has been learned on the backbone, RoutingError where there is no such router.
    """

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        *,
        serving: Iterable[Champion] | None = None,
        router: str = "auto",
        false_abstentions: float = FALSE_ABSTENTIONS,
        slots: int = SLOTS,
    ) -> None:
        self._backbone, self._registry = backbone, registry
        found = registry.champions(backbone.fingerprint) if serving is None else serving
        self._champions = {champion.task: champion for champion in found}
        self._residents = Residents(backbone, self._read, slots=slots)
        rule_names(router)  # whether there is such a router
        self._kind, self._false_abstentions = router, false_abstentions
        self._routing: tuple[Router, Mapping[str, Statistics]] | None = None
        if not self._champions:
            raise InputError(
                f"nothing has been learned on backbone {backbone.name!r} yet; learn a task first "
                "(`continual run STREAM.yaml`), or give the --home that holds what was learned"
            )

    def predict(
        self, texts: Sequence[Text], *, task: str | None = None, at_least: float | None = None
    ) -> list[Prediction]:
        """One prediction per text, in order; without `task` the router chooses, and may say that it is none.

        at_least: name every task that has this probability, with its answer. Raises NotFound for a task that has no
        delta on this backbone.
        """
        if not texts:
            return []
        if task is None:
            return self._routed(texts, at_least=at_least)
        answers = self._answers(task, texts)
        return [
            self._answered(text, task, answer, confidence=None) for text, answer in zip(texts, answers, strict=True)
        ]

    def load(self, task: str) -> Delta:
        """A task's delta, which is read when it is first asked for. Raises NotFound, or BlobError."""
        return self._residents.delta(self._champion(task).task)

    def _read(self, task: str) -> Delta:
        return load_delta(self._registry.blobs.get(self._champions[task].digest))

    def _routed(self, texts: Sequence[Text], *, at_least: float | None) -> list[Prediction]:
        router, statistics = self._routing = self._routing or self._router()
        longest = max(map(_longest, self._champions.values()))
        seen = frozen(self._backbone, tokenize(self._backbone, texts, max_length=longest))

        def ask(looked: Mapping[int, list[int]]) -> dict[int, Opinion[Answer | Failed]]:
            asked = {}
            for number, inputs in looked.items():
                name = router.tasks[number]
                length, known = _longest(self._champions[name]), statistics.get(name)
                shared = seen.take(inputs) if length == longest else None
                evidence = known.evidence if known else None
                asked[name] = Asked([texts[i] for i in inputs], length, evidence, shared)
            found = opinions(self._backbone, self._residents, asked)
            return {number: found[router.tasks[number]] for number in looked}

        decision = decide(router, router.log_p(seen), ask)
        sure, like = decision.confidence.tolist(), (router.known(seen) + decision.fit).tolist()
        threshold = router.threshold(self._false_abstentions)
        chosen = zip(texts, decision.tasks.tolist(), decision.answers, sure, like, strict=True)
        found = [
            self._answered(text, router.tasks[number], answer, confidence=confidence)
            if known >= threshold
            else Prediction(text, None, None, None, True, confidence, True, None)
            for text, number, answer, confidence, known in chosen
        ]
        return self._with_possible(found, router, decision, at_least=at_least)

    def _with_possible(
        self, found: list[Prediction], router: Router, decision: Decision[Answer | Failed], *, at_least: float | None
    ) -> list[Prediction]:
        """The same with the nearest tasks of inputs that belong to none, or all tasks above a probability."""
        probabilities = decision.log_p.exp()
        order = probabilities.argsort(dim=1, descending=True)
        listed = []
        for i, prediction in enumerate(found):
            near = [(router.tasks[number], float(probabilities[i, number])) for number in order[i].tolist()]
            if prediction.abstained:
                possible = tuple(Possible(name, p) for name, p in near[:NEAREST])
            elif at_least is not None:
                possible = tuple(self._possible(prediction.text, name, p) for name, p in near if p >= at_least)
            else:
                possible = ()
            listed.append(replace(prediction, possible=possible))
        return listed

    def _possible(self, text: Text, task: str, confidence: float) -> Possible:
        champion = self._champions[task]
        asked = {task: Asked([text], _longest(champion))}
        (answer,) = opinions(self._backbone, self._residents, asked)[task].answers
        if isinstance(answer, Failed):
            return Possible(task, confidence, delta=champion.delta)
        return Possible(task, confidence, answer.label, answer.score, champion.delta)

    def _answered(self, text: Text, task: str, answer: Answer | Failed, *, confidence: float | None) -> Prediction:
        delta, routed = self._champions[task].delta, confidence is not None
        if isinstance(answer, Failed):
            return Prediction(text, task, None, None, routed, confidence, False, delta, error=answer.error)
        return Prediction(text, task, answer.label, answer.score, routed, confidence, False, delta)

    def _answers(self, task: str, texts: Sequence[Text]) -> Sequence[Answer]:
        """What a task's delta says of each text."""
        asked = Asked(texts, _longest(self._champion(task)))
        return opinion(self._backbone, self.load(task), asked).answers

    def _router(self) -> tuple[Router, Mapping[str, Statistics]]:
        found = stored_router(self._registry, self._backbone, self._champions, kind=self._kind)
        if found is None:
            raise InputError(
                "no task on this backbone has a signature, so nothing can be routed; name the task of the inputs "
                f"(--task): {', '.join(self._champions)}"
            )
        return found

    def _champion(self, task: str) -> Champion:
        if task not in self._champions:
            raise not_found(f"task learned on backbone {self._backbone.name!r}", task, known=self._champions)
        return self._champions[task]


def _longest(champion: Champion) -> int:
    """How many tokens of a text the task's rows were cut at."""
    return int(champion.budget["max_length"])
