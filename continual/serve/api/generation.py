"""Answers of generation tasks and of the plain backbone in OpenAI's formats, whole or streamed."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import Request

from continual.errors import WrongKind
from continual.kinds.language_model import language_model_obstacle
from continual.serve.api.openai_responses import OpenAIFormat, usage
from continual.serve.api.openai_schemas import LEGACY_MAX_TOKENS, CompletionRequest, GenerationBody
from continual.serve.api.streaming import DONE, server_sent_event, sse_response, stream_answers
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import InferenceRequest
from continual.serve.core.writer import Completion, CompletionOptions

GENERATION = "generation"


class GenerationEndpoint:
    """Answers prompts by generation tasks, or by the plain backbone, and formats the responses."""

    def __init__(self, admission: RequestAdmission) -> None:
        self._admission = admission

    async def answer(
        self, request: Request, body: GenerationBody, prompts: Sequence[InferenceRequest], api_format: OpenAIFormat
    ) -> Any:
        """Answer each prompt, as one JSON document or as server-sent events if `body.stream` is set.

        Args:
            request: The HTTP request.
            body: The body of the request.
            prompts: The prompts, without task and options.
            api_format: The format of the response.

        Raises:
            NotFound: The task is not registered.
            NoDelta: The task has no champion on this backbone.
            WrongKind: The task does not generate, or the plain backbone does not.
            ContinualError: As raised by `RequestAdmission.submit`.
        """
        inputs = await self._inputs(request, body, prompts)
        head = {"id": f"{api_format.id_prefix}-{uuid4().hex}", "created": int(time.time()), "model": body.model}
        if body.stream:
            events = self._events(request, body, inputs, api_format, head | {"object": api_format.chunk_object})
            return await sse_response(events)
        completions = require_completions(await self._admission.submit(request, inputs))
        choices = [api_format.choice(completion) | {"index": i} for i, completion in enumerate(completions)]
        head |= {"object": api_format.response_object, "choices": choices}
        return head | {"usage": usage(completions, choices=body.n or 1)}

    async def _inputs(
        self, request: Request, body: GenerationBody, prompts: Sequence[InferenceRequest]
    ) -> list[InferenceRequest]:
        """Return the inputs of all choices: those of the first prompt, those of the second, and so on."""
        server, task = self._admission.server, str(body.model)
        if is_plain := body.model == server.backbone.name and body.model not in server.champions:
            if obstacle := language_model_obstacle(server.backbone, what="a completion"):
                raise WrongKind(obstacle)
            if isinstance(body, CompletionRequest) and not (body.max_tokens or body.max_completion_tokens):
                body = body.model_copy(update={"max_tokens": LEGACY_MAX_TOKENS})
        else:
            await self._admission.check_task(request, task, kind=GENERATION)
        options = [CompletionOptions(body.sampling(choice)) for choice in range(body.n or 1)]
        named = None if is_plain else task
        return [replace(prompt, task=named, completion=each) for prompt in prompts for each in options]

    async def _events(
        self,
        request: Request,
        body: GenerationBody,
        inputs: Sequence[InferenceRequest],
        api_format: OpenAIFormat,
        head: dict[str, Any],
    ) -> AsyncIterator[str]:
        """Yield the events of a stream; nothing before an answer has begun."""
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        lengths, completions = [-1] * len(inputs), dict[int, Completion]()

        def chunk(index: int, choice: dict[str, Any]) -> str:
            return server_sent_event(
                head | {"choices": [choice | {"index": index}]} | ({"usage": None} if with_usage else {})
            )

        async with aclosing(stream_answers(self._admission, request, inputs)) as answers:
            async for index, part in answers:
                if lengths[index] < 0:
                    lengths[index] = 0
                    if api_format.first_choice:
                        yield chunk(index, api_format.first_choice())
                if isinstance(part, Completion):
                    completions[index] = part
                    yield chunk(index, api_format.last_choice(part))
                else:
                    yield chunk(index, api_format.part_choice(part, lengths[index]))
                    lengths[index] += len(part.text)
        if with_usage:
            ordered = [completions[index] for index in sorted(completions)]
            yield server_sent_event(head | {"choices": [], "usage": usage(ordered, choices=body.n or 1)})
        yield server_sent_event(DONE)


def require_completions(answers: Sequence[Any]) -> list[Completion]:
    """Return completions.

    Raises:
        HTTPException: One is missing, since its delta cannot be read.
    """
    for answer in answers:
        if not isinstance(answer, Completion):
            raise HTTPException(503, answer.error)
    return list(answers)
