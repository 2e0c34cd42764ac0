"""Where requests are taken in: checked against what one may hold, let wait, and given up when their client leaves."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from continual.errors import InputError, TooLarge, TooLate
from continual.predict import Prediction
from continual.serve.batcher import Batcher
from continual.serve.metrics import Metrics
from continual.serve.serving import Ask, Embedded, Serving

TIMEOUT = "x-request-timeout"  # a header: how long a client waits, in seconds


@dataclass(frozen=True)
class Limits:
    """rows, tokens, bytes: what one request may hold · seconds: how long it may wait · waiting: rows of all requests ·
    batch: tokens that are answered at once, None for what suits the device.
    """

    rows: int = 1024
    tokens: int = 1 << 18
    bytes: int = 8 << 20
    seconds: float = 60.0
    waiting: int = 8192
    batch: int | None = None


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Desk:
    """Takes requests in for one thread that answers."""

    def __init__(self, serving: Serving, limits: Limits, metrics: Metrics) -> None:
        self.serving, self._limits, self._metrics = serving, limits, metrics
        size = limits.batch or (1 << 15 if serving.backbone.device.type == "cuda" else 1 << 12)
        self.batcher: Batcher[Ask, Prediction | Embedded] = Batcher(serving.answers, size=size, most=limits.waiting)
        metrics.watch(serving, self.batcher)

    async def answers(self, request: Request, asks: Sequence[Ask]) -> list[Any]:
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
            await asyncio.to_thread(self.serving.require, task)  # which asks the registry
        began, seconds = time.monotonic(), patience(request, most=self._limits.seconds)
        answers = asyncio.wrap_future(self.batcher.submit(asks, seconds=seconds).answers)
        leaving = asyncio.create_task(left(request))
        try:
            await asyncio.wait((answers, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                found = await answers
                self._metrics.answered(found, time.monotonic() - began)
                return found
            if leaving.done():
                raise ClientLeft
            raise TooLate(f"there was no answer within {seconds:g} s; wait for longer, or send fewer at once")
        finally:
            answers.cancel()  # what still waits of it is never answered
            leaving.cancel()


def patience(request: Request, *, most: float) -> float:
    """How many seconds a client waits: what it says, or `most`. Raises InputError for what is no such number."""
    said = request.headers.get(TIMEOUT)
    try:
        seconds = most if said is None else float(said)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= most:
        raise InputError(f"{TIMEOUT} {said!r} is not a number of seconds up to {most:g}")
    return seconds


async def left(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
