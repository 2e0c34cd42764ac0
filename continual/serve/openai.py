"""The same in OpenAI's format, so that its clients can be used: a generation task is a model, by the task's name.

`POST /v1/completions`, `/v1/chat/completions` and `/v1/embeddings` (of the frozen backbone), `GET /v1/models`.
"""

import asyncio
import base64
import struct
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from starlette.requests import Request

from continual.errors import DeltaError, InputError, NotFound
from continual.predict import Prediction
from continual.serve.desk import Desk
from continual.serve.faults import described
from continual.serve.messages import Chat, Completion, Embeddings, Sampling
from continual.serve.serving import Ask, Embedded
from continual.serve.streamed import Told, streamed

KIND = "generation"


@dataclass(frozen=True)
class _Written:
    """What was written to one text. read, tokens: how many were read and written · finish: why no more."""

    text: str
    read: int
    tokens: int
    finish: str


Piece = Callable[[str, str | None], dict[str, Any]]


@dataclass(frozen=True)
class _Format:
    """How an answer is put: whole, with the choice that it is, or part by part, each with a piece of it."""

    prefix: str
    whole: str
    part: str
    choice: Piece
    piece: Piece


def _text(text: str, finish: str | None) -> dict[str, Any]:
    return {"text": text, "finish_reason": finish, "logprobs": None}


def _message(text: str, finish: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"message": message, "finish_reason": finish, "logprobs": None}


def _part(text: str, finish: str | None) -> dict[str, Any]:
    return {"delta": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": None}


TEXT = _Format("cmpl", "text_completion", "text_completion", _text, _text)
CHAT = _Format("chatcmpl", "chat.completion", "chat.completion.chunk", _message, _part)


def routes(desk: Desk) -> APIRouter:
    """The operations, for an application that has this desk."""
    serving = desk.serving
    tokenizer = deepcopy(serving.backbone.tokenizer)  # that is set anew for each call, so no two threads may share one
    router = APIRouter(prefix="/v1", tags=["OpenAI's format"])
    refusals = described(401, 404, 409, 413, 422, 429, 503, 504)

    def cut(text: str, most: int | None) -> tuple[str, int, str]:
        """A text of at most so many tokens, how many it has, and why it ends there."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if most is None or len(ids) <= most:
            return text, len(ids), "stop"
        begun = tokenizer.decode(ids[:most], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return begun, most, "length"

    def written(prediction: Prediction, most: int | None) -> _Written:
        if prediction.error:
            raise DeltaError(prediction.error)
        text, tokens, finish = cut(str(prediction.label), most)
        return _Written(text, len(tokenizer(prediction.text)["input_ids"]), tokens, finish)

    async def answer(request: Request, asked: Sampling, texts: Sequence[str], format: _Format) -> Any:
        """What is written to each text, in one of the two formats, as events if they are asked for."""
        await asyncio.to_thread(serving.require, asked.model, kind=KIND)
        head = {"id": f"{format.prefix}-{uuid4().hex}", "created": int(time.time()), "model": asked.model}
        if not asked.stream:
            answers = await desk.answers(request, [Ask(text, asked.model) for text in texts])
            found = [written(own, asked.most) for own in answers]
            choices = [format.choice(own.text, own.finish) | {"index": i} for i, own in enumerate(found)]
            return head | {"object": format.whole, "choices": choices, "usage": _usage(found)}
        if len(texts) > 1:
            raise InputError(f"{len(texts)} prompts cannot be answered in one stream; send one, or do without `stream`")

        def said(now: Told) -> tuple[str, str | None]:
            if isinstance(now, str):
                return cut(now, asked.most)[0], None
            own = written(now, asked.most)
            return own.text, own.finish

        def event(text: str, finish: str | None) -> Any:
            return head | {"object": format.part, "choices": [format.piece(text, finish) | {"index": 0}]}

        return await streamed(desk, request, Ask(texts[0], asked.model), said=said, event=event)

    @router.post("/completions", responses=refusals)
    async def completions(asked: Completion, request: Request) -> Any:
        """What a generation task's delta writes to each prompt."""
        return await answer(request, asked, [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt, TEXT)

    @router.post("/chat/completions", responses=refusals)
    async def chat(asked: Chat, request: Request) -> Any:
        """What a generation task's delta writes to a message."""
        return await answer(request, asked, [asked.messages[0].text], CHAT)

    @router.post("/embeddings", responses=refusals)
    async def embeddings(asked: Embeddings, request: Request) -> dict[str, Any]:
        """Pooled last hidden states of texts in the frozen backbone."""
        if asked.model != serving.backbone.name:
            raise NotFound(f"no backbone is called {asked.model!r} here; this server's is {serving.backbone.name!r}")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        found: list[Embedded] = await desk.answers(request, [Ask(text, embed=True) for text in texts])
        encode = _base64 if asked.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": encode(own.vector)} for i, own in enumerate(found)]
        tokens = sum(own.tokens for own in found)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": asked.model, "data": data, "usage": usage}

    @router.get("/models", responses=described(401))
    async def models() -> dict[str, Any]:
        """The tasks that are served, and the backbone."""
        return {"object": "list", "data": [_model(name) for name in (serving.backbone.name, *serving.champions)]}

    @router.get("/models/{name:path}", responses=described(401, 404, 409))
    def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name != serving.backbone.name:
            serving.require(name)
        return _model(name)

    return router


def _usage(found: Sequence[_Written]) -> dict[str, int]:
    read, tokens = sum(own.read for own in found), sum(own.tokens for own in found)
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "continual"}


def _base64(vector: Sequence[float]) -> str:
    """As OpenAI's clients ask for it: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
