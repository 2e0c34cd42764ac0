"""Answers by a registry's champions on one backbone, which can be refreshed while it answers."""

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock

from continual.backbones.backbone import Backbone
from continual.errors import NoDelta, TooLarge, WrongKind
from continual.features.pooling import encode
from continual.features.tokens import tokenize
from continual.generation.prompts import Prompt
from continual.generation.sampling import SamplingSettings
from continual.inference.delta_cache import DEVICE_SLOTS, DeltaCache, registry_loader
from continual.inference.predictor import PendingPrediction, Prediction, Predictor
from continual.kinds.chat import PromptFormat, backbone_template, encode_prompts
from continual.kinds.language_model import language_model_obstacle
from continual.serve.core.batcher import Deferred
from continual.serve.core.writer import (
    AnswerWriter,
    Completion,
    CompletionOptions,
    DeferredAnswer,
    completion_prompt,
)
from continual.settings import FALSE_ABSTENTION_RATE
from registry import Champion, Registry, quote
from tasks import Conversation, Text, text_parts
from tasks.errors import InputError

BYTES_PER_TOKEN = 4  # about, for texts in words
EMBEDDINGS, ROUTED, PLAIN = "@embeddings", "@routed", "@plain"  # lanes; no task's name contains an @

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceRequest:
    """One text to answer or to embed.

    Attributes:
        text: A text, or a pair of texts.
        task: The task whose delta answers; None lets the router choose.
        at_least: As for `Predictor.predict`.
        among: As for `Predictor.predict`.
        embed: Return the text's features in the frozen backbone instead of an answer.
        is_chat: Whether the plain backbone reads the text in its chat template.
        completion: Return the answer of a generation task, or of the plain backbone where no task is named, as a
            `Completion`.
    """

    text: Text
    task: str | None = None
    at_least: float | None = None
    among: tuple[str, ...] | None = None
    embed: bool = False
    is_chat: bool = False
    completion: CompletionOptions | None = None

    @property
    def lane(self) -> str:
        """The queue lane: one per named task, and one each for routed texts, embeddings and the plain backbone."""
        return EMBEDDINGS if self.embed else self.task or (PLAIN if self.completion else ROUTED)

    @cached_property
    def cost(self) -> int:
        """The approximate number of tokens; cached, since the queue reads it often and texts may be long."""
        return 2 + sum(len(part.encode("utf-8", "replace")) for part in text_parts(self.text)) // BYTES_PER_TOKEN


@dataclass(frozen=True)
class Embedding:
    """The frozen features of one text.

    Attributes:
        vector: Pooled last hidden states, [D].
        tokens: Number of tokens that were pooled.
    """

    vector: tuple[float, ...]
    tokens: int


ServedAnswer = Prediction | Completion | Embedding
BatchAnswer = ServedAnswer | Deferred[ServedAnswer] | Exception


