"""Simulated year of a registry: tasks arrive, are learned repeatedly, and workers die.

    python -m tests.benchmarks.registry_at_scale [--tasks 10000] [--relearnings 50000] [--workers 8] [--failures 0.02]
        [--seconds 1800] [--database sqlite | postgresql | URL]

Tasks arrive by a Poisson process over a year, and so do new rows of earlier tasks. Training is replaced by its duration
on a virtual clock: log-normal around a median of so many seconds. All else is done as by an arrival worker: submit,
claim, heartbeat, a checkpoint half-way, a delta with scores, signature and finish in one unit of work, and the task
added to a router's sums. Two heartbeats are sent per training. A worker dies during training with
probability `failures`; the next worker that polls after its lease has expired takes over.

One JSON document is printed: throughput, milliseconds of each operation by tenth of the year (p50, p99) and their
growth beside that of log N, the router's, the lag from arrival to learned in virtual seconds, and whether every arrival
was learned exactly once.
"""

import argparse
import heapq
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from sqlalchemy import update

from registry import (
    ARRIVAL_STREAM,
    Arrival,
    Registry,
    claim_arrival,
    find_damage,
    heartbeat,
    load_checkpoint,
    save_checkpoint,
)
from registry.schema.base import database_now
from registry.schema.tables import Position
from tasks import Source, Stream, TaskSpec
from tests.benchmarks.simulated_year import BACKBONE, Measured, Router, percentile, register, signature_of
from tests.helpers.postgres_server import running

YEAR, REST, LEASE, LOOK = 365 * 86_400.0, 60.0, 120.0, 1.0  # seconds; REST: until a worker that died is back
SPREAD = 1.0  # of the logarithm of a learning's seconds


@dataclass
class Worker:
    """An arrival worker with simulated training; `life` counts its restarts after a death."""

    number: int
    life: int = 0
    arrival: Arrival | None = None

    @property
    def holder(self) -> str:
        return f"worker-{self.number}:{self.life}:1"


