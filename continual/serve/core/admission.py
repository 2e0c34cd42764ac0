"""Where requests are taken in: checked against what one may hold, let wait, and given up when their client leaves."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from continual.errors import TooLarge, TooLate
from continual.inference.predictor import Prediction
from continual.serve.core.batcher import DynamicBatcher
from continual.serve.core.champions import ChampionServer, Embedding, InferenceRequest
from continual.serve.core.metrics import ServerMetrics
from tasks.errors import InputError

TIMEOUT_HEADER = "x-request-timeout"  # a header: how long a client waits, in seconds


@dataclass(frozen=True)
class Limits:
    """rows, tokens, bytes: what one request may hold · seconds: how long it may wait · waiting: rows of all requests ·
    batch: tokens that are answered at once, None for what suits the device.
    """

    rows: int = 1024
    tokens: int = 1 << 18
    bytes: int = 8 << 20
    seconds: float = 60.0
    max_queued_rows: int = 8192
    batch: int | None = None


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more."""


class RequestAdmission:
    """Takes requests in for one thread that answers."""

    def __init__(self, serving: ChampionServer, limits: Limits, metrics: ServerMetrics) -> None:
        self.serving, self._limits, self._metrics = serving, limits, metrics
        size = limits.batch or (1 << 15 if serving.backbone.device.type == "cuda" else 1 << 12)
        self.batcher: DynamicBatcher[InferenceRequest, Prediction | Embedding] = DynamicBatcher(
            serving.answer_batch, size=size, most=limits.max_queued_rows
        )
        metrics.watch(serving, self.batcher)

    async def submit(self, request: Request, asks: Sequence[InferenceRequest]) -> list[Any]:
        """What is answered to each, in order.

        Raises TooLarge, TooBusy, TooLate, Closing, what answering raises, and ClientLeft.
        """
        if len(asks) > self._limits.rows:
            raise TooLarge(f"the request holds {len(asks)} inputs, and one may hold {self._limits.rows}; send several")
        if (tokens := sum(ask.cost for ask in asks)) > self._limits.tokens:
            raise TooLarge(
                f"the request holds about {tokens} tokens, and one may hold {self._limits.tokens}; send several"
            )
        for task in {ask.task for ask in asks if ask.task is not None} - self.serving.champions.keys():
            await asyncio.to_thread(self.serving.check_task, task)  # which asks the registry
        began, seconds = time.monotonic(), request_timeout(request, most=self._limits.seconds)
        answers = asyncio.wrap_future(self.batcher.submit(asks, seconds=seconds).answers)
        leaving = asyncio.create_task(wait_for_disconnect(request))
        try:
            await asyncio.wait((answers, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                found = await answers
                self._metrics.count_answers(found, time.monotonic() - began)
                return found
            if leaving.done():
                raise ClientDisconnected
            raise TooLate(f"there was no answer within {seconds:g} s; wait for longer, or send fewer at once")
        finally:
            answers.cancel()  # what still waits of it is never answered
            leaving.cancel()


def request_timeout(request: Request, *, most: float) -> float:
    """How many seconds a client waits: what it says, or `most`. Raises InputError for what is no such number."""
    said = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = most if said is None else float(said)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= most:
        raise InputError(f"{TIMEOUT_HEADER} {said!r} is not a number of seconds up to {most:g}")
    return seconds


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