class ChampionServer:
    """The champions on one backbone; `refresh` updates them from the registry.

    Only one thread may call `answer_batch` and `advance`; everything else may be called from any thread.

    Args:
        backbone: The frozen backbone.
        registry: The registry whose champions answer.
        router: As for `Predictor`.
        false_abstentions: As for `Predictor`.
        slots: As for `Predictor`.

    Attributes:
        backbone: The frozen backbone.
        registry: The registry whose champions answer.
        champions: The champions that answer, by task.
        kinds: The kind of each registered task, by task.
    """

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        *,
        router: str = "auto",
        false_abstentions: float = FALSE_ABSTENTION_RATE,
        slots: int = DEVICE_SLOTS,
    ) -> None:
        self.backbone, self.registry = backbone, registry
        self._router, self._false_abstentions = router, false_abstentions
        self._refreshing = Lock()
        self._predictor: Predictor | None = None
        self._delta_cache = DeltaCache(backbone, registry_loader(registry), slots=slots)
        self.champions: Mapping[str, Champion] = {}
        self.kinds: Mapping[str, str] = {}

    @property
    def places(self) -> Mapping[str, Collection[str]]:
        """The cache keys of the deltas on the `device` and in the host's `memory`."""
        return self._delta_cache.locations()

    @property
    def writes(self) -> bool:
        """Whether the backbone can write text."""
        return language_model_obstacle(self.backbone, what="it") is None

    @cached_property
    def writer(self) -> AnswerWriter:
        """Writes the answers that `answer_batch` defers; for the same thread."""
        return AnswerWriter(self.backbone, self._delta_cache)

    def advance(self) -> bool:
        """Write one token of every deferred answer; return whether any is left."""
        return self.writes and self.writer.step()

    def is_stale(self) -> bool:
        """Return whether the registry has other champions than those that answer.

        Raises:
            RegistryError: The registry cannot be read.
            DatabaseUnavailable: The database cannot be reached.
        """
        return self._read_champions() != self.champions

    def refresh(self) -> bool:
        """Answer with the registry's champions of this moment; return whether they changed.

        A batch that is being answered is not disturbed. Inputs that name their task are answered by the new deltas at
        once. Building a router of many tasks takes seconds: until then the one before goes on, unless one of its tasks
        is gone. If reading fails, everything stays as it was.

        Raises:
            RegistryError: The registry cannot be read.
            DatabaseUnavailable: The database cannot be reached.
        """
        with self._refreshing:
            champions = self._read_champions()
            if champions == self.champions:
                return False
            if champions.keys() - self.kinds.keys():  # a task's kind never changes
                self.kinds = {row["task"]: row["kind"] for row in self.registry.tasks()}
            if champions:
                self._replace_predictor(champions)
            else:
                self._predictor, self.champions = None, champions
            return True

    def _replace_predictor(self, champions: Mapping[str, Champion]) -> None:
        previous, predictor = self._predictor, self._make_predictor(champions, self._predictor)
        if previous and champions.keys() >= self.champions.keys():
            self._predictor, self.champions = predictor, champions
            predictor = self._make_predictor(champions, predictor)
        try:
            predictor.build_router()
        except InputError:  # requests without a task are answered with the full reason
            log.warning("no task can be routed to; only inputs that name their task are answered")
        self._predictor, self.champions = predictor, champions  # in this order: other threads read `champions` first

    def _make_predictor(self, champions: Mapping[str, Champion], previous: Predictor | None) -> Predictor:
        return Predictor(
            self.backbone,
            self.registry,
            serving=champions.values(),
            router=self._router,
            false_abstentions=self._false_abstentions,
            delta_cache=self._delta_cache,
            previous=previous,
        )

    def _read_champions(self) -> dict[str, Champion]:
        return {champion.task: champion for champion in self.registry.champions(self.backbone.fingerprint)}

    def check_task(self, task: str, *, kind: str | None = None) -> None:
        """Raise an error if a task cannot be answered here.

        Args:
            task: The task's name.
            kind: The kind that the task must have; None for any.

        Raises:
            NotFound: The task is not registered.
            NoDelta: The task has no champion on this backbone.
            WrongKind: The task is of another kind.
        """
        if task not in self.champions:
            self.registry.task(task)
            raise NoDelta(
                f"task {quote(task)} has no delta on backbone {self.backbone.name!r}; learn it there, or ask a server "
                "of the backbone that it was learned on"
            )
        if kind is not None and self.kinds[task] != kind:
            raise WrongKind(f"task {quote(task)} is of kind {self.kinds[task]}, not {kind}; ask it by POST /v1/predict")

    def answer_batch(self, requests: Sequence[InferenceRequest]) -> list[BatchAnswer]:
        """Return the answer to each request, or the exception that it caused, in order.

        Requests of one sort (embedding, plain backbone, with a task, without one at the same `at_least` and among the
        same tasks) are answered together. What is written token by token is deferred.
        """
        if self.writes:
            self.writer.pause()
        groups: dict[object, list[int]] = {}
        for i, request in enumerate(requests):
            lane = request.lane if request.lane in (EMBEDDINGS, PLAIN) else request.task is None
            groups.setdefault((lane, request.at_least, request.among), []).append(i)
        answers = {
            i: answer
            for indices in groups.values()
            for i, answer in zip(indices, self._answer_group([requests[i] for i in indices]), strict=True)
        }
        return [answers[i] for i in range(len(requests))]

    def _answer_group(self, requests: Sequence[InferenceRequest]) -> Sequence[BatchAnswer]:
        """Answer requests of one sort; if they fail, bisect, so that only the request at fault fails."""
        texts, predictor = [request.text for request in requests], self._predictor
        try:
            if requests[0].lane == EMBEDDINGS:
                return self._embed(texts)
            if requests[0].lane == PLAIN:
                return [self._plain(request) for request in requests]
            if predictor is None:
                raise NoDelta(f"nothing is learned on backbone {self.backbone.name!r} any more")
            for request in requests:
                _require_template(predictor, request)
            tasks, at_least, among = [request.task for request in requests], requests[0].at_least, requests[0].among
            if at_least is not None:
                return predictor.predict(texts, task=tasks, among=among, at_least=at_least)
            return [*map(self._deferred, predictor.begin(texts, tasks, among=among), requests)]
        except Exception as error:
            if len(requests) == 1:
                return [error]
        half = len(requests) // 2
        return [*self._answer_group(requests[:half]), *self._answer_group(requests[half:])]

    def _deferred(
        self, prediction: Prediction | PendingPrediction, request: InferenceRequest
    ) -> Prediction | Deferred[ServedAnswer]:
        if isinstance(prediction, Prediction):
            return prediction
        if request.completion is None:
            answer = DeferredAnswer(prediction.prompt, prediction.task, prediction.finish, None)
        else:
            prompt = completion_prompt(prediction.prompt, request.completion)
            answer = DeferredAnswer(prompt, prediction.task, None, request.completion)
        return Deferred(partial(self.writer.start, answer))

    def _plain(self, request: InferenceRequest) -> Deferred[ServedAnswer]:
        """Return the continuation of a text by the backbone without a delta."""
        assert request.completion is not None
        ids = self._plain_ids(request)
        max_new_tokens = self.backbone.longest_input - (len(ids) if self.backbone.architecture == "causal" else 1)
        if max_new_tokens < 1 or len(ids) > self.backbone.longest_input:
            raise TooLarge(
                f"the prompt has {len(ids)} tokens and backbone {self.backbone.name!r} takes "
                f"{self.backbone.longest_input}, those that are written included; send a shorter one"
            )
        prompt = Prompt(ids, SamplingSettings(max_new_tokens), strip=False)
        answer = DeferredAnswer(completion_prompt(prompt, request.completion), PLAIN, None, request.completion)
        return Deferred(partial(self.writer.start, answer))

    def _plain_ids(self, request: InferenceRequest) -> tuple[int, ...]:
        """Return the tokens of a text, or of a conversation in the tokenizer's own chat template."""
        if not request.is_chat:
            tokenizer = self.backbone.tokenizer
            return tuple(tokenizer(request.text, verbose=False)["input_ids"]) or (tokenizer.eos_token_id,)
        template = backbone_template(self.backbone)
        if template is None:
            raise InputError(
                f"backbone {self.backbone.name!r} has no chat template; send its prompt to /v1/completions"
            )
        return encode_prompts(self.backbone, PromptFormat(template), [request.text], limit=sys.maxsize).ids[0]

    def _embed(self, texts: Sequence[Text]) -> list[Embedding]:
        tokens = tokenize(self.backbone, texts, max_length=self.backbone.longest_input)
        vectors = encode(self.backbone, tokens).tolist()
        return [Embedding(tuple(vector), len(ids)) for vector, ids in zip(vectors, tokens.ids, strict=True)]


def _require_template(predictor: Predictor, request: InferenceRequest) -> None:
    """Refuse a conversation for a delta that was learned without a chat template.

    Raises:
        InputError: The text is a conversation, and the task's delta has no chat template.
    """
    if not isinstance(request.text, Conversation) or request.task is None:
        return
    chosen = predictor.load_delta(request.task).kind.get("prompt") or {}
    if chosen.get("template") is None:
        roles = ", ".join(message.role for message in request.text.messages)
        raise InputError(
            f"messages of the roles {roles:.200}: task {quote(request.task)} was learned without a chat template, on "
            "single texts; send one message of role user"
        )
