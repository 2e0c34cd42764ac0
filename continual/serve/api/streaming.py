"""Streaming answers while they are written, as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import InferenceRequest
from continual.serve.core.writer import Completion, TextPart

DONE = "[DONE]"
Part = TextPart | Completion  # a part of a text, or at last all of it


async def stream_answers(
    admission: RequestAdmission, request: Request, inputs: Sequence[InferenceRequest]
) -> AsyncGenerator[tuple[int, Part]]:
    """Yield the index of an input and a part of its answer each time it grows, and the completion at last.

    Raises:
        ContinualError: As raised by `RequestAdmission.submit`.
        HTTPException: The delta of an input cannot be read.
        ClientDisconnected: The client has gone.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Part] | None]()

    def on_part(index: int, part: Part) -> None:  # called by the answering thread, which must not fail with the loop
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, (index, part))

    streamed = [_with_callback(item, partial(on_part, index)) for index, item in enumerate(inputs)]
    answers = asyncio.create_task(admission.submit(request, streamed))
    answers.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (part := await queue.get()) is not None:
            yield part
        for answer in await answers:
            if not isinstance(answer, Completion):
                raise HTTPException(503, answer.error)
    finally:
        answers.cancel()


def _with_callback(item: InferenceRequest, on_part: Callable[[Part], None]) -> InferenceRequest:
    assert item.completion is not None
    return replace(item, completion=replace(item.completion, on_part=on_part))


async def sse_response(events: AsyncIterator[str]) -> StreamingResponse:
    """Return a response of server-sent events.

    Errors before the first event are raised here, while the response's status can still report them.
    """
    first = await anext(events)

    async def all_events() -> AsyncIterator[str]:
        yield first
        async for event in events:
            yield event

    return StreamingResponse(all_events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def server_sent_event(data: Any) -> str:
    """Return an event with a text or a JSON value."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
