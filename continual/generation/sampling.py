"""Choose the next token of each row: the most probable one, or one drawn from the model's distribution.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

Ids = tuple[int, ...]
Constraint = Callable[[Sequence[int], Tensor], Tensor]
"""From the tokens written so far and the scores [1, V] to the scores, −inf for tokens that may not follow."""


@dataclass(frozen=True)
class SamplingSettings:
    """How an answer is written.

    Attributes:
        max_new_tokens: Largest number of tokens, the end token included.
        temperature: Divides the scores of all tokens; 0 always takes the most probable one.
        top_p: Only the most probable tokens that together reach this probability are drawn.
        top_k: Only so many of the most probable tokens are drawn; 0 for all.
        min_p: Only tokens of at least this share of the most probable one's probability are drawn.
        seed: Makes the drawn tokens repeatable; None draws a new seed.
        stop: Texts at which the answer ends; they are not part of it.
        presence_penalty: Subtracted from the score of every token that was written already.
        frequency_penalty: Subtracted from the score of a token for each time it was written.
        repetition_penalty: Divides the positive score of a token of the prompt or the answer, multiplies a negative
            one. Keskar et al. (2019), "CTRL", arXiv:1909.05858.
        logit_bias: Tokens with what is added to their scores.
        log_probs: Return the log probabilities of the written tokens, and of so many most probable ones at each place;
            None for none at all.
        json_schema: The schema of a JSON document that is the answer, as JSON; None for any text.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    log_probs: int | None = None
    json_schema: str | None = None


class TokenSampler:
    """Chooses the tokens of one row; its random numbers are its own, whoever shares the batch.

    Args:
        settings: How the answer is written.
        prompt: Tokens of the prompt.
        constraint: Restricts the tokens that may follow; None for any text.
    """

    def __init__(self, settings: SamplingSettings, prompt: Ids, constraint: Constraint | None = None) -> None:
        self._settings, self._prompt, self._constraint = settings, prompt, constraint
        self._generator = torch.Generator()  # on the CPU, so that one seed draws the same numbers on every device
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed % (1 << 63))
        self._processors, self._warpers = _processors(settings), _warpers(settings)

    @property
    def is_plain(self) -> bool:
        """Whether the next token is simply the one of the largest logit."""
        settings = self._settings
        penalties = settings.presence_penalty or settings.frequency_penalty
        return not (settings.temperature or penalties or self._processors or self._constraint)

    def choose(self, logits: Tensor, written: Sequence[int]) -> int:
        """Return the next token.

        A drawn token is the first whose cumulative probability exceeds one uniform number, in float64.

        Args:
            logits: The model's logits [V].
            written: Tokens of the answer so far.
        """
        scores = self._penalized(logits.float().unsqueeze(0), written)
        if self._constraint is not None:
            scores = self._constraint(written, scores)
        if not self._settings.temperature:
            return int(scores.argmax())
        uniform = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        for warper in self._warpers:
            scores = warper(None, scores)
        cumulative = scores[0].double().softmax(dim=-1).cumsum(dim=-1)
        return int(torch.searchsorted(cumulative, cumulative[-1] * uniform, right=True).clamp(max=len(cumulative) - 1))

    def _penalized(self, scores: Tensor, written: Sequence[int]) -> Tensor:
        if self._processors:
            ids = torch.tensor([[*self._prompt, *written]], device=scores.device)
            for processor in self._processors:
                scores = processor(ids, scores)
        settings = self._settings
        if written and (settings.presence_penalty or settings.frequency_penalty):
            tokens, counts = torch.unique(torch.tensor(written, device=scores.device), return_counts=True)
            scores = scores.clone()
            scores[0, tokens] -= settings.presence_penalty + settings.frequency_penalty * counts
        return scores


def _processors(settings: SamplingSettings) -> list[LogitsProcessor]:
    """What changes the scores before the temperature, also of the most probable token."""
    processors: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in settings.logit_bias]))
    return processors


def _warpers(settings: SamplingSettings) -> list[LogitsProcessor]:
    """What leaves tokens out of the draw, in transformers' order."""
    warpers: list[LogitsProcessor] = []
    if settings.temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k > 0:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0:
        warpers.append(MinPLogitsWarper(settings.min_p))
    return warpers


def choose_tokens(logits: Tensor, samplers: Sequence[TokenSampler], written: Sequence[Sequence[int]]) -> list[int]:
    """Return the next token of each row.

    Args:
        logits: The model's logits [B, V].
        samplers: The B rows' samplers.
        written: Tokens of each answer so far.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.is_plain:
            tokens[row] = sampler.choose(logits[row], written[row])
    return tokens


@dataclass(frozen=True)
class TokenLogProbs:
    """The log probabilities at one place of an answer, in the model's own distribution, before any setting.

    Attributes:
        token: The written token.
        log_prob: Its log probability.
        top: The most probable tokens with theirs, the most probable first.
    """

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


def token_log_probs(
    logits: Tensor, tokens: Sequence[int], top_counts: Sequence[int | None]
) -> list[TokenLogProbs | None]:
    """Compute the log probabilities of the chosen tokens for the rows that ask for them.

    Args:
        logits: The model's logits [B, V].
        tokens: The chosen tokens, B.
        top_counts: How many most probable tokens each row asks for; None for a row without log probabilities.
    """
    results: list[TokenLogProbs | None] = [None] * len(tokens)
    rows = [row for row, count in enumerate(top_counts) if count is not None]
    if not rows:
        return results
    log_probs = logits[rows].float().log_softmax(dim=-1)
    chosen = log_probs[range(len(rows)), [tokens[row] for row in rows]].tolist()
    max_count = max(count or 0 for count in top_counts)
    values, indices = log_probs.topk(min(max_count, logits.shape[-1]), dim=-1)
    for row, log_prob, top_ids, top_values in zip(rows, chosen, indices.tolist(), values.tolist(), strict=True):
        top = list(zip(top_ids, top_values, strict=True))[: top_counts[row]]
        results[row] = TokenLogProbs(tokens[row], log_prob, tuple(top))
    return results
