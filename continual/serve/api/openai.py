"""Routes in OpenAI's format, for its clients: a generation task is a model, and so is the backbone, by their names.

`POST /v1/completions`, `/v1/chat/completions` and `/v1/embeddings` (of the frozen backbone), `GET /v1/models`.
"""

import base64
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from continual.serve.api.generation import GenerationEndpoint
from continual.serve.api.openai_responses import CHAT, TEXT
from continual.serve.api.openai_schemas import ChatCompletionRequest, CompletionRequest, EmbeddingsRequest
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.bodies import bounded_route
from continual.serve.core.champions import Embedding, InferenceRequest
from continual.serve.core.error_responses import openapi_error_responses
from registry import quote
from registry.errors import NotFound

_FAILURES = openapi_error_responses(401, 404, 409, 413, 422, 429, 503, 504)


def openai_routes(admission: RequestAdmission) -> APIRouter:
    """Return the routes of completions, chats, embeddings and models."""
    route_class = bounded_route(rows=admission.limits.rows)
    router = APIRouter(prefix="/v1", tags=["OpenAI's format"], route_class=route_class)
    _add_generation(router, admission)
    _add_embeddings(router, admission)
    _add_models(router, admission)
    return router


def _add_generation(router: APIRouter, admission: RequestAdmission) -> None:
    endpoint = GenerationEndpoint(admission)

    @router.post("/completions", responses=_FAILURES)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        """Answer each prompt by the delta of a generation task, or continue it by the plain backbone."""
        return await endpoint.answer(request, body, [InferenceRequest(text) for text in body.texts], TEXT)

    @router.post("/chat/completions", responses=_FAILURES)
    async def chat(body: ChatCompletionRequest, request: Request) -> Any:
        """Write the next message by the delta of a generation task, or by the plain backbone."""
        return await endpoint.answer(request, body, [InferenceRequest(body.conversation, is_chat=True)], CHAT)


def _add_embeddings(router: APIRouter, admission: RequestAdmission) -> None:
    name = admission.server.backbone.name

    @router.post("/embeddings", responses=_FAILURES)
    async def embeddings(body: EmbeddingsRequest, request: Request) -> dict[str, Any]:
        """Return the pooled last hidden states of texts in the frozen backbone."""
        if body.model != name:
            raise NotFound(f"no backbone is called {quote(body.model)} here; this server's is {name!r}")
        texts = [body.input] if isinstance(body.input, str) else body.input
        results: list[Embedding] = await admission.submit(
            request, [InferenceRequest(text, embed=True) for text in texts]
        )
        encode = _base64 if body.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": i, "embedding": encode(result.vector)} for i, result in enumerate(results)
        ]
        tokens = sum(result.tokens for result in results)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _add_models(router: APIRouter, admission: RequestAdmission) -> None:
    server = admission.server

    @router.get("/models", responses=openapi_error_responses(401))
    async def models() -> dict[str, Any]:
        """List the backbone and the tasks that are served on it."""
        champions = [_model(task, champion.created_at) for task, champion in server.champions.items()]
        return {"object": "list", "data": [_model(server.backbone.name), *champions]}

    @router.get("/models/{name:path}", responses=openapi_error_responses(401, 404, 409, 422, 503, 504))
    async def model(name: str, request: Request) -> dict[str, Any]:
        """Return the backbone or one task."""
        if name != server.backbone.name:
            await admission.check_task(request, name)
        champion = server.champions.get(name)
        return _model(name, champion.created_at if champion else None)


def _model(name: str, created_at: datetime | None = None) -> dict[str, Any]:
    """Return a model of OpenAI's list; a task's date is that of the version that serves."""
    created = int(created_at.timestamp()) if created_at else 0
    return {"id": name, "object": "model", "created": created, "owned_by": "continual"}


def _base64(vector: Sequence[float]) -> str:
    """Encode a vector [D] as OpenAI's clients read it: 32-bit floats, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
