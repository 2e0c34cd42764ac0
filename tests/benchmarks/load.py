"""Questions sent to a server, each as soon as another is answered, or at moments that do not wait for answers."""

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
    """The texts of one request and, of each, the task that is to answer it."""

    texts: tuple[str, ...]
    tasks: tuple[str | None, ...]
    body: bytes

    @classmethod
    def of(cls, texts: Sequence[str], tasks: Sequence[str | None]) -> "Question":
        rows = [{"text": text} | ({"task": task} if task else {}) for text, task in zip(texts, tasks, strict=True)]
        return cls(tuple(texts), tuple(tasks), json.dumps({"rows": rows}).encode())


@dataclass(frozen=True)
class Heard:
    """What came of a request: its task, the status, and the seconds since it was due."""

    task: str | None
    status: int
    seconds: float


def questions(
    tasks: Sequence[str], count: int, *, rows: int, seed: int, zipf: bool = False, routed: bool = False
) -> list[Question]:
    """So many requests of so many rows each, their tasks drawn evenly or by Zipf's law of exponent 1.5."""
    share = np.arange(1, len(tasks) + 1, dtype=float) ** -(ZIPF if zipf else 0)
    drawn = np.random.RandomState(seed).choice(len(tasks), (count, rows), p=share / share.sum())
    draw = Random(seed)
    return [
        Question.of([sentence(draw) for _ in own], [None if routed else tasks[number] for number in own])
        for own in drawn
    ]


def gamma_arrivals(rate: float, seconds: float, *, cv: float, seed: int) -> list[float]:
    """Moments of arrivals whose gaps have a Gamma law with this coefficient of variation; scaled to the wanted rate."""
    gaps = np.random.RandomState(seed).gamma(1 / cv**2, size=max(int(rate * seconds), 2))
    return list(np.cumsum(gaps) * seconds / gaps.sum())


def session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def posted(client: aiohttp.ClientSession, url: str, question: Question) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    async with client.post(f"{url}/v1/predict", data=question.body, headers=headers) as response:
        return response.status, await response.read()


async def answers(url: str, asked: Sequence[Question]) -> list[list[dict[str, Any]]]:
    """The predictions, of requests sent one after the other. Raises AssertionError where one is refused."""
    found = []
    async with session() as client:
        for question in asked:
            status, body = await posted(client, url, question)
            assert status == 200, body
            found.append(json.loads(body)["predictions"])
    return found


async def closed(url: str, asked: Sequence[Question], *, clients: int, seconds: float) -> tuple[int, float]:
    """Rows that were answered to so many clients, of which each waits for its answer, and how long that took."""
    until = time.perf_counter() + seconds
    rows = 0

    async def ask(number: int, client: aiohttp.ClientSession) -> None:
        nonlocal rows
        while time.perf_counter() < until:
            question = asked[number % len(asked)]
            status, body = await posted(client, url, question)
            assert status == 200, body
            rows += len(question.texts)
            number += clients

    began = time.perf_counter()
    async with session() as client:
        await asyncio.gather(*(ask(number, client) for number in range(clients)))
    return rows, time.perf_counter() - began


async def open_loop(url: str, asked: Sequence[Question], due: Sequence[float]) -> list[Heard]:
    """What came of each request, sent when it was due however much waits; time runs from when it was due."""
    heard: list[Heard] = []
    began = time.perf_counter()

    async def ask(client: aiohttp.ClientSession, question: Question, at: float) -> None:
        status, _ = await posted(client, url, question)
        heard.append(Heard(question.tasks[0], status, time.perf_counter() - began - at))

    async with session() as client, asyncio.TaskGroup() as group:
        for number, at in enumerate(due):
            await asyncio.sleep(max(began + at - time.perf_counter(), 0))
            group.create_task(ask(client, asked[number % len(asked)], at))
    return heard


def summary(heard: Sequence[Heard]) -> dict[str, float]:
    """Seconds by percentile of what was answered, and shares of what was offered; per task where it had 50 requests."""
    took = np.array([own.seconds for own in heard if own.status == 200])
    tasks = {own.task for own in heard}
    by_task = {task: [own.seconds for own in heard if own.task == task and own.status == 200] for task in tasks}
    worst = [float(np.percentile(own, 99)) for own in by_task.values() if len(own) >= 50]
    return {
        "requests": len(heard),
        "p50": float(np.percentile(took, 50)),
        "p99": float(np.percentile(took, 99)),
        "worst_task_p99": max(worst, default=float(np.percentile(took, 99))),
        "goodput": float((took <= TOO_LATE).sum() / len(heard)),
        "busy": sum(own.status == 429 for own in heard) / len(heard),
        "other_refusals": sum(own.status not in (200, 429) for own in heard) / len(heard),
    }
