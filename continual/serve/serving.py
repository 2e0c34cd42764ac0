"""What a process answers with: the champions of a registry, looked at again from time to time."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

from continual.backbone import Backbone
from continual.errors import InputError, NoDelta, WrongKind
from continual.features import features, tokenize
from continual.kinds import Hear
from continual.predict import Prediction, Predictor
from continual.residents import SLOTS, Residents, registered
from continual.settings import FALSE_ABSTENTIONS
from registry import Champion, Registry
from tasks import Text

BYTES_PER_TOKEN = 4  # about, of texts in words
EMBEDDINGS, ROUTED = "/embeddings", "/routed"  # lanes; no task's name begins so

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """A text that is to be answered. task: by whose delta, None where the router chooses · at_least: as `predict`'s ·
    embed: its features in the frozen backbone are wanted, and no answer · hear: who is told of an answer while it is
    written.
    """

    text: Text
    task: str | None = None
    at_least: float | None = None
    embed: bool = False
    hear: Hear | None = None

    @property
    def lane(self) -> str:
        return EMBEDDINGS if self.embed else self.task or ROUTED

    @cached_property
    def cost(self) -> int:  # looked at in every turn of a lane, and texts may be long
        parts = (self.text,) if isinstance(self.text, str) else self.text
        return 2 + sum(len(part.encode("utf-8", "replace")) for part in parts) // BYTES_PER_TOKEN


@dataclass(frozen=True)
class Embedded:
    """vector: pooled last hidden states [D] · tokens: how many they are of."""

    vector: tuple[float, ...]
    tokens: int


class Serving:
    """The champions on one backbone, by `refresh` those of this moment; `answers` belongs to one thread.

    router, false_abstentions, slots: as of `Predictor`.
    """

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        *,
        router: str = "auto",
        false_abstentions: float = FALSE_ABSTENTIONS,
        slots: int = SLOTS,
    ) -> None:
        self.backbone, self.registry = backbone, registry
        self.residents = Residents(backbone, registered(registry), slots=slots)
        self._router, self._false_abstentions = router, false_abstentions
        self._refreshing = Lock()
        self._predictor: Predictor | None = None
        self.champions: Mapping[str, Champion] = {}
        self.kinds: Mapping[str, str] = {}

    def refresh(self) -> bool:
        """Look at the registry again; whether other deltas serve than before. What is being answered is not disturbed.

        Raises RegistryError or DatabaseUnavailable; then all stays as it was.
        """
        with self._refreshing:
            found = {own.task: own for own in self.registry.champions(self.backbone.fingerprint)}
            if found == self.champions:
                return False
            # Those of tasks that go stay, and champions come last: other threads look at both meanwhile.
            self.kinds = {**self.kinds, **{row["task"]: row["kind"] for row in self.registry.tasks()}}
            self._predictor = self._made([*found.values()]) if found else None
            self.champions = found
            return True

    def _made(self, champions: Sequence[Champion]) -> Predictor:
        predictor = Predictor(
            self.backbone,
            self.registry,
            serving=champions,
            router=self._router,
            false_abstentions=self._false_abstentions,
            residents=self.residents,
        )
        try:
            predictor.ready()
        except InputError:  # which those who ask without a task are told in full
            log.warning("no task can be routed to; only inputs that name their task are answered")
        return predictor

    def require(self, task: str, *, kind: str | None = None) -> None:
        """Raises NotFound for a task that nobody knows, NoDelta for one without a delta here, WrongKind."""
        if task not in self.champions:
            self.registry.task(task)
            raise NoDelta(
                f"task {task!r} has no delta on backbone {self.backbone.name!r}; learn it there, or ask a server of "
                "the backbone that it was learned on"
            )
        if kind is not None and self.kinds[task] != kind:
            raise WrongKind(f"task {task!r} is of kind {self.kinds[task]}, not {kind}; ask it by POST /v1/predict")

    def answers(self, asks: Sequence[Ask]) -> list[Prediction | Embedded | Exception]:
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

    def _together(self, asks: Sequence[Ask]) -> Sequence[Prediction | Embedded | Exception]:
        """The answers to asks that are alike; where one brings all of them down, halves are answered alone."""
        texts, predictor = [ask.text for ask in asks], self._predictor
        try:
            if asks[0].embed:
                return self._embedded(texts)
            if predictor is None:
                raise NoDelta(f"nothing is learned on backbone {self.backbone.name!r} any more")
            tasks, hear = [ask.task for ask in asks], [ask.hear for ask in asks]
            return predictor.predict(texts, task=tasks, at_least=asks[0].at_least, hear=hear)
        except Exception as error:
            if len(asks) == 1:
                return [error]
        half = len(asks) // 2
        return [*self._together(asks[:half]), *self._together(asks[half:])]

    def _embedded(self, texts: Sequence[Text]) -> list[Embedded]:
        tokens = tokenize(self.backbone, texts, max_length=self.backbone.longest_input)
        vectors = features(self.backbone, tokens).tolist()
        return [Embedded(tuple(vector), len(ids)) for vector, ids in zip(vectors, tokens.ids, strict=True)]
