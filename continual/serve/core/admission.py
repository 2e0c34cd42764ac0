"""Admission of requests: size limits, the queue, timeouts, cancellation when clients disconnect."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from continual.errors import TooLarge, TooLate
from continual.inference.predictor import Prediction
from continual.serve.core.batcher import DynamicBatcher
from continual.serve.core.champions import ChampionServer, Embedding, InferenceRequest
from continual.serve.core.metrics import ServerMetrics
from tasks.errors import InputError

TIMEOUT_HEADER = "x-request-timeout"  # seconds that the client waits

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds on single requests, on the queue and on batches.

    Attributes:
        rows: Inputs in one request.
        tokens: Approximate tokens in one request.
        bytes: Bytes in the body of one request.
        seconds: Seconds that a request may wait for its answer.
        max_queued_rows: Inputs of all requests that may wait.
        batch_tokens: Approximate tokens answered in one batch; None for a default that suits the device.
    """

    rows: int = 1024
    tokens: int = 1 << 18
    bytes: int = 8 << 20
    seconds: float = 60.0
    max_queued_rows: int = 8192
    batch_tokens: int | None = None


class ClientDisconnected(Exception):
    """The client closed the connection before its answer was ready."""


class RequestAdmission:
    """Checks requests against limits and queues them for the one thread that answers.

    Attributes:
        server: The champions that answer.
        batcher: The queue, and the thread that works it off in batches.
    """

    def __init__(self, server: ChampionServer, limits: Limits, metrics: ServerMetrics) -> None:
        self.server, self._limits, self._metrics = server, limits, metrics
        batch_cost = limits.batch_tokens or (1 << 15 if server.backbone.device.type == "cuda" else 1 << 12)
        self.batcher: DynamicBatcher[InferenceRequest, Prediction | Embedding] = DynamicBatcher(
            server.answer_batch, batch_cost=batch_cost, max_waiting=limits.max_queued_rows
        )
        metrics.watch(server, self.batcher)

    async def submit(self, request: Request, inputs: Sequence[InferenceRequest]) -> list[Any]:
        """Return the answer to each input, in order.

        Args:
            request: The HTTP request, for its timeout header and for noticing that the client disconnects.
            inputs: The inputs of the request; they are admitted together or not at all.

        Raises:
            TooLarge: There are more inputs or tokens than one request may hold.
            TooBusy: Too many inputs wait already, or these would wait for too long.
            TooLate: There was no answer within the request's timeout.
            Closing: The server is shutting down.
            NotFound: An input names a task that is not registered.
            NoDelta: An input names a task without a delta on this backbone.
            ClientDisconnected: The client has gone.
        """
        self._check_size(inputs)
        for task in {item.task for item in inputs if item.task is not None} - self.server.champions.keys():
            await asyncio.to_thread(self.server.check_task, task)  # in a thread: it queries the registry
        start, seconds = time.monotonic(), request_timeout(request, max_seconds=self._limits.seconds)
        answers = asyncio.wrap_future(self.batcher.submit(inputs, seconds=seconds).answers)
        disconnect = asyncio.create_task(wait_for_disconnect(request))
        try:
            predictions = await wait_for_answer(answers, disconnect, seconds)
            self._metrics.count_answers(predictions, time.monotonic() - start)
            return predictions
        finally:
            answers.cancel()  # inputs that still wait are skipped by the batcher
            disconnect.cancel()

    def _check_size(self, inputs: Sequence[InferenceRequest]) -> None:
        if len(inputs) > self._limits.rows:
            raise TooLarge(
                f"the request holds {len(inputs)} inputs, and one may hold {self._limits.rows}; send several"
            )
        if (tokens := sum(item.cost for item in inputs)) > self._limits.tokens:
            raise TooLarge(
                f"the request holds about {tokens} tokens, and one may hold {self._limits.tokens}; send several"
            )


async def wait_for_answer(answer: "asyncio.Future[T]", disconnect: "asyncio.Task[None]", seconds: float | None) -> T:
    """Return the result of `answer` unless the client disconnects or the time runs out first.

    Args:
        answer: The future answer; it is not cancelled here.
        disconnect: Ends when the client has gone, as `wait_for_disconnect`.
        seconds: Seconds to wait; None for no limit.

    Raises:
        ClientDisconnected: `disconnect` ended first.
        TooLate: `seconds` passed first.
    """
    await asyncio.wait((answer, disconnect), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if answer.done():
        return answer.result()
    if disconnect.done():
        raise ClientDisconnected
    raise TooLate(f"there was no answer within {seconds:g} s; wait for longer, or send fewer at once")


def request_timeout(request: Request, *, max_seconds: float) -> float:
    """Return the seconds that a client waits: header `x-request-timeout`, `max_seconds` without it.

    Raises:
        InputError: The header is not a number above 0 and up to `max_seconds`.
    """
    header = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = max_seconds if header is None else float(header)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= max_seconds:
        raise InputError(f"{TIMEOUT_HEADER} {header!r} is not a number of seconds up to {max_seconds:g}")
    return seconds


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
