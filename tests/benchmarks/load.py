"""Load generators for a server: closed loop, and open loop with given arrival times."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp
import numpy as np

from tests.benchmarks.mixed import ZIPF
from tests.benchmarks.server_process import sentence

TOO_LATE = 1.0  # seconds; an answer that took longer is no good one


@dataclass(frozen=True)
class Question:
    """The texts of one request, and each text's task or None."""

    texts: tuple[str, ...]
    tasks: tuple[str | None, ...]
    body: bytes

    @classmethod
    def of(cls, texts: Sequence[str], tasks: Sequence[str | None]) -> "Question":
        rows = [{"text": text} | ({"task": task} if task else {}) for text, task in zip(texts, tasks, strict=True)]
        return cls(tuple(texts), tuple(tasks), json.dumps({"rows": rows}).encode())


@dataclass(frozen=True)
class Outcome:
    """The result of a request.

    Attributes:
        task: Its first row's task.
        status: The HTTP status.
        seconds: Seconds since the request was due.
    """

    task: str | None
    status: int
    seconds: float


def questions(
    tasks: Sequence[str], count: int, *, rows: int, seed: int, zipf: bool = False, routed: bool = False
) -> list[Question]:
    """Draw `count` requests of `rows` rows; tasks are uniform, or Zipf-distributed with exponent 1.5."""
    share = np.arange(1, len(tasks) + 1, dtype=float) ** -(ZIPF if zipf else 0)
    drawn = np.random.RandomState(seed).choice(len(tasks), (count, rows), p=share / share.sum())
    draw = Random(seed)
    return [
        Question.of([sentence(draw) for _ in numbers], [None if routed else tasks[number] for number in numbers])
        for numbers in drawn
    ]


def gamma_arrivals(rate: float, seconds: float, *, cv: float, seed: int) -> list[float]:
    """Draw arrival times with Gamma gaps of coefficient of variation `cv`, scaled to the rate."""
    gaps = np.random.RandomState(seed).gamma(1 / cv**2, size=max(int(rate * seconds), 2))
    return list(np.cumsum(gaps) * seconds / gaps.sum())


def session(*, key: str | None = None, reuse: bool = True) -> aiohttp.ClientSession:
    """Return a client that sends an API key, and keeps connections with `reuse`."""
    timeout = aiohttp.ClientTimeout(total=120)
    headers = {"authorization": f"Bearer {key}"} if key else None
    connector = aiohttp.TCPConnector(limit=0, force_close=not reuse)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)


async def posted(client: aiohttp.ClientSession, url: str, question: Question) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    async with client.post(f"{url}/v1/predict", data=question.body, headers=headers) as response:
        return response.status, await response.read()


async def answers(url: str, requests: Sequence[Question], *, key: str | None = None) -> list[list[dict[str, Any]]]:
    """Return the predictions of requests sent one after the other; raises AssertionError for a refused one."""
    predictions = []
    async with session(key=key) as client:
        for question in requests:
            status, body = await posted(client, url, question)
            assert status == 200, body
            predictions.append(json.loads(body)["predictions"])
    return predictions


async def closed(url: str, requests: Sequence[Question], *, clients: int, seconds: float) -> tuple[int, float]:
    """Return the number of rows answered to so many clients that wait for each answer, and the seconds it took."""
    until = time.perf_counter() + seconds
    rows = 0

    async def ask(number: int, client: aiohttp.ClientSession) -> None:
        nonlocal rows
        while time.perf_counter() < until:
            question = requests[number % len(requests)]
            status, body = await posted(client, url, question)
            assert status == 200, body
            rows += len(question.texts)
            number += clients

    start = time.perf_counter()
    async with session() as client:
        await asyncio.gather(*(ask(number, client) for number in range(clients)))
    return rows, time.perf_counter() - start


async def open_loop(url: str, requests: Sequence[Question], due: Sequence[float]) -> list[Outcome]:
    """Send each request when it is due, whatever is pending; latency counts from the due time."""
    outcomes: list[Outcome] = []
    start = time.perf_counter()

    async def ask(client: aiohttp.ClientSession, question: Question, moment: float) -> None:
        status, _ = await posted(client, url, question)
        outcomes.append(Outcome(question.tasks[0], status, time.perf_counter() - start - moment))

    async with session() as client, asyncio.TaskGroup() as group:
        for number, moment in enumerate(due):
            await asyncio.sleep(max(start + moment - time.perf_counter(), 0))
            group.create_task(ask(client, requests[number % len(requests)], moment))
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return latency percentiles in seconds and shares of all requests; per task with at least 50 requests."""
    took = np.array([outcome.seconds for outcome in outcomes if outcome.status == 200])
    tasks = {outcome.task for outcome in outcomes}
    by_task = {
        task: [outcome.seconds for outcome in outcomes if outcome.task == task and outcome.status == 200]
        for task in tasks
    }
    worst = [float(np.percentile(seconds, 99)) for seconds in by_task.values() if len(seconds) >= 50]
    return {
        "requests": len(outcomes),
        "p50": float(np.percentile(took, 50)),
        "p99": float(np.percentile(took, 99)),
        "worst_task_p99": max(worst, default=float(np.percentile(took, 99))),
        "goodput": float((took <= TOO_LATE).sum() / len(outcomes)),
        "busy": sum(outcome.status == 429 for outcome in outcomes) / len(outcomes),
        "other_refusals": sum(outcome.status not in (200, 429) for outcome in outcomes) / len(outcomes),
    }
