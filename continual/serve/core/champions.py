"""What a process answers with: the champions of a registry, looked at again from time to time."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock

from continual.backbones.backbone import Backbone
from continual.errors import NoDelta, WrongKind
from continual.features.pooling import encode
from continual.features.tokens import tokenize
from continual.inference.delta_cache import DEVICE_SLOTS
from continual.inference.predictor import Prediction, Predictor
from continual.kinds import TokenCallback
from continual.settings import FALSE_ABSTENTION_RATE
from registry import Champion, Registry
from tasks import Text
from tasks.errors import InputError

BYTES_PER_TOKEN = 4  # about, of texts in words
EMBEDDINGS, ROUTED = "@embeddings", "@routed"  # lanes; no task's name holds an @

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceRequest:
    """A text that is to be answered. task: by whose delta, None where the router chooses · at_least: as `predict`'s ·
    embed: its features in the frozen backbone are wanted, and no answer · hear: who is told of an answer while it is
    written.
    """

    text: Text
    task: str | None = None
    at_least: float | None = None
    embed: bool = False
    on_token: TokenCallback | None = None

    @property
    def lane(self) -> str:
        return EMBEDDINGS if self.embed else self.task or ROUTED

    @cached_property
    def cost(self) -> int:  # looked at in every turn of a lane, and texts may be long
        parts = (self.text,) if isinstance(self.text, str) else self.text
        return 2 + sum(len(part.encode("utf-8", "replace")) for part in parts) // BYTES_PER_TOKEN


@dataclass(frozen=True)
class Embedding:
    """vector: pooled last hidden states [D] · tokens: how many they are of."""

    vector: tuple[float, ...]
    tokens: int


class ChampionServer:
    """The champions on one backbone, by `refresh` those of this moment; `answers` belongs to one thread.

    router, false_abstentions, slots: as of `Predictor`.
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
        self._made = partial(
            Predictor, backbone, registry, router=router, false_abstentions=false_abstentions, slots=slots
        )
        self._refreshing = Lock()
        self._predictor: Predictor | None = None
        self.champions: Mapping[str, Champion] = {}
        self.kinds: Mapping[str, str] = {}

    @property
    def places(self) -> Mapping[str, Collection[str]]:
        """Which deltas lie on the device, and which in the host's memory, by what `resident` calls them."""
        return self._predictor.delta_cache.locations() if self._predictor else {"device": (), "memory": ()}

    def is_stale(self) -> bool:
        """Whether the registry has other champions than serve. Raises RegistryError or DatabaseUnavailable."""
        return self._found() != self.champions

    def refresh(self) -> bool:
        """Look at the registry again; whether other deltas serve than before. What is being answered is not disturbed.

        Tasks that are named are answered by the new deltas at once. A router of many tasks takes seconds to make:
        until then the one before goes on, unless a task of its is gone.
        Raises RegistryError or DatabaseUnavailable; then all stays as it was.
        """
        with self._refreshing:
            found = self._found()
            if found == self.champions:
                return False
            if found.keys() - self.kinds.keys():  # a task's kind never changes
                self.kinds = {row["task"]: row["kind"] for row in self.registry.tasks()}
            if not found:
                self._predictor, self.champions = None, found
                return True
            before, predictor = self._predictor, self._made(serving=found.values(), before=self._predictor)
            if before and found.keys() >= self.champions.keys():
                self._predictor, self.champions = predictor, found
                predictor = self._made(serving=found.values(), before=predictor)
            try:
                predictor.build_router()
            except InputError:  # which those who ask without a task are told in full
                log.warning("no task can be routed to; only inputs that name their task are answered")
            self._predictor, self.champions = predictor, found  # in this order: other threads look at the second first
            return True

    def _found(self) -> dict[str, Champion]:
        return {own.task: own for own in self.registry.champions(self.backbone.fingerprint)}

    def check_task(self, task: str, *, kind: str | None = None) -> None:
        """Raises NotFound for a task that nobody knows, NoDelta for one without a delta here, WrongKind."""
        if task not in self.champions:
            self.registry.task(task)
            raise NoDelta(
                f"task {task!r} has no delta on backbone {self.backbone.name!r}; learn it there, or ask a server of "
                "the backbone that it was learned on"
            )
        if kind is not None and self.kinds[task] != kind:
            raise WrongKind(f"task {task!r} is of kind {self.kinds[task]}, not {kind}; ask it by POST /v1/predict")

    def answer_batch(self, asks: Sequence[InferenceRequest]) -> list[Prediction | Embedding | Exception]:
        """What is said to each; all that is asked alike is answered together."""
        alike: dict[object, list[int]] = {}
        for i, ask in enumerate(asks):
            alike.setdefault((ask.embed, ask.task is None, ask.at_least), []).append(i)
        found = {
            i: answer
            for rows in alike.values()
            for i, answer in zip(rows, self._together([asks[i] for i in rows]), strict=True)
        }
        return [found[i] for i in range(len(asks))]

    def _together(self, asks: Sequence[InferenceRequest]) -> Sequence[Prediction | Embedding | Exception]:
        """The answers to asks that are alike; where one brings all of them down, halves are answered alone."""
        texts, predictor = [ask.text for ask in asks], self._predictor
        try:
            if asks[0].embed:
                return self._embedded(texts)
            if predictor is None:
                raise NoDelta(f"nothing is learned on backbone {self.backbone.name!r} any more")
            tasks, hear = [ask.task for ask in asks], [ask.on_token for ask in asks]
            return predictor.predict(texts, task=tasks, at_least=asks[0].at_least, hear=hear)
        except Exception as error:
            if len(asks) == 1:
                return [error]
        half = len(asks) // 2
        return [*self._together(asks[:half]), *self._together(asks[half:])]

    def _embedded(self, texts: Sequence[Text]) -> list[Embedding]:
        tokens = tokenize(self.backbone, texts, max_length=self.backbone.longest_input)
        vectors = encode(self.backbone, tokens).tolist()
        return [Embedding(tuple(vector), len(ids)) for vector, ids in zip(vectors, tokens.ids, strict=True)]
