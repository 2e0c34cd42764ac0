"""Answers that are written token by token, between the batches of other inputs, so that these never wait for them."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any

from continual.backbones.backbone import Backbone
from continual.generation.engine import Engine
from continual.generation.passes import end_tokens
from continual.generation.prompts import MAX_READ_TOKENS, EngineLimits, FinishReason, Generated, Progress, Prompt
from continual.generation.sampling import SamplingSettings, TokenLogProbs
from continual.inference.delta_cache import DeltaCache
from continual.inference.predictor import Prediction
from continual.serve.core.fair_queue import FairQueue
from tasks.errors import InputError

CPU_READ_TOKENS = 128  # of prompts in one step, a quarter of a second of a small model: others wait for it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenChoice:
    """A written token, and the most probable ones at its place.

    Attributes:
        text: Its text.
        log_prob: Its log probability.
        top: Texts and log probabilities of the most probable tokens.
    """

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextPart:
    """A part of an answer.

    Attributes:
        text: The part.
        tokens: Its tokens; empty unless log probabilities are asked for.
    """

    text: str
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer as completions have it.

    Attributes:
        task: The task whose delta wrote it; empty for the plain backbone.
        text: The text.
        finish_reason: As in `Generated`.
        prompt_tokens: Number of tokens of the prompt.
        completion_tokens: Number of tokens that were written, the end token included.
        tokens: The tokens; empty unless log probabilities are asked for.
    """

    task: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class CompletionOptions:
    """What a completion is beyond the answer of a task.

    Attributes:
        sampling: How it is written; its `max_new_tokens` is cut to what prompt and task leave.
        on_part: Called by the thread that answers with each part of the text as it is written, and with the whole at
            last.
    """

    sampling: SamplingSettings
    on_part: "Callable[[TextPart | Completion], None] | None" = None


@dataclass(frozen=True, eq=False)
class DeferredAnswer:
    """An answer that an `AnswerWriter` delivers.

    Attributes:
        prompt: Its prompt.
        lane: The queue lane in which it waits: its task's name.
        finish: Returns the prediction from what was written; None for a completion.
        completion: What a completion is to be like; None for a prediction.
        deadline: The moment at which it came: in its lane, who comes first is served first.
    """

    prompt: Prompt
    lane: str
    finish: Callable[[Generated], Prediction] | None
    completion: CompletionOptions | None
    deadline: float = field(default_factory=time.monotonic)

    @property
    def cost(self) -> int:
        """Tokens that are read, and those that may be written."""
        return len(self.prompt.ids) + self.prompt.sampling.max_new_tokens


@dataclass(eq=False)
class _Delivery:
    """A deferred answer with its receiver."""

    answer: DeferredAnswer
    deliver: Callable[[Any], None]
    is_cancelled: Callable[[], bool]
    parts: list[TextPart] = field(default_factory=list)

    @property
    def lane(self) -> str:
        return self.answer.lane

    @property
    def cost(self) -> int:
        return self.answer.cost

    @property
    def deadline(self) -> float:
        return self.answer.deadline


def completion_prompt(prompt: Prompt, options: CompletionOptions) -> Prompt:
    """Return a prompt that is answered as a completion asks, within the length that it has already."""
    longest = min(options.sampling.max_new_tokens, prompt.sampling.max_new_tokens)
    return replace(prompt, sampling=replace(options.sampling, max_new_tokens=longest), text=True)


