"""Answer each input with its task's delta, and choose the task by the router where none is named."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

from pydantic import Field

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.features.random_features import frozen_features
from continual.features.tokens import tokenize
from continual.generation.prompts import Generated, Prompt
from continual.inference.delta_cache import DEVICE_SLOTS, DeltaCache, cache_key, registry_loader
from continual.inference.opinions import AnyAnswer, DeltaQuery, FailedAnswer, PendingAnswer, query_deltas
from continual.kinds import Answer
from continual.routing import Decision, Opinion, Router, choose_tasks, rule_names
from continual.routing.stored_router import LoadedRouter, load_router
from continual.settings import FALSE_ABSTENTION_RATE
from registry import Champion, Registry, not_found
from tasks import Text, text_as_json
from tasks.errors import InputError

ABSTAIN_CANDIDATES = 3  # nearest tasks that are named for an input of no task


@dataclass(frozen=True)
class TaskCandidate:
    """A task that an input may belong to.

    Attributes:
        task: Name of the task.
        confidence: The router's probability of the task.
        label: Answer of the task's delta; None where it was not queried or could not be loaded.
        score: Probability of the answer; None for kinds without probabilities.
        delta: Name of the delta; None where it was not queried.
    """

    task: str
    confidence: float
    label: str | float | None = None
    score: float | None = None
    delta: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        text: The input: a text, a pair or a conversation.
        task: The named or the chosen task; None where the router abstained.
        label: The answer, a number for a regression and a text for any other kind.
        score: Probability of the answer, a fraction; None for kinds without probabilities.
        routed: True where the router chose the task.
        confidence: The router's probability of the task among all that it may choose; None where the task was named.
        abstained: True where the input resembles the rows of no task; there is no answer then.
        delta: Name of the delta that answered.
        possible: The nearest tasks of an input that was abstained on, or every task above the probability `at_least`.
        error: Why there is no answer of a chosen or named task: its delta could not be loaded or put on the device.
        columns: Further columns of the input, by the names that they have in `to_json`.
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
    columns: Annotated[Mapping[str, Any], Field(exclude=True)] = field(default_factory=dict)  # no field of a response

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the answer, followed by the input's further columns."""
        answer = asdict(replace(self, columns={}))
        del answer["columns"]
        answer["text"] = text_as_json(self.text)
        return answer | dict(self.columns)


@dataclass(frozen=True)
class PendingPrediction:
    """A prediction whose answer is still to be written.

    Attributes:
        prompt: The prompt of the answer.
        task: The named or the chosen task.
        finish: Returns the prediction from what was written.
    """

    prompt: Prompt
    task: str
    finish: Callable[[Generated], Prediction]


ANSWER_FIELDS = tuple(field.name for field in fields(Prediction) if field.name != "columns")


