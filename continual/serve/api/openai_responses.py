"""Responses in OpenAI's formats of completions and of chats, whole and in parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from continual.serve.core.writer import Completion, TextPart, TokenChoice

Choice = dict[str, Any]


@dataclass(frozen=True)
class OpenAIFormat:
    """One of OpenAI's response formats.

    Attributes:
        id_prefix: Start of the response's `id`.
        response_object: `object` of a whole response.
        chunk_object: `object` of a streamed chunk.
        choice: Returns the choice of a whole response.
        first_choice: Returns the choice of a chunk that comes before the text; None where there is none.
        part_choice: Returns the choice of a chunk with a part of the text, the offset of which is given.
        last_choice: Returns the choice of the chunk behind the text.
    """

    id_prefix: str
    response_object: str
    chunk_object: str
    choice: Callable[[Completion], Choice]
    first_choice: Callable[[], Choice] | None
    part_choice: Callable[[TextPart, int], Choice]
    last_choice: Callable[[Completion], Choice]


def _text_choice(completion: Completion) -> Choice:
    log_probs = _text_log_probs(completion.tokens, 0)
    return {"text": completion.text, "finish_reason": completion.finish_reason, "logprobs": log_probs}


def _text_part(part: TextPart, offset: int) -> Choice:
    return {"text": part.text, "finish_reason": None, "logprobs": _text_log_probs(part.tokens, offset)}


def _text_end(completion: Completion) -> Choice:
    return {"text": "", "finish_reason": completion.finish_reason, "logprobs": None}


def _text_log_probs(tokens: Sequence[TokenChoice], offset: int) -> dict[str, Any] | None:
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }


def _message_choice(completion: Completion) -> Choice:
    message = {"role": "assistant", "content": completion.text, "refusal": None}
    log_probs = _message_log_probs(completion.tokens)
    return {"message": message, "finish_reason": completion.finish_reason, "logprobs": log_probs}


def _message_start() -> Choice:
    return {"delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}


def _message_part(part: TextPart, offset: int) -> Choice:
    return {"delta": {"content": part.text}, "finish_reason": None, "logprobs": _message_log_probs(part.tokens)}


def _message_end(completion: Completion) -> Choice:
    return {"delta": {}, "finish_reason": completion.finish_reason, "logprobs": None}


def _message_log_probs(tokens: Sequence[TokenChoice]) -> dict[str, Any] | None:
    if not tokens:
        return None

    def entry(text: str, log_prob: float) -> dict[str, Any]:
        return {"token": text, "logprob": log_prob, "bytes": [*text.encode("utf-8", "replace")]}

    content = [
        entry(token.text, token.log_prob) | {"top_logprobs": [entry(text, value) for text, value in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


TEXT = OpenAIFormat("cmpl", "text_completion", "text_completion", _text_choice, None, _text_part, _text_end)
CHAT = OpenAIFormat(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    _message_choice,
    _message_start,
    _message_part,
    _message_end,
)


def usage(completions: Sequence[Completion], *, choices: int) -> dict[str, int]:
    """Return the numbers of tokens of all answers, `choices` of which each prompt has."""
    prompt_tokens = sum(completion.prompt_tokens for completion in completions[::choices])
    completion_tokens = sum(completion.completion_tokens for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
