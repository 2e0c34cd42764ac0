"""Answer inputs with what has been learned, each by its task's delta, whether or not its task is named."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.features.random_features import frozen_features
from continual.features.tokens import tokenize
from continual.inference.delta_cache import DEVICE_SLOTS, DeltaCache, cache_key, registry_loader
from continual.inference.opinions import DeltaQuery, FailedAnswer, query_deltas
from continual.kinds import Answer, TokenCallback
from continual.routing import Decision, Opinion, Router, RoutingStatistics, choose_tasks, rule_names
from continual.routing.stored_router import load_router
from continual.settings import FALSE_ABSTENTION_RATE
from registry import Champion, Registry, not_found
from tasks import Text
from tasks.errors import InputError

_Routing = tuple[Router, Mapping[str, RoutingStatistics]]
ABSTAIN_CANDIDATES = 3  # tasks that are named of an input that belongs to none


@dataclass(frozen=True)
class TaskCandidate:
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
    possible: tuple[TaskCandidate, ...] = ()
    error: str | None = None


class Predictor:
    """The champions of a registry on one backbone, as they were when it was made; each is loaded when first needed.

    serving: the deltas that answer, where they are not the champions · router: a name of `ROUTERS`, or `auto` ·
    false_abstentions: of the inputs of known tasks, the share that may be taken for those of none; 0 for no abstaining
    · slots: how many deltas lie on the device at once · before: a predictor that this one takes over from, with its
    deltas in memory and, until this one is `ready`, its router, if all tasks of that are here; only one of the two may
    answer at a time.

    Raises InputError where nothing has been learned on the backbone, RoutingError where there is no such router.
    """

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        *,
        serving: Iterable[Champion] | None = None,
        router: str = "auto",
        false_abstentions: float = FALSE_ABSTENTION_RATE,
        slots: int = DEVICE_SLOTS,
        before: "Predictor | None" = None,
    ) -> None:
        self._backbone, self._registry = backbone, registry
        found = registry.champions(backbone.fingerprint) if serving is None else serving
        self._champions = {champion.task: champion for champion in found}
        self.delta_cache: DeltaCache = (
            before.delta_cache if before else DeltaCache(backbone, registry_loader(registry), slots=slots)
        )
        rule_names(router)  # whether there is such a router
        self._kind, self._false_abstentions = router, false_abstentions
        self._routing: _Routing | None = before._routing if before else None
        if self._routing and not self._champions.keys() >= set(self._routing[0].tasks):
            self._routing = None
        if not self._champions:
            raise InputError(
                f"nothing has been learned on backbone {backbone.name!r} yet; learn a task first "
                "(`continual run STREAM.yaml`), or give the --home that holds what was learned"
            )

    def predict(
        self,
        texts: Sequence[Text],
        *,
        task: str | Sequence[str | None] | None = None,
        at_least: float | None = None,
        hear: Sequence[TokenCallback | None] = (),
    ) -> list[Prediction]:
        """One prediction per text, in order; without a task the router chooses, and may say that it is none.

        task: of all texts, or of each, None where the router is to choose · at_least: name every task that has this
        probability, with its answer · hear: for each text who is told of its answer while it is written, where its task
        is named and one that generates. Raises NotFound for a task that has no delta on this backbone, BlobError where
        that of the one task of all texts cannot be read.
        """
        if task is None or isinstance(task, str):
            if task is not None:
                self.load_delta(task)
            task = [task] * len(texts)
        told: dict[str, list[int]] = {}
        for i, name in enumerate(task):
            if name is not None:
                told.setdefault(self._champion(name).task, []).append(i)
        heard = hear or [None] * len(texts)
        answers = self._asked(
            {
                name: DeltaQuery([texts[i] for i in rows], self._longest(name), on_token=[heard[i] for i in rows])
                for name, rows in told.items()
            }
        )
        found = {
            i: self._answered(texts[i], name, answer, confidence=None)
            for name, rows in told.items()
            for i, answer in zip(rows, answers[name].answers, strict=True)
        }
        if untold := [i for i, name in enumerate(task) if name is None]:
            routed = self._routed([texts[i] for i in untold], at_least=at_least)
            found |= dict(zip(untold, routed, strict=True))
        return [found[i] for i in range(len(texts))]

    def build_router(self) -> None:
        """Have the router made now, not when it is first needed. Raises InputError where no task can be routed to."""
        self._routing = self._router()

    def load_delta(self, task: str) -> Delta:
        """A task's delta, which is read when it is first asked for. Raises NotFound, or BlobError."""
        return self.delta_cache.get(cache_key(self._champion(task)))

    def _routed(self, texts: Sequence[Text], *, at_least: float | None) -> list[Prediction]:
        router, statistics = self._routing = self._routing or self._router()
        longest = max(map(self._longest, self._champions))
        seen = frozen_features(self._backbone, tokenize(self._backbone, texts, max_length=longest))

        def ask(looked: Mapping[int, list[int]]) -> dict[int, Opinion[Answer | FailedAnswer]]:
            asked = {}
            for number, inputs in looked.items():
                name = router.tasks[number]
                length, known = self._longest(name), statistics.get(name)
                shared = seen.take(inputs) if length == longest else None
                evidence = known.evidence if known else None
                asked[name] = DeltaQuery([texts[i] for i in inputs], length, evidence, shared)
            found = self._asked(asked)
            return {number: found[router.tasks[number]] for number in looked}

        decision = choose_tasks(router, router.log_p(seen), ask)
        sure, like = decision.confidence.tolist(), (router.familiarity(seen) + decision.fit).tolist()
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
        self,
        found: list[Prediction],
        router: Router,
        decision: Decision[Answer | FailedAnswer],
        *,
        at_least: float | None,
    ) -> list[Prediction]:
        """The same with the nearest tasks of inputs that belong to none, or all tasks above a probability."""
        probabilities = decision.log_p.exp()
        likeliest = probabilities.sort(dim=1, descending=True)
        near = [
            [(router.tasks[number], p) for number, p in zip(numbers, row, strict=True)]
            for numbers, row in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ]
        rows: dict[str, list[int]] = {}
        for i, prediction in enumerate(found):
            if at_least is not None and not prediction.abstained:
                for name, p in near[i]:
                    if p >= at_least:
                        rows.setdefault(name, []).append(i)
        asked = {name: DeltaQuery([found[i].text for i in own], self._longest(name)) for name, own in rows.items()}
        opinions_of = self._asked(asked)
        answers = {
            (i, name): answer
            for name, own in rows.items()
            for i, answer in zip(own, opinions_of[name].answers, strict=True)
        }
        return [
            replace(
                prediction,
                possible=tuple(TaskCandidate(name, p) for name, p in near[i][:ABSTAIN_CANDIDATES])
                if prediction.abstained
                else tuple(self._possible(name, p, answers[i, name]) for name, p in near[i] if (i, name) in answers),
            )
            for i, prediction in enumerate(found)
        ]

    def _possible(self, task: str, confidence: float, answer: Answer | FailedAnswer) -> TaskCandidate:
        delta = self._champions[task].delta
        if isinstance(answer, FailedAnswer):
            return TaskCandidate(task, confidence, delta=delta)
        return TaskCandidate(task, confidence, answer.label, answer.score, delta)

    def _answered(
        self, text: Text, task: str, answer: Answer | FailedAnswer, *, confidence: float | None
    ) -> Prediction:
        delta, routed = self._champions[task].delta, confidence is not None
        if isinstance(answer, FailedAnswer):
            return Prediction(text, task, None, None, routed, confidence, False, delta, error=answer.error)
        return Prediction(text, task, answer.label, answer.score, routed, confidence, False, delta)

    def _asked(self, asked: Mapping[str, DeltaQuery]) -> dict[str, Opinion[Answer | FailedAnswer]]:
        """What the deltas of tasks say, by task."""
        names = {task: cache_key(self._champions[task]) for task in asked}
        found = query_deltas(self._backbone, self.delta_cache, {names[task]: own for task, own in asked.items()})
        return {task: found[name] for task, name in names.items()}

    def _longest(self, task: str) -> int:
        """How many tokens of a text the task's rows were cut at."""
        return int(self._champions[task].budget["max_length"])

    def _router(self) -> _Routing:
        found = load_router(self._registry, self._backbone, self._champions, kind=self._kind)
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
