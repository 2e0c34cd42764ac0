"""What generation tasks write, in OpenAI's formats of texts and of chats, whole or part by part."""

import asyncio
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.requests import Request

from continual.errors import DeltaError
from continual.inference.predictor import Prediction
from continual.serve.api.openai_schemas import CompletionOptions
from continual.serve.api.streaming import StreamEvent, sse_response
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import InferenceRequest
from tasks.errors import InputError

GENERATION = "generation"


@dataclass(frozen=True)
class _GeneratedText:
    """What was written to one text. read, tokens: how many were read and written · finish: why no more."""

    text: str
    read: int
    tokens: int
    finish: str


PieceFormatter = Callable[[str, str | None], dict[str, Any]]


@dataclass(frozen=True)
class OpenAIFormat:
    """How an answer is put: whole, with the choice that it is, or part by part, each with a piece of it."""

    prefix: str
    whole: str
    part: str
    choice: PieceFormatter
    piece: PieceFormatter


def _text(text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "finish_reason": finish, "logprobs": None}


def _message(text: str, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"message": message, "finish_reason": finish, "logprobs": None}


def _part(text: str, finish: str | None) -> dict[str, Any]:
    return {"delta": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": None}


TEXT = OpenAIFormat("cmpl", "text_completion", "text_completion", _text, _text)
CHAT = OpenAIFormat("chatcmpl", "chat.completion", "chat.completion.chunk", _message, _part)


class GenerationEndpoint:
    """Has texts answered by generation tasks, and puts the answers into a format."""

    def __init__(self, desk: RequestAdmission) -> None:
        self._desk = desk
        # A tokenizer is set anew for each call, so no two threads may share one.
        self._tokenizer = deepcopy(desk.serving.backbone.tokenizer)

    async def answer(
        self, request: Request, asked: CompletionOptions, texts: Sequence[str], format: OpenAIFormat
    ) -> Any:
        """What is written to each text, as events if they are asked for.

        Raises what `Serving.require` and `Desk.answers` raise, InputError for several texts in one stream.
        """
        await asyncio.to_thread(self._desk.serving.check_task, asked.model, kind=GENERATION)
        head = {"id": f"{format.prefix}-{uuid4().hex}", "created": int(time.time()), "model": asked.model}
        if asked.stream:
            return await self._streamed(request, asked, texts, format, head)
        answers = await self._desk.submit(request, [InferenceRequest(text, asked.model) for text in texts])
        found = [self._written(own, asked.max_new_tokens) for own in answers]
        choices = [format.choice(own.text, own.finish) | {"index": i} for i, own in enumerate(found)]
        return head | {"object": format.whole, "choices": choices, "usage": _usage(found)}

    async def _streamed(
        self,
        request: Request,
        asked: CompletionOptions,
        texts: Sequence[str],
        format: OpenAIFormat,
        head: dict[str, Any],
    ) -> Any:
        if len(texts) > 1:
            raise InputError(f"{len(texts)} prompts cannot be answered in one stream; send one, or do without `stream`")

        def said(now: StreamEvent) -> tuple[str, str | None]:
            if isinstance(now, str):
                return self._cut(now, asked.max_new_tokens)[0], None
            own = self._written(now, asked.max_new_tokens)
            return own.text, own.finish

        def event(text: str, finish: str | None) -> Any:
            return head | {"object": format.part, "choices": [format.piece(text, finish) | {"index": 0}]}

        return await sse_response(self._desk, request, InferenceRequest(texts[0], asked.model), said=said, event=event)

    def _cut(self, text: str, most: int | None) -> tuple[str, int, str]:
        """A text of at most so many tokens, how many it has, and why it ends there."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if most is None or len(ids) <= most:
            return text, len(ids), "stop"
        begun = self._tokenizer.decode(ids[:most], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return begun, most, "length"

    def _written(self, prediction: Prediction, most: int | None) -> _GeneratedText:
        if prediction.error:
            raise DeltaError(prediction.error)
        text, tokens, finish = self._cut(str(prediction.label), most)
        return _GeneratedText(text, len(self._tokenizer(prediction.text)["input_ids"]), tokens, finish)


def _usage(found: Sequence[_GeneratedText]) -> dict[str, int]:
    read, tokens = sum(own.read for own in found), sum(own.tokens for own in found)
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