class Predictor:
    """The champions of a registry on one backbone, as they are at construction; deltas load lazily.

    Args:
        backbone: The frozen backbone.
        registry: Where deltas and routing statistics are loaded from.
        serving: The deltas that answer; by default the registry's champions.
        router: Name of a rule of `ROUTERS`, or `auto`.
        false_abstentions: Share of the inputs of known tasks that may be abstained on; 0 never abstains.
        slots: Number of deltas on the device.
        delta_cache: Deltas to share with a predictor that is not used any more.
        previous: A predictor to replace. Its delta cache is shared, and its router used until `build_router` is called,
            if all tasks of that router are served here too. Only one of the two may predict at a time.

    Raises:
        InputError: Nothing has been learned on the backbone.
        RoutingError: There is no such router.
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
        delta_cache: DeltaCache | None = None,
        previous: "Predictor | None" = None,
    ) -> None:
        self._backbone, self._registry = backbone, registry
        champions = registry.champions(backbone.fingerprint) if serving is None else serving
        self._champions = {champion.task: champion for champion in champions}
        self.delta_cache: DeltaCache = (
            delta_cache
            or (previous and previous.delta_cache)
            or DeltaCache(backbone, registry_loader(registry), slots=slots)
        )
        rule_names(router)  # raises where there is no such router
        self._router_kind, self._false_abstentions = router, false_abstentions
        self._routing: LoadedRouter | None = previous._routing if previous else None
        if self._routing and not self._champions.keys() >= set(self._routing.router.tasks):
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
        among: Sequence[str] | None = None,
        at_least: float | None = None,
    ) -> list[Prediction]:
        """Predict one answer per text, in order; where no task is named the router chooses one or abstains.

        Args:
            texts: N texts.
            task: Task of all texts, or of each; None where the router chooses.
            among: Tasks among which the router chooses, at least one; by default all.
            at_least: Also answer by every task that has this probability.

        Returns:
            N predictions.

        Raises:
            NotFound: A task has no delta on this backbone.
            InputError: The router cannot choose a task of `among`.
            BlobError: The delta of the one task of all texts cannot be read.
        """
        if isinstance(task, str):
            self.load_delta(task)
        tasks = [task] * len(texts) if task is None or isinstance(task, str) else task
        predictions = self._predict(texts, tasks, among=among, at_least=at_least, defer=False)
        return [prediction for prediction in predictions if isinstance(prediction, Prediction)]

    def begin(
        self, texts: Sequence[Text], tasks: Sequence[str | None], *, among: Sequence[str] | None = None
    ) -> list[Prediction | PendingPrediction]:
        """Predict as `predict` does, but leave answers that are written token by token to the caller.

        Args:
            texts: N texts.
            tasks: Task of each text; None where the router chooses.
            among: Tasks among which the router chooses, at least one; by default all.

        Raises:
            NotFound: A task has no delta on this backbone.
            InputError: The router cannot choose a task of `among`.
        """
        return self._predict(texts, tasks, among=among, at_least=None, defer=True)

    def _predict(
        self,
        texts: Sequence[Text],
        task: Sequence[str | None],
        *,
        among: Sequence[str] | None,
        at_least: float | None,
        defer: bool,
    ) -> list[Prediction | PendingPrediction]:
        rows_of_task: dict[str, list[int]] = {}
        for i, name in enumerate(task):
            if name is not None:
                rows_of_task.setdefault(self._champion(name).task, []).append(i)
        queries = {
            name: DeltaQuery([texts[i] for i in rows], self._max_length(name)) for name, rows in rows_of_task.items()
        }
        opinions = self._query(queries, defer=defer)
        predictions = {
            i: self._prediction(texts[i], name, answer, confidence=None)
            for name, rows in rows_of_task.items()
            for i, answer in zip(rows, opinions[name].answers, strict=True)
        }
        if unnamed := [i for i, name in enumerate(task) if name is None]:
            router = self._router_among(among)
            routed = self._predict_routed(router, [texts[i] for i in unnamed], at_least=at_least, defer=defer)
            predictions |= dict(zip(unnamed, routed, strict=True))
        return [predictions[i] for i in range(len(texts))]

    def build_router(self) -> None:
        """Build the router now instead of at its first use; raise InputError where no task can be routed to."""
        self._routing = self._load_router()

    @property
    def is_complete(self) -> bool:
        """Whether the router, where it is built, is of all tasks as far as they can ever be routed to."""
        return self._routing is None or self._routing.complete

    def load_delta(self, task: str) -> Delta:
        """Return a task's delta, from the cache or the registry.

        Raises:
            NotFound: The task has no delta on this backbone.
            BlobError: The delta cannot be read.
        """
        return self.delta_cache.get(cache_key(self._champion(task)))

    def _router_among(self, among: Sequence[str] | None) -> Router:
        self._routing = self._routing or self._load_router()
        router = self._routing.router
        if among is None:
            return router
        if not among:
            raise InputError("the router cannot choose among no tasks; name at least one, or leave the set out")
        champions = [self._champion(name) for name in among]
        routable = set(router.tasks)
        for champion in champions:
            if champion.task not in routable:
                reason = "has no routing statistics" if champion.is_routed else "declares `route: false`"
                raise InputError(
                    f"task {champion.task!r} {reason}, so the router cannot choose it; leave it out of the set, or "
                    "name it as the task of the inputs"
                )
        return router.among(among)

    def _predict_routed(
        self, router: Router, texts: Sequence[Text], *, at_least: float | None, defer: bool
    ) -> list[Prediction | PendingPrediction]:
        assert self._routing is not None
        fit_statistics = self._routing.fit_statistics
        max_length = max(map(self._max_length, self._champions))
        frozen = frozen_features(self._backbone, tokenize(self._backbone, texts, max_length=max_length))

        def query(inputs_of_task: Mapping[int, list[int]]) -> dict[int, Opinion[AnyAnswer]]:
            queries = {}
            for number, inputs in inputs_of_task.items():
                name = router.tasks[number]
                length = self._max_length(name)
                reusable = frozen.take(inputs) if length == max_length else None  # only where truncated alike
                queries[name] = DeltaQuery([texts[i] for i in inputs], length, fit_statistics(name), reusable)
            opinions = self._query(queries, defer=defer)
            return {number: opinions[router.tasks[number]] for number in inputs_of_task}

        routed = router.route(frozen)
        decision = choose_tasks(router, routed.log_p, query)
        confidences, levels = decision.confidence.tolist(), (routed.familiarity + decision.fit).tolist()
        threshold = router.threshold(self._false_abstentions)
        chosen = zip(texts, decision.tasks.tolist(), decision.answers, confidences, levels, strict=True)
        predictions = [
            self._prediction(text, router.tasks[number], answer, confidence=confidence)
            if level >= threshold
            else Prediction(text, None, None, None, True, confidence, True, None)
            for text, number, answer, confidence, level in chosen
        ]
        return self._with_candidates(texts, predictions, router, decision, at_least=at_least)

    def _with_candidates(
        self,
        texts: Sequence[Text],
        predictions: list[Prediction | PendingPrediction],
        router: Router,
        decision: Decision[AnyAnswer],
        *,
        at_least: float | None,
    ) -> list[Prediction | PendingPrediction]:
        """Add the nearest tasks where the router abstained, and answers of all tasks above `at_least`."""
        count = ABSTAIN_CANDIDATES if at_least is None else max(int(1 / max(at_least, 1e-9)), ABSTAIN_CANDIDATES)
        ranked = decision.log_p.topk(min(count, len(router.tasks)), dim=1)
        candidates = [
            [(router.tasks[number], p) for number, p in zip(numbers, row, strict=True) if p > 0]
            for numbers, row in zip(ranked.indices.tolist(), ranked.values.exp().tolist(), strict=True)
        ]
        rows_of_task: dict[str, list[int]] = {}
        for i, prediction in enumerate(predictions):
            if at_least is not None and isinstance(prediction, Prediction) and not prediction.abstained:
                for name, p in candidates[i]:
                    if p >= at_least:
                        rows_of_task.setdefault(name, []).append(i)
        opinions = self._query(
            {name: DeltaQuery([texts[i] for i in rows], self._max_length(name)) for name, rows in rows_of_task.items()},
            defer=False,
        )
        answers = {
            (i, name): answer
            for name, rows in rows_of_task.items()
            for i, answer in zip(rows, opinions[name].answers, strict=True)
        }
        return [
            prediction
            if isinstance(prediction, PendingPrediction)
            else replace(
                prediction,
                possible=tuple(TaskCandidate(name, p) for name, p in candidates[i][:ABSTAIN_CANDIDATES])
                if prediction.abstained
                else tuple(
                    self._candidate(name, p, answers[i, name]) for name, p in candidates[i] if (i, name) in answers
                ),
            )
            for i, prediction in enumerate(predictions)
        ]

    def _candidate(self, task: str, confidence: float, answer: AnyAnswer) -> TaskCandidate:
        delta = self._champions[task].delta
        if isinstance(answer, Answer):
            return TaskCandidate(task, confidence, answer.label, answer.score, delta)
        return TaskCandidate(task, confidence, delta=delta)

    def _prediction(
        self, text: Text, task: str, answer: AnyAnswer, *, confidence: float | None
    ) -> Prediction | PendingPrediction:
        if isinstance(answer, PendingAnswer):
            finish = answer.finish

            def finish_prediction(generated: Generated) -> Prediction:
                return self._finished(text, task, finish(generated), confidence=confidence)

            return PendingPrediction(answer.prompt, task, finish_prediction)
        return self._finished(text, task, answer, confidence=confidence)

    def _finished(
        self, text: Text, task: str, answer: Answer | FailedAnswer, *, confidence: float | None
    ) -> Prediction:
        delta, routed = self._champions[task].delta, confidence is not None
        if isinstance(answer, FailedAnswer):
            return Prediction(text, task, None, None, routed, confidence, False, delta, error=answer.error)
        return Prediction(text, task, answer.label, answer.score, routed, confidence, False, delta)

    def _query(self, queries: Mapping[str, DeltaQuery], *, defer: bool) -> dict[str, Opinion[AnyAnswer]]:
        """Query the deltas of tasks; both mappings are keyed by task."""
        keys = {task: cache_key(self._champions[task]) for task in queries}
        by_key = {keys[task]: query for task, query in queries.items()}
        opinions = query_deltas(self._backbone, self.delta_cache, by_key, defer=defer)
        return {task: opinions[key] for task, key in keys.items()}

    def _max_length(self, task: str) -> int:
        """Return the number of tokens that the task's texts were truncated to in training."""
        return int(self._champions[task].budget["max_length"])

    def _load_router(self) -> LoadedRouter:
        routing = load_router(self._registry, self._backbone, self._champions, kind=self._router_kind)
        if routing is None:
            raise InputError(
                "no task on this backbone has a signature, so nothing can be routed; name the task of the inputs "
                f"(--task): {', '.join(self._champions)}"
            )
        return routing

    def _champion(self, task: str) -> Champion:
        if task not in self._champions:
            raise not_found(f"task learned on backbone {self._backbone.name!r}", task, known_names=self._champions)
        return self._champions[task]
