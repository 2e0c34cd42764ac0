"""Prompts, their answers, and the bounds within which an engine writes these."""

from dataclasses import dataclass
from typing import Any, Literal

from continual.errors import GenerationError
from continual.generation.sampling import Ids, SamplingSettings, TokenLogProbs

FinishReason = Literal["stop", "length"]
MAX_ROWS = 32
MAX_TOKENS = 1 << 15  # of all rows, prompts and answers, padding included
MAX_READ_TOKENS = 1 << 11  # of the prompts that are read in one step


@dataclass(frozen=True)
class EngineLimits:
    """Bounds on what an engine holds.

    Attributes:
        rows: Rows that are written at once.
        tokens: Columns of the cache, of all rows together.
        read_tokens: Tokens of the prompts that are read in one step. A longer prompt is read alone and, without an
            encoder, in parts of so many, between which others are written.
        deltas: Deltas of one batch.
        min_joining: Rows that wait until so many can join together, unless fewer are left; 1 where the time to the
            first token counts, more where only the time to the last one does.
    """

    rows: int = MAX_ROWS
    tokens: int = MAX_TOKENS
    read_tokens: int = MAX_READ_TOKENS
    deltas: int = MAX_ROWS
    min_joining: int = 1


@dataclass(frozen=True)
class Prompt:
    """A prompt, and how it is answered.

    Attributes:
        ids: Its tokens.
        sampling: How the answer is written.
        delta: Name of the delta, for the engine's `BatchBuilder`.
        soft_tokens: How many vectors the delta puts before the tokens that the model writes behind.
        alone: Whether rows of other deltas cannot share a batch with it.
        ends: Tokens that end the answer, beside those of the backbone.
        text: Whether the answer's text is returned as it is written.
        strip: Whether white space at the ends of the text is left out.
    """

    ids: Ids
    sampling: SamplingSettings
    delta: str = ""
    soft_tokens: int = 0
    alone: bool = False
    ends: tuple[int, ...] = ()
    text: bool = False
    strip: bool = True


@dataclass(frozen=True)
class Generated:
    """An answer.

    Attributes:
        ids: Its tokens, the end token included.
        finish_reason: `stop` at an end token or a text of `SamplingSettings.stop`, `length` at `max_new_tokens`.
        log_probs: Log probabilities of its tokens; empty unless they were asked for.
    """

    ids: Ids
    finish_reason: FinishReason
    log_probs: tuple[TokenLogProbs, ...] = ()


@dataclass(frozen=True)
class Progress:
    """What a step did for one row.

    Attributes:
        key: The row's key.
        text: New text of the answer; empty unless the prompt asks for text.
        log_probs: Log probabilities of the tokens since the last progress; empty unless the prompt asks for text and
            for them.
        generated: The answer, once it is complete.
        error: Why there is no answer, at the end of a row without one.
        is_left_out: Whether that is because `BatchBuilder` left the row out.
    """

    key: Any
    text: str = ""
    log_probs: tuple[TokenLogProbs, ...] = ()
    generated: Generated | None = None
    error: GenerationError | None = None
    is_left_out: bool = False