class Year:
    """The event queue by virtual time, and the state of all arrivals."""

    def __init__(self, registry: Registry, arguments: argparse.Namespace) -> None:
        self.registry, self.arguments, self.random = registry, arguments, Random(arguments.seed)
        self.now, self.learned, self.deaths, self.resumed = 0.0, 0, 0, 0
        self.total = arguments.tasks + arguments.relearnings
        self.measured = Measured(lambda: self.learned / self.total)
        self.workers = [Worker(number) for number in range(arguments.workers)]
        self.idle = list(self.workers)
        self.submitted: dict[int, float] = {}
        self.lags: list[float] = []
        self.router = Router(self.measured)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for moment, task, version in _year(self.random, arguments.tasks, arguments.relearnings):
            self._at(moment, lambda task=task, version=version: self._arrive(task, version))  # type: ignore[misc]

    def run(self) -> None:
        while self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()

    def _at(self, moment: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), happens))

    def _arrive(self, task: int, version: int) -> None:
        source = Source(path="json", data_files={"train": f"{version}.jsonl"})
        spec = TaskSpec(name=f"task-{task}", source=source, text="text", label="label")
        stream = Stream(name=spec.name, seed=version, tasks=(spec,), folder=Path("/data"))
        priority = self.random.choice((0, 0, 0, 1))
        number = self.measured("submit", lambda: self.registry.submit(stream, priority=priority))
        self.submitted[number] = self.now
        self._at(self.now + LOOK * self.random.random(), self._look)

    def _look(self) -> None:
        """Let an idle worker poll for arrivals."""
        if not self.idle:
            return
        worker = self.idle.pop()
        claim = lambda: claim_arrival(self.registry, backbones=["tiny"], holder=worker.holder)  # noqa: E731
        worker.arrival = self.measured("claim", claim)
        if worker.arrival is None:
            self.idle.append(worker)
            return
        if load_checkpoint(self.registry, ARRIVAL_STREAM, number=worker.arrival.number):
            self.resumed += 1
        seconds = self.arguments.seconds * math.exp(SPREAD * self.random.gauss(0, 1))
        for share, action in ((0.3, self._beat), (0.5, self._keep), (0.8, self._beat)):
            self._of(worker, share * seconds, action)
        dies = self.random.random() < self.arguments.failures
        self._of(
            worker, self.random.uniform(0.2, 1) * seconds if dies else seconds, self._die if dies else self._finish
        )

    def _of(self, worker: Worker, seconds: float, action: Callable[[Worker, Arrival], None]) -> None:
        """Schedule an action of this life of a worker on its arrival after so many seconds."""
        life, arrival = worker.life, worker.arrival

        def happens() -> None:
            if arrival is not None and (worker.life, worker.arrival) == (life, arrival):
                action(worker, arrival)

        self._at(self.now + seconds, happens)

    def _beat(self, worker: Worker, arrival: Arrival) -> None:
        number = arrival.number
        assert self.measured(
            "heartbeat", lambda: heartbeat(self.registry, ARRIVAL_STREAM, number=number, holder=worker.holder)
        )

    def _keep(self, worker: Worker, arrival: Arrival) -> None:
        number, data = arrival.number, f"{arrival.number} {worker.life} {self.now}".encode()
        save = partial(
            save_checkpoint, self.registry, ARRIVAL_STREAM, number=number, holder=worker.holder, epoch=1, data=data
        )
        self.measured("checkpoint", save)

    def _die(self, worker: Worker, arrival: Arrival) -> None:
        self.deaths += 1
        with self.registry.unit_of_work() as unit:  # the database's clock is real: as if the lease had run out
            late = {"lease_until": database_now(unit.session) - timedelta(seconds=1)}
            unit.session.execute(update(Position).where(Position.holder == worker.holder).values(**late))
        worker.life, worker.arrival = worker.life + 1, None
        self._at(self.now + LEASE, self._look)
        self._at(self.now + REST, lambda: self._rest(worker))

    def _finish(self, worker: Worker, arrival: Arrival) -> None:
        signature = signature_of(self.random)
        digest = self.registry.blobs.put(signature.to_bytes())
        values = self.registry.blobs.put(f"{arrival.number} {arrival.task}".encode())
        self.measured("finish", lambda: register(self.registry, arrival, values, digest, holder=worker.holder))
        self.lags.append(self.now - self.submitted[arrival.number])
        self.learned += 1
        self.router.take(arrival.task, signature)
        worker.arrival = None
        if self.learned % max(self.total // 200, 1) == 0:
            self.measured("arrivals, a page", lambda: self.registry.arrivals(limit=100, after=self.learned // 2))
            self.measured("failed, a page", lambda: self.registry.arrivals(state="failed", limit=100))
            print(f"{self.learned} of {self.total}, day {self.now / 86_400:.0f}", file=sys.stderr)
        self._rest(worker)

    def _rest(self, worker: Worker) -> None:
        self.idle.append(worker)
        self._look()


def _year(random: Random, tasks: int, again: int) -> Iterator[tuple[float, int, int]]:
    """Return moment, task and version of each arrival in order; given their number, moments are uniform."""
    moments = sorted(random.uniform(0, YEAR) for _ in range(tasks + again))
    new = {0, *random.sample(range(1, len(moments)), tasks - 1)}
    versions: list[int] = []  # by task
    for number, moment in enumerate(moments):
        if number in new:
            versions.append(0)
        task = len(versions) - 1 if number in new else random.randrange(len(versions))
        versions[task] += 1
        yield moment, task, versions[task]


def wrong(registry: Registry, total: int) -> list[str]:
    """Return all violations: one delta per arrival, and gapless versions of each task."""
    rows = registry.arrivals()
    problems = [f"arrival {row['arrival']}: {row['state']}" for row in rows if row["state"] != "learned"]
    deltas = [(row["task"], row["version"]) for row in registry.deltas()]
    if not len(rows) == len(deltas) == len({row["delta"] for row in rows}) == total:
        problems.append(f"{total} were to arrive, {len(rows)} arrived, and {len(deltas)} deltas are there")
    by_task = defaultdict(list)
    for task, version in deltas:
        by_task[task].append(version)
    problems += [
        f"{task}: {versions}"
        for task, versions in by_task.items()
        if sorted(versions) != list(range(1, len(versions) + 1))
    ]
    return problems + find_damage(registry)


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tasks", 10_000), ("relearnings", 50_000), ("workers", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, share in (("failures", 0.02), ("seconds", 1800.0)):
        parser.add_argument(f"--{name}", type=float, default=share)
    parser.add_argument("--database", default="sqlite")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        url = {"sqlite": f"sqlite:///{folder}/registry.db"}.get(arguments.database, arguments.database)
        url = stack.enter_context(running()).url() if url == "postgresql" else url
        registry = stack.enter_context(Registry.open(url, f"{folder}/blobs"))
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        year = Year(registry, arguments)
        start = perf_counter()
        year.run()
        seconds = perf_counter() - start
        operations = year.measured.document()
        router = {name: operations.pop(name) for name in [*operations] if name.startswith("router")}
        logs = math.log(year.total) / math.log(max(0.2 * year.total, 2))
        document = {
            "given": vars(arguments),
            "arrivals": year.total,
            "deaths": year.deaths,
            "resumed": year.resumed,
            "seconds": round(seconds, 1),
            "arrivals_per_second": round(year.total / seconds, 1),
            "virtual_days": round(year.now / 86_400, 1),
            "growth_of_log": round(logs, 2),
            "operations": operations,
            "router": router | {"tasks": len(year.router.parts), "bytes_per_task": year.router.bytes_per_task()},
            "lag_seconds": {f"p{share}": percentile(year.lags, share) for share in (50, 90, 99, 100)},
            "wrong": wrong(registry, year.total),
        }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
