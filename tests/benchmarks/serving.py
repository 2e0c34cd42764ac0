"""What do HTTP, bursts, deltas that come and go, and cold deltas cost a server of many tasks?

    python -m tests.benchmarks.serving [--backbone minilm | --random 384x6] [--tasks 16] [--cores 0,1] > serving.json

The server is a process of its own on one core with one thread, the load comes from another core, and what is measured
without HTTP runs on the server's core while the server has nothing to do. Deltas have random values.

`saturated`: rows per second, of requests of so many rows as keep the queue full, over those that the same process
answers without HTTP, in batches of the same tokens; the median over rounds in turn. `cpu_ratio` counts seconds of the
core instead of the clock's, so that other work on the machine changes little.
`bursts`: one row per request, Gamma arrivals (their coefficient of variation, and the share of what the server did at
saturation just before), tasks by Zipf's law of exponent 1.5; seconds from when a request was due. goodput: answered
within a second, of all · busy: answered by 429.
`churn`: the 99th percentile of a server with fewer slots than tasks, whose champions change all the while, over that
of one that holds all and is left alone, at the same arrivals.
`cold`: how much longer the first answer of a delta takes than its later ones.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from continual.backbones.backbone import load_backbone
from continual.serve import ChampionServer
from continual.serve.core.champions import InferenceRequest
from registry import promote_delta
from tests.benchmarks.load import Question, answers, closed, gamma_arrivals, open_loop, questions, summary
from tests.benchmarks.run_log import quieten, say
from tests.benchmarks.server_process import Served, fill, opened, random_folder, serving

BATCH = 1 << 12  # tokens, as the server's on a CPU
PROMOTED = 0.2  # seconds from one change of a champion to the next
TIE = 0.02  # of a probability; in bfloat16 it depends on what else is in the batch
WARM = 4  # answers after the first one
_inside: list[ChampionServer] = []  # of the process that answers without HTTP


def begin_inside(home: Path, backbone: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    quieten()
    _inside.append(ChampionServer(load_backbone(backbone, device="cpu"), opened(home)))
    _inside[0].refresh()


def answered_inside(asked: Sequence[Question], seconds: float) -> tuple[int, float, float]:
    """Rows that were answered, in how many seconds, and how many of them on the core."""
    asks = [InferenceRequest(text, task) for own in asked for text, task in zip(own.texts, own.tasks, strict=True)]
    rows = number = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        batch: list[InferenceRequest] = []
        while sum(ask.cost for ask in batch) < BATCH:
            batch.append(asks[number % len(asks)])
            number += 1
        _inside[0].answer_batch(batch)
        rows += len(batch)
    return rows, time.perf_counter() - began, time.process_time() - cpu


def said_inside(asked: Sequence[Question]) -> list[tuple[Any, float]]:
    asks = [InferenceRequest(text, task) for own in asked for text, task in zip(own.texts, own.tasks, strict=True)]
    return [(answer.label, answer.score) for answer in _inside[0].answer_batch(asks)]  # type: ignore[union-attr, misc]


def promote(home: Path, tasks: Sequence[str], begun: Event, over: Event) -> None:
    with opened(home) as registry:
        begun.set()
        for task in cycle(tasks):
            other = next(row["delta"] for row in registry.deltas(task) if row["status"] != "champion")
            promote_delta(registry, other)
            if over.wait(PROMOTED):
                return


class Bench:
    """A home, its tasks, and what is asked of servers of it."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.given, self.home = given, folder / "home"
        self.server_core, self.load_core = given.cores
        os.sched_setaffinity(0, {self.load_core})
        width, _, layers = given.random.partition("x")
        self.name = random_folder(folder / "bert", width=int(width), layers=int(layers)) if width else given.backbone
        backbone = load_backbone(self.name, device="cpu")
        quieten()
        names = [f"task-{number}" for number in range(max(given.tasks, given.churned, given.cold))]
        fill(self.home, backbone, names, versions=2)
        self.tasks, self.churned, self.cold = names[: given.tasks], names[: given.churned], names[: given.cold]

    @contextmanager
    def serving(self, *options: str) -> Iterator[Served]:
        with serving(self.home, self.name, core=self.server_core, options=options) as served:
            yield served

    def saturated(self, served: Served) -> list[dict[str, Any]]:
        inside = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), begin_inside, (self.home, self.name, self.server_core)
        )
        with inside:
            return [self._ratio(served, inside, rows) for rows in self.given.rows]

    def _ratio(self, served: Served, inside: ProcessPoolExecutor, rows: int) -> dict[str, Any]:
        clients, seconds = -(-self.given.waiting // rows), self.given.seconds
        asked = questions(self.tasks, max(2 * clients, 64), rows=rows, seed=rows)
        predictions = asyncio.run(answers(served.url, asked[:16]))
        said = [(prediction["label"], prediction["score"]) for own in predictions for prediction in own]
        pairs = zip(said, inside.submit(said_inside, asked[:16]).result(), strict=True)
        assert all(abs(a - b) < TIE and (a < 0.5 + TIE or here == there) for (here, a), (there, b) in pairs)
        rounds = []
        for round in range(self.given.rounds + 1):
            found, cpu = inside.submit(answered_inside, asked, seconds).result(), served.cpu
            count, took = asyncio.run(closed(served.url, asked, clients=clients, seconds=seconds))
            if round:
                rounds.append((found[0] / found[1], found[0] / found[2], count / took, count / (served.cpu - cpu)))
        cell = {
            "rows": rows,
            "clients": clients,
            "ratio": median(http / own for own, _, http, _ in rounds),
            "cpu_ratio": median(http / own for _, own, _, http in rounds),
            "rows_per_second": median(own[2] for own in rounds),
            "rows_per_core_second": median(own[3] for own in rounds),
        }
        say(str(cell))
        return cell

    def capacity(self, served: Served, tasks: Sequence[str], *, zipf: bool) -> float:
        """Requests of one row per second at saturation, at this moment."""
        asked = questions(tasks, 512, rows=1, seed=0, zipf=zipf)
        count, took = asyncio.run(closed(served.url, asked, clients=self.given.waiting, seconds=self.given.seconds))
        return count / took

    def bursts(self, served: Served) -> list[dict[str, Any]]:
        cells = []
        for cv in (1.0, 4.0):
            for share in (0.5, 0.7, 0.9):
                rate = share * self.capacity(served, self.tasks, zipf=True)
                due = gamma_arrivals(rate, self.given.burst_seconds, cv=cv, seed=round(10 * share))
                asked = questions(self.tasks, 2048, rows=1, seed=1, zipf=True)
                found = summary(asyncio.run(open_loop(served.url, asked, due)))
                cells.append({"cv": cv, "share": share, "rate": rate, **found})
                say(str(cells[-1]))
        return cells

    def churn(self) -> dict[str, Any]:
        slots = ("--slots", str(self.given.slots), "--poll", "0.5")
        rounds, asked = [], questions(self.churned, 2048, rows=1, seed=2, zipf=True)
        with self.serving() as steady, self.serving(*slots) as churning:
            for served in (steady, churning):
                asyncio.run(answers(served.url, [Question.of(["warm"], [task]) for task in self.churned]))
            for round in range(self.given.rounds):
                rate = 0.5 * self.capacity(steady, self.churned, zipf=True)
                due = gamma_arrivals(rate, self.given.burst_seconds, cv=1.0, seed=round)
                calm = summary(asyncio.run(open_loop(steady.url, asked, due)))
                with self._promoting():
                    moved = summary(asyncio.run(open_loop(churning.url, asked, due)))
                rounds.append((calm, moved))
                say(f"churn {moved['p99']:.4f} calm {calm['p99']:.4f} at {rate:.0f}/s")
        return {
            "tasks": len(self.churned),
            "slots": self.given.slots,
            "ratio": median(moved["p99"] / calm["p99"] for calm, moved in rounds),
            "calm": [calm for calm, _ in rounds],
            "churning": [moved for _, moved in rounds],
        }

    @contextmanager
    def _promoting(self) -> Iterator[None]:
        """Inside, another process lets the version of a task serve that does not, task after task."""
        spawned = multiprocessing.get_context("spawn")
        begun, over = spawned.Event(), spawned.Event()
        process = spawned.Process(target=promote, args=(self.home, self.churned, begun, over))
        process.start()
        begun.wait()
        try:
            yield
        finally:
            over.set()
            process.join()

    def first_answers(self) -> dict[str, Any]:
        more = []
        with self.serving() as served:
            for task in self.cold:
                seconds = []
                for _ in range(1 + WARM):
                    (heard,) = asyncio.run(open_loop(served.url, [Question.of(["a cold start"], [task])], [0.0]))
                    seconds.append(heard.seconds)
                more.append(seconds[0] - median(seconds[1:]))
        return {"deltas": len(more), "median": median(more), "p90": float(np.percentile(more, 90)), "most": max(more)}

    def measured(self) -> Iterator[tuple[str, Any]]:
        wanted = self.given.only
        if {"saturated", "bursts"} & set(wanted):
            with self.serving() as served:
                if "saturated" in wanted:
                    yield "saturated", self.saturated(served)
                if "bursts" in wanted:
                    yield "bursts", self.bursts(served)
        if "churn" in wanted:
            yield "churn", self.churn()
        if "cold" in wanted:
            yield "cold", self.first_answers()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--random", default="", help="WIDTHxLAYERS of a random BERT, in place of a backbone")
    parser.add_argument("--cores", type=numbers, default=[0, 1], help="the server's, and that of the load")
    parser.add_argument("--rows", type=numbers, default=[1, 8, 32], help="of a request")
    for name, default in {"tasks": 16, "waiting": 512, "rounds": 5, "churned": 64, "slots": 16, "cold": 48}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each arm at saturation")
    parser.add_argument("--burst-seconds", type=float, default=20.0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["saturated", "bursts", "churn", "cold"])
    given = parser.parse_args()
    with TemporaryDirectory(prefix="continual-serving-") as folder:
        found = dict(Bench(Path(folder), given).measured())
    print(json.dumps({"given": vars(given), "load_average": os.getloadavg(), **found}, indent=1))


if __name__ == "__main__":
    main()
