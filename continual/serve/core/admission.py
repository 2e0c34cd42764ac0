"""Admission of requests: size limits, the queue, timeouts, cancellation when clients disconnect."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request

from continual.errors import TooLarge, TooLate
from continual.inference.predictor import Prediction
from continual.serve.core.access_log import ROWS
from continual.serve.core.batcher import DynamicBatcher
from continual.serve.core.champions import ChampionServer, InferenceRequest, ServedAnswer
from continual.serve.core.metrics import ServerMetrics
from registry import quote
from tasks.errors import InputError

TIMEOUT_HEADER = "x-request-timeout"  # seconds that the client waits

READER_THREADS = 8  # fewer than the connections that SQLAlchemy keeps to a database
UNREADABLE = "what was learned cannot be read now; the log of the server says why. Ask again later"

log = logging.getLogger(__name__)

P = ParamSpec("P")
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


class RegistryReader:
    """Queries the registry in threads, for as long as a request may wait.

    A query cannot be cancelled while a database does not answer: its thread is left behind until the database's driver
    gives up, and requests that find no thread in time end as well.

    Args:
        seconds: Seconds that a request may wait.
    """

    def __init__(self, *, seconds: float) -> None:
        self._seconds, self._threads = seconds, ThreadPoolExecutor(READER_THREADS, "registry")

    async def read(self, request: Request, query: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a query.

        Raises:
            TooLate: There was none within the request's timeout.
        """
        seconds = request_timeout(request, max_seconds=self._seconds)
        result = asyncio.wrap_future(self._threads.submit(query, *args, **kwargs))
        try:
            return await asyncio.wait_for(result, seconds)
        except TimeoutError:
            raise TooLate(f"the registry did not answer within {seconds:g} s; ask again later") from None


class RequestAdmission:
    """Checks requests against limits and queues them for the one thread that answers.

    Attributes:
        server: The champions that answer.
        limits: Bounds on requests.
        reader: Queries the registry for requests.
        batcher: The queue, and the thread that works it off in batches.
    """

    def __init__(self, server: ChampionServer, limits: Limits, metrics: ServerMetrics) -> None:
        self.server, self.limits, self._metrics = server, limits, metrics
        batch_cost = limits.batch_tokens or (1 << 15 if server.backbone.device.type == "cuda" else 1 << 12)
        self.batcher: DynamicBatcher[InferenceRequest, ServedAnswer] = DynamicBatcher(
            server.answer_batch,
            batch_cost=batch_cost,
            max_waiting=limits.max_queued_rows,
            advance=server.advance,
        )
        self.reader = RegistryReader(seconds=limits.seconds)
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
        request.scope[ROWS] = len(inputs)
        self._check_size(inputs)
        start, seconds = time.monotonic(), request_timeout(request, max_seconds=self.limits.seconds)
        for task in {item.task for item in inputs if item.task is not None} - self.server.champions.keys():
            await self.check_task(request, task)  # raises an error, unless the task was learned at this moment
        answers = asyncio.wrap_future(self.batcher.submit(inputs, seconds=seconds).answers)
        disconnect = asyncio.create_task(wait_for_disconnect(request))
        try:
            predictions = [hide_cause(answer) for answer in await wait_for_answer(answers, disconnect, seconds)]
            self._metrics.count_answers(predictions, time.monotonic() - start)
            return predictions
        finally:
            answers.cancel()  # inputs that still wait are skipped by the batcher
            disconnect.cancel()

    async def check_task(self, request: Request, task: str, *, kind: str | None = None) -> None:
        """Check as `ChampionServer.check_task` does; only an unknown task costs a query of the registry.

        Raises:
            NotFound: The task is not registered.
            NoDelta: The task has no champion on this backbone.
            WrongKind: The task is of another kind.
            TooLate: The registry did not answer within the request's timeout.
        """
        if task in self.server.champions:
            self.server.check_task(task, kind=kind)
        else:
            await self.reader.read(request, self.server.check_task, task, kind=kind)

    def _check_size(self, inputs: Sequence[InferenceRequest]) -> None:
        if len(inputs) > self.limits.rows:
            raise TooLarge(f"the request holds {len(inputs)} inputs, and one may hold {self.limits.rows}; send several")
        if (tokens := sum(item.cost for item in inputs)) > self.limits.tokens:
            raise TooLarge(
                f"the request holds about {tokens} tokens, and one may hold {self.limits.tokens}; send several"
            )


def hide_cause(answer: ServedAnswer) -> ServedAnswer:
    """Reduce an answer's error to its class, and log the rest: it may name files and hosts."""
    if not isinstance(answer, Prediction) or not answer.error:
        return answer
    log.error("a delta cannot be read: %s", answer.error)
    error_class = answer.error.partition(":")[0]
    name = error_class if error_class.isidentifier() else "DeltaError"
    return replace(answer, error=f"{name}: {UNREADABLE}")


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
        raise InputError(f"{TIMEOUT_HEADER} {quote(header or '')} is not a number of seconds up to {max_seconds:g}")
    return seconds


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
