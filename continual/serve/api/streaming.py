"""Answers as they are written: server-sent events, each with what is new in the text."""

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

StreamEvent = str | Prediction  # a text as far as it is written, or the answer at last


async def stream_answer(desk: RequestAdmission, request: Request, ask: InferenceRequest) -> AsyncGenerator[StreamEvent]:
    """What is written so far, again and again, and the whole answer at last. Raises what `Desk.answers` raises."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def hear(text: str) -> None:  # called by the thread that answers, which must not fail for one who has left
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, text)

    answers = asyncio.create_task(desk.submit(request, [replace(ask, on_token=hear)]))
    answers.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (text := await queue.get()) is not None:
            yield text
        (answer,) = await answers
        yield answer
    finally:
        answers.cancel()


async def sse_response(
    desk: RequestAdmission,
    request: Request,
    ask: InferenceRequest,
    *,
    said: Callable[[StreamEvent], tuple[str, str | None]],
    event: Callable[[str, str | None], Any],
) -> StreamingResponse:
    """A response of events. said: the text that follows from what is told, and why it ends, None while it does not ·
    event: what is new in it, as JSON.

    What goes wrong before the first word is raised, since until then there is a status to say so.
    """
    telling = stream_answer(desk, request, ask)
    first = said(await anext(telling))

    async def events() -> AsyncIterator[str]:
        sent, (text, finish) = "", first
        async with aclosing(telling):
            while finish is None:
                settled = text[: text.rfind(" ") + 1]  # a word may still become another one
                if len(settled) > len(sent):
                    yield _event(event(settled[len(sent) :], None))
                    sent = settled
                text, finish = said(await anext(telling))
            yield _event(event(text[len(sent) :], finish))
        yield _event("[DONE]")

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _event(what: Any) -> str:
    return f"data: {what if isinstance(what, str) else json.dumps(what)}\n\n"
