"""Cost of HTTP, bursts, changing champions and cold deltas in a server of many tasks.

    python -m tests.benchmarks.serving [--backbone minilm | --random 384x6] [--tasks 16] [--cores 0,1] > serving.json

The server is another process on one core with one thread, the load comes from another core, and measurements without
HTTP run on the server's core while the server is idle. Deltas have random values.

`saturated`: rows per second with a full queue of requests of so many rows, divided by those that the same process
answers without HTTP, in batches of the same tokens; the median over alternating rounds. `cpu_ratio` counts CPU seconds
instead of wall-clock time, so that other work on the machine changes little.
`bursts`: one row per request, Gamma arrivals (by coefficient of variation, and share of the saturated throughput
measured just before), Zipf-distributed tasks of exponent 1.5; seconds from when a request was due. goodput: share
answered within a second · busy: share answered by 429.
`churn`: the 99th percentile of a server with fewer slots than tasks and constantly changing champions, divided by that
of a server that holds all of them unchanged, at the same arrivals.
`cold`: how much longer the first answer of a delta takes than later ones.
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
TIE = 0.02  # tolerance of a probability: in bfloat16 it depends on the rest of the batch
WARM = 4  # answers after the first one
_inside: list[ChampionServer] = []  # of the process that answers without HTTP


def begin_inside(home: Path, backbone: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    quieten()
    _inside.append(ChampionServer(load_backbone(backbone, device="cpu"), opened(home)))
    _inside[0].refresh()


def answered_inside(workload: Sequence[Question], seconds: float) -> tuple[int, float, float]:
    """Return the number of rows answered without HTTP, the seconds, and the CPU seconds."""
    asks = [
        InferenceRequest(text, task)
        for question in workload
        for text, task in zip(question.texts, question.tasks, strict=True)
    ]
    rows = number = 0
    start, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        batch: list[InferenceRequest] = []
        while sum(ask.cost for ask in batch) < BATCH:
            batch.append(asks[number % len(asks)])
            number += 1
        _inside[0].answer_batch(batch)
        rows += len(batch)
    return rows, time.perf_counter() - start, time.process_time() - cpu


def said_inside(workload: Sequence[Question]) -> list[tuple[Any, float]]:
    asks = [
        InferenceRequest(text, task)
        for question in workload
        for text, task in zip(question.texts, question.tasks, strict=True)
    ]
    return [(answer.label, answer.score) for answer in _inside[0].answer_batch(asks)]  # type: ignore[union-attr, misc]


def promote(home: Path, tasks: Sequence[str], started: Event, over: Event) -> None:
    with opened(home) as registry:
        started.set()
        for task in cycle(tasks):
            candidate = next(row["delta"] for row in registry.deltas(task) if row["status"] != "champion")
            promote_delta(registry, candidate)
            if over.wait(PROMOTED):
                return


class ServingBenchmark:
    """A home, its tasks, and the measurements of servers of it."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.arguments, self.home = arguments, folder / "home"
        self.server_core, self.load_core = arguments.cores
        os.sched_setaffinity(0, {self.load_core})
        width, _, layers = arguments.random.partition("x")
        self.name = (
            random_folder(folder / "bert", width=int(width), layers=int(layers)) if width else arguments.backbone
        )
        backbone = load_backbone(self.name, device="cpu")
        quieten()
        names = [f"task-{number}" for number in range(max(arguments.tasks, arguments.churned, arguments.cold))]
        fill(self.home, backbone, names, versions=2)
        self.tasks, self.churned, self.cold = (
            names[: arguments.tasks],
            names[: arguments.churned],
            names[: arguments.cold],
        )

    @contextmanager
    def serving(self, *options: str) -> Iterator[Served]:
        with serving(self.home, self.name, core=self.server_core, options=options) as served:
            yield served

    def saturated(self, served: Served) -> list[dict[str, Any]]:
        inside = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), begin_inside, (self.home, self.name, self.server_core)
        )
        with inside:
            return [self._ratio(served, inside, rows) for rows in self.arguments.rows]

    def _ratio(self, served: Served, inside: ProcessPoolExecutor, rows: int) -> dict[str, Any]:
        clients, seconds = -(-self.arguments.waiting // rows), self.arguments.seconds
        workload = questions(self.tasks, max(2 * clients, 64), rows=rows, seed=rows)
        predictions = asyncio.run(answers(served.url, workload[:16]))
        actual = [(prediction["label"], prediction["score"]) for batch in predictions for prediction in batch]
        pairs = zip(actual, inside.submit(said_inside, workload[:16]).result(), strict=True)
        assert all(abs(a - b) < TIE and (a < 0.5 + TIE or here == there) for (here, a), (there, b) in pairs)
        rounds = []
        for round in range(self.arguments.rounds + 1):
            result, cpu = inside.submit(answered_inside, workload, seconds).result(), served.cpu
            count, took = asyncio.run(closed(served.url, workload, clients=clients, seconds=seconds))
            if round:
                rounds.append((result[0] / result[1], result[0] / result[2], count / took, count / (served.cpu - cpu)))
        cell = {
            "rows": rows,
            "clients": clients,
            "ratio": median(http / batch for batch, _, http, _ in rounds),
            "cpu_ratio": median(http / batch for _, batch, _, http in rounds),
            "rows_per_second": median(batch[2] for batch in rounds),
            "rows_per_core_second": median(batch[3] for batch in rounds),
        }
        say(str(cell))
        return cell

    def capacity(self, served: Served, tasks: Sequence[str], *, zipf: bool) -> float:
        """Return the current saturated throughput, in requests of one row per second."""
        workload = questions(tasks, 512, rows=1, seed=0, zipf=zipf)
        count, took = asyncio.run(
            closed(served.url, workload, clients=self.arguments.waiting, seconds=self.arguments.seconds)
        )
        return count / took

    def bursts(self, served: Served) -> list[dict[str, Any]]:
        cells = []
        for cv in (1.0, 4.0):
            for share in (0.5, 0.7, 0.9):
                rate = share * self.capacity(served, self.tasks, zipf=True)
                due = gamma_arrivals(rate, self.arguments.burst_seconds, cv=cv, seed=round(10 * share))
                workload = questions(self.tasks, 2048, rows=1, seed=1, zipf=True)
                outcome = summary(asyncio.run(open_loop(served.url, workload, due)))
                cells.append({"cv": cv, "share": share, "rate": rate, **outcome})
                say(str(cells[-1]))
        return cells

    def churn(self) -> dict[str, Any]:
        slots = ("--slots", str(self.arguments.slots), "--poll", "0.5")
        rounds, workload = [], questions(self.churned, 2048, rows=1, seed=2, zipf=True)
        with self.serving() as steady, self.serving(*slots) as churning:
            for served in (steady, churning):
                asyncio.run(answers(served.url, [Question.of(["warm"], [task]) for task in self.churned]))
            for round in range(self.arguments.rounds):
                rate = 0.5 * self.capacity(steady, self.churned, zipf=True)
                due = gamma_arrivals(rate, self.arguments.burst_seconds, cv=1.0, seed=round)
                calm = summary(asyncio.run(open_loop(steady.url, workload, due)))
                with self._promoting():
                    moved = summary(asyncio.run(open_loop(churning.url, workload, due)))
                rounds.append((calm, moved))
                say(f"churn {moved['p99']:.4f} calm {calm['p99']:.4f} at {rate:.0f}/s")
        return {
            "tasks": len(self.churned),
            "slots": self.arguments.slots,
            "ratio": median(moved["p99"] / calm["p99"] for calm, moved in rounds),
            "calm": [calm for calm, _ in rounds],
            "churning": [moved for _, moved in rounds],
        }

    @contextmanager
    def _promoting(self) -> Iterator[None]:
        """Let another process promote, task after task, the version that does not serve while the block runs."""
        spawned = multiprocessing.get_context("spawn")
        started, over = spawned.Event(), spawned.Event()
        process = spawned.Process(target=promote, args=(self.home, self.churned, started, over))
        process.start()
        started.wait()
        try:
            yield
        finally:
            over.set()
            process.join()

    def first_answers(self) -> dict[str, Any]:
        extra_seconds = []
        with self.serving() as served:
            for task in self.cold:
                seconds = []
                for _ in range(1 + WARM):
                    (outcome,) = asyncio.run(open_loop(served.url, [Question.of(["a cold start"], [task])], [0.0]))
                    seconds.append(outcome.seconds)
                extra_seconds.append(seconds[0] - median(seconds[1:]))
        return {
            "deltas": len(extra_seconds),
            "median": median(extra_seconds),
            "p90": float(np.percentile(extra_seconds, 90)),
            "most": max(extra_seconds),
        }

    def measured(self) -> Iterator[tuple[str, Any]]:
        selected = self.arguments.only
        if {"saturated", "bursts"} & set(selected):
            with self.serving() as served:
                if "saturated" in selected:
                    yield "saturated", self.saturated(served)
                if "bursts" in selected:
                    yield "bursts", self.bursts(served)
        if "churn" in selected:
            yield "churn", self.churn()
        if "cold" in selected:
            yield "cold", self.first_answers()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print one JSON document."""
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
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="continual-serving-") as folder:
        document = dict(ServingBenchmark(Path(folder), arguments).measured())
    print(json.dumps({"given": vars(arguments), "load_average": os.getloadavg(), **document}, indent=1))


if __name__ == "__main__":
    main()