class AnswerWriter:
    """Writes deferred answers: many at once, tasks by turns; one token of each at every step.

    One thread may use it. Between two steps the backbone is free for other passes after `pause`.

    Args:
        backbone: The frozen backbone.
        cache: Where deltas are loaded from.
        limits: Bounds on what is written at once.
    """

    def __init__(self, backbone: Backbone, cache: DeltaCache, limits: EngineLimits | None = None) -> None:
        self._backbone, self._cache = backbone, cache
        read_tokens = CPU_READ_TOKENS if backbone.device.type == "cpu" else MAX_READ_TOKENS
        self._limits = limits or EngineLimits(read_tokens=read_tokens, deltas=cache.slots)
        self._engine = self._make_engine()
        self._waiting: FairQueue[_Delivery] = FairQueue()
        self._active: set[_Delivery] = set()

    def __len__(self) -> int:
        """Return the number of answers that wait or are written."""
        return len(self._active) + len(self._waiting)

    def start(self, answer: DeferredAnswer, deliver: Callable[[Any], None], is_cancelled: Callable[[], bool]) -> None:
        """Let an answer wait for its turn.

        Args:
            answer: The answer.
            deliver: Called with the result or an exception.
            is_cancelled: Returns whether nobody waits for it any more.
        """
        self._waiting.put(_Delivery(answer, deliver, is_cancelled))

    def pause(self) -> None:
        """Leave the backbone unchanged until the next step."""
        self._engine.pause()

    def step(self) -> bool:
        """Write one token of every answer; return whether any is left."""
        try:
            self._drop_cancelled()
            while len(self._waiting) and self._engine.has_room:
                delivery = self._waiting.take()
                self._active.add(delivery)
                self._add(delivery)
            for progress in self._engine.step():
                self._take(progress)
        except Exception as error:  # it cannot be put down to one answer; later ones have their own chance
            log.exception("writing %d answers failed", len(self._active))
            self._fail([*self._active], error)
            self.pause()
            self._engine = self._make_engine()
        return len(self) > 0

    def _add(self, delivery: _Delivery) -> None:
        try:
            self._engine.add(delivery, delivery.answer.prompt)
        except InputError as error:  # of this answer alone
            self._fail([delivery], error)

    def _drop_cancelled(self) -> None:
        cancelled = [delivery for delivery in self._active if delivery.is_cancelled()]
        self._engine.cancel(cancelled)
        self._fail(cancelled, CancelledError())

    def _fail(self, deliveries: Iterable[_Delivery], error: Exception) -> None:
        for delivery in deliveries:
            self._active.discard(delivery)
            delivery.deliver(error)

    def _make_engine(self) -> Engine:
        return Engine(self._backbone, self._cache.build_batch, limits=self._limits)

    def _take(self, progress: Progress) -> None:
        delivery: _Delivery = progress.key
        answer, generated = delivery.answer, progress.generated
        if progress.error is not None:
            self._fail([delivery], progress.error)
            return
        if answer.completion is not None:
            self._report(delivery, answer.completion, progress)
        if generated is not None:
            self._active.discard(delivery)
            delivery.deliver(_completion(delivery, generated) if answer.finish is None else answer.finish(generated))

    def _report(self, delivery: _Delivery, options: CompletionOptions, progress: Progress) -> None:
        """Hand on new text, and at last the whole completion."""
        ends = end_tokens(self._backbone).union(delivery.answer.prompt.ends)
        part = TextPart(progress.text, self._choices([each for each in progress.log_probs if each.token not in ends]))
        delivery.parts.append(part)
        if options.on_part is not None:
            if part.text or part.tokens:
                options.on_part(part)
            if progress.generated is not None:
                options.on_part(_completion(delivery, progress.generated))

    def _choices(self, log_probs: Sequence[TokenLogProbs]) -> tuple[TokenChoice, ...]:
        decode = self._backbone.tokenizer.decode
        return tuple(
            TokenChoice(decode([place.token]), place.log_prob, tuple((decode([i]), value) for i, value in place.top))
            for place in log_probs
        )


def _completion(delivery: _Delivery, generated: Generated) -> Completion:
    prompt, parts = delivery.answer.prompt, delivery.parts
    return Completion(
        delivery.lane,
        "".join(part.text for part in parts),
        generated.finish_reason,
        len(prompt.ids),
        len(generated.ids),
        tuple(token for part in parts for token in part.tokens),
    )
