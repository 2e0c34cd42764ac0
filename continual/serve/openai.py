"""The same in OpenAI's format, so that its clients can be used: a generation task is a model, by the task's name.

`POST /v1/completions`, `/v1/chat/completions` and `/v1/embeddings` (of the frozen backbone), `GET /v1/models`.
"""

import base64
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from continual.errors import DeltaError, NotFound
from continual.features import utf8
from continual.predict import Prediction
from continual.serve.desk import Desk
from continual.serve.faults import described
from continual.serve.serving import Ask, Embedded

KIND = "generation"


class _Sampling(BaseModel):
    """What a client may say besides: answers are the most probable, whatever it says of chance."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: Annotated[float, Field(ge=0, le=0)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    seed: int | None = None
    user: str | None = None


class Completion(_Sampling):
    """One text to be continued, or several."""

    prompt: str | Annotated[list[str], Field(min_length=1)]


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """What a user says: a task's delta has learned to answer texts, and no conversations."""

    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(_Sampling):
    """One message."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class Embeddings(BaseModel):
    """Texts whose features are wanted. model: the backbone's name."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


def routes(desk: Desk) -> APIRouter:
    """The operations, for an application that has this desk."""
    serving = desk.serving
    router = APIRouter(prefix="/v1", tags=["OpenAI's format"])
    refusals = described(401, 404, 409, 413, 422, 429, 503, 504)

    async def written(request: Request, asked: _Sampling, texts: Sequence[str], most: int | None) -> list[_Written]:
        serving.require(asked.model, kind=KIND)
        found = await desk.answers(request, [Ask(text, asked.model) for text in texts])
        return [_Written.of(serving.backbone.tokenizer, prediction, most) for prediction in found]

    @router.post("/completions", responses=refusals)
    async def completions(asked: Completion, request: Request) -> dict[str, Any]:
        """What a generation task's delta writes to each prompt."""
        texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        found = await written(request, asked, texts, asked.max_tokens)
        choices = [
            {"index": i, "text": own.text, "finish_reason": own.finish, "logprobs": None} for i, own in enumerate(found)
        ]
        return _body("text_completion", "cmpl", asked.model) | {"choices": choices, "usage": _usage(found)}

    @router.post("/chat/completions", responses=refusals)
    async def chat(asked: Chat, request: Request) -> dict[str, Any]:
        """What a generation task's delta writes to a message."""
        most = asked.max_completion_tokens or asked.max_tokens
        (found,) = await written(request, asked, [asked.messages[0].text], most)
        message = {"role": "assistant", "content": found.text, "refusal": None}
        choices = [{"index": 0, "message": message, "finish_reason": found.finish, "logprobs": None}]
        return _body("chat.completion", "chatcmpl", asked.model) | {"choices": choices, "usage": _usage([found])}

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


@dataclass(frozen=True)
class _Written:
    """What was written to one text. read, tokens: how many were read and written · finish: why no more."""

    text: str
    read: int
    tokens: int
    finish: str

    @classmethod
    def of(cls, tokenizer: Any, prediction: Prediction, most: int | None) -> Self:
        """The answer of at most so many tokens. Raises DeltaError where there is none."""
        if prediction.error:
            raise DeltaError(prediction.error)
        text, read = str(prediction.label), len(tokenizer(utf8(str(prediction.text)))["input_ids"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if most is None or len(ids) <= most:
            return cls(text, read, len(ids), "stop")
        return cls(tokenizer.decode(ids[:most], skip_special_tokens=True), read, most, "length")


def _body(what: str, prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid4().hex}", "object": what, "created": int(time.time()), "model": model}


def _usage(found: Sequence[_Written]) -> dict[str, int]:
    read, tokens = sum(own.read for own in found), sum(own.tokens for own in found)
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "continual"}


def _base64(vector: Sequence[float]) -> str:
    """As OpenAI's clients ask for it: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
