"""Answers of generation tasks in OpenAI's completion and chat formats, whole or streamed."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request

from continual.inference.predictor import Prediction
from continual.serve.api.openai_schemas import CompletionOptions
from continual.serve.api.streaming import StreamEvent, sse_response
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import InferenceRequest
from tasks.errors import InputError

GENERATION = "generation"


@dataclass(frozen=True)
class _GeneratedText:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


ChoiceFormatter = Callable[[str, str | None], dict[str, Any]]  # of a text and its finish reason


@dataclass(frozen=True)
class OpenAIFormat:
    """One of OpenAI's response formats.

    Attributes:
        id_prefix: Start of the response's `id`.
        response_object: `object` of a whole response.
        chunk_object: `object` of a streamed chunk.
        choice: Returns the choice of a whole response.
        chunk_choice: Returns the choice of a streamed chunk.
    """

    id_prefix: str
    response_object: str
    chunk_object: str
    choice: ChoiceFormatter
    chunk_choice: ChoiceFormatter


def _text_choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "finish_reason": finish_reason, "logprobs": None}


def _message_choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"message": message, "finish_reason": finish_reason, "logprobs": None}


def _message_chunk(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"delta": {"role": "assistant", "content": text}, "finish_reason": finish_reason, "logprobs": None}


TEXT = OpenAIFormat("cmpl", "text_completion", "text_completion", _text_choice, _text_choice)
CHAT = OpenAIFormat("chatcmpl", "chat.completion", "chat.completion.chunk", _message_choice, _message_chunk)


class GenerationEndpoint:
    """Answers prompts by generation tasks and formats the responses."""

    def __init__(self, admission: RequestAdmission) -> None:
        self._admission = admission
        # Each call sets the tokenizer's truncation and padding, so no two threads may share one.
        self._tokenizer = deepcopy(admission.server.backbone.tokenizer)

    async def answer(
        self, request: Request, options: CompletionOptions, texts: Sequence[str], api_format: OpenAIFormat
    ) -> Any:
        """Answer each prompt, as one JSON document or as server-sent events if `options.stream` is set.

        Args:
            request: The HTTP request.
            options: The body of the request: the task's name as `model`, token limits, streaming.
            texts: The prompts.
            api_format: The format of the response.

        Raises:
            NotFound: The task is not registered.
            NoDelta: The task has no champion on this backbone.
            WrongKind: The task does not generate.
            InputError: Several prompts are to be streamed.
            ContinualError: As raised by `RequestAdmission.submit`.
        """
        await self._admission.check_task(request, options.model, kind=GENERATION)
        head = {"id": f"{api_format.id_prefix}-{uuid4().hex}", "created": int(time.time()), "model": options.model}
        if options.stream:
            return await self._stream(request, options, texts, api_format, head)
        answers = await self._admission.submit(request, [InferenceRequest(text, options.model) for text in texts])
        generated = [self._generated(answer, options.max_new_tokens) for answer in answers]
        choices = [api_format.choice(item.text, item.finish_reason) | {"index": i} for i, item in enumerate(generated)]
        return head | {"object": api_format.response_object, "choices": choices, "usage": _usage(generated)}

    async def _stream(
        self,
        request: Request,
        options: CompletionOptions,
        texts: Sequence[str],
        api_format: OpenAIFormat,
        head: dict[str, Any],
    ) -> Any:
        if len(texts) > 1:
            raise InputError(f"{len(texts)} prompts cannot be answered in one stream; send one, or do without `stream`")

        def read_event(event: StreamEvent) -> tuple[str, str | None]:
            if isinstance(event, str):
                return self._truncate(event, options.max_new_tokens)[0], None
            generated = self._generated(event, options.max_new_tokens)
            return generated.text, generated.finish_reason

        def make_chunk(text: str, finish_reason: str | None) -> Any:
            choice = api_format.chunk_choice(text, finish_reason) | {"index": 0}
            return head | {"object": api_format.chunk_object, "choices": [choice]}

        inference_request = InferenceRequest(texts[0], options.model)
        return await sse_response(
            self._admission, request, inference_request, read_event=read_event, make_chunk=make_chunk
        )

    def _truncate(self, text: str, max_tokens: int | None) -> tuple[str, int, str]:
        """Truncate a text to `max_tokens`; return it, its number of tokens and the finish reason."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if max_tokens is None or len(ids) <= max_tokens:
            return text, len(ids), "stop"
        start = self._tokenizer.decode(ids[:max_tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return start, max_tokens, "length"

    def _generated(self, prediction: Prediction, max_tokens: int | None) -> _GeneratedText:
        if prediction.error:
            raise HTTPException(503, prediction.error)
        text, tokens, finish_reason = self._truncate(str(prediction.label), max_tokens)
        return _GeneratedText(text, len(self._tokenizer(prediction.text)["input_ids"]), tokens, finish_reason)


def _usage(generated: Sequence[_GeneratedText]) -> dict[str, int]:
    prompt_tokens = sum(item.prompt_tokens for item in generated)
    completion_tokens = sum(item.completion_tokens for item in generated)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
