"""The same in OpenAI's format, so that its clients can be used: a generation task is a model, by the task's name.

`POST /v1/completions`, `/v1/chat/completions` and `/v1/embeddings` (of the frozen backbone), `GET /v1/models`.
"""

import base64
import struct
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from continual.serve.api.generation import CHAT, TEXT, GenerationEndpoint
from continual.serve.api.openai_schemas import ChatCompletionRequest, CompletionRequest, EmbeddingsRequest
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import Embedding, InferenceRequest
from continual.serve.core.error_responses import openapi_error_responses
from registry.errors import NotFound


def openai_routes(desk: RequestAdmission) -> APIRouter:
    """The operations, for an application that has this desk."""
    serving, writer = desk.serving, GenerationEndpoint(desk)
    router = APIRouter(prefix="/v1", tags=["OpenAI's format"])
    refusals = openapi_error_responses(401, 404, 409, 413, 422, 429, 503, 504)

    @router.post("/completions", responses=refusals)
    async def completions(asked: CompletionRequest, request: Request) -> Any:
        """What a generation task's delta writes to each prompt."""
        texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        return await writer.answer(request, asked, texts, TEXT)

    @router.post("/chat/completions", responses=refusals)
    async def chat(asked: ChatCompletionRequest, request: Request) -> Any:
        """What a generation task's delta writes to a message."""
        return await writer.answer(request, asked, [asked.messages[0].text], CHAT)

    @router.post("/embeddings", responses=refusals)
    async def embeddings(asked: EmbeddingsRequest, request: Request) -> dict[str, Any]:
        """Pooled last hidden states of texts in the frozen backbone."""
        if asked.model != serving.backbone.name:
            raise NotFound(f"no backbone is called {asked.model!r} here; this server's is {serving.backbone.name!r}")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        found: list[Embedding] = await desk.submit(request, [InferenceRequest(text, embed=True) for text in texts])
        encode = _base64 if asked.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": encode(own.vector)} for i, own in enumerate(found)]
        tokens = sum(own.tokens for own in found)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": asked.model, "data": data, "usage": usage}

    @router.get("/models", responses=openapi_error_responses(401))
    async def models() -> dict[str, Any]:
        """The tasks that are served, and the backbone."""
        return {"object": "list", "data": [_model(name) for name in (serving.backbone.name, *serving.champions)]}

    @router.get("/models/{name:path}", responses=openapi_error_responses(401, 404, 409))
    def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name != serving.backbone.name:
            serving.check_task(name)
        return _model(name)

    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "continual"}


def _base64(vector: Sequence[float]) -> str:
    """As OpenAI's clients ask for it: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
