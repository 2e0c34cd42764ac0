"""Streaming answers while they are generated, as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from continual.inference.predictor import Prediction
from continual.serve.core.admission import RequestAdmission
from continual.serve.core.champions import InferenceRequest

StreamEvent = str | Prediction  # the text so far, or the final answer


async def stream_answer(
    admission: RequestAdmission, request: Request, inference_request: InferenceRequest
) -> AsyncGenerator[StreamEvent]:
    """Yield the text so far each time it grows, and the prediction at last.

    Raises:
        ContinualError: As raised by `RequestAdmission.submit`.
        ClientDisconnected: The client has gone.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def on_token(text: str) -> None:  # called by the answering thread, which must not fail when the loop is closed
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, text)

    answers = asyncio.create_task(admission.submit(request, [replace(inference_request, on_token=on_token)]))
    answers.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (text := await queue.get()) is not None:
            yield text
        (answer,) = await answers
        yield answer
    finally:
        answers.cancel()


async def sse_response(
    admission: RequestAdmission,
    request: Request,
    inference_request: InferenceRequest,
    *,
    read_event: Callable[[StreamEvent], tuple[str, str | None]],
    make_chunk: Callable[[str, str | None], Any],
) -> StreamingResponse:
    """Return a response of server-sent events, one for each new part of the text.

    Errors before the first event are raised here, while the response's status can still report them.

    Args:
        admission: Takes the input in.
        request: The HTTP request.
        inference_request: The input.
        read_event: Returns the text so far and the finish reason, None before the end.
        make_chunk: Returns the JSON value of a new part of the text and the finish reason.
    """
    stream_events = stream_answer(admission, request, inference_request)
    first = read_event(await anext(stream_events))

    async def server_sent_events() -> AsyncIterator[str]:
        sent, (text, finish_reason) = "", first
        async with aclosing(stream_events):
            while finish_reason is None:
                settled = text[: text.rfind(" ") + 1]  # later tokens may still change the last word
                if len(settled) > len(sent):
                    yield _sse(make_chunk(settled[len(sent) :], None))
                    sent = settled
                text, finish_reason = read_event(await anext(stream_events))
            yield _sse(make_chunk(text[len(sent) :], finish_reason))
        yield _sse("[DONE]")

    return StreamingResponse(
        server_sent_events(), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


def _sse(data: Any) -> str:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
