"""A simulated year of a registry: tasks arrive, are learned again and again, and workers die at it.

    python -m tests.benchmarks.registry_at_scale [--tasks 10000] [--relearnings 50000] [--workers 8] [--failures 0.02]
        [--seconds 1800] [--database sqlite | postgresql | URL]

Tasks come by a Poisson process over a year, and so do the new rows of tasks that are known. Training is replaced by the
time that it takes, on a virtual clock: log-normal around a median of so many seconds. All else is done as a watcher
does it: submit, claim, heartbeat, a checkpoint half-way, a delta with its scores, signature and finish in one unit of
work, and the task counted into a router's totals and index. Of the heartbeats of a learning two are sent. A worker
dies in the middle of a learning with probability `failures`; whoever looks after its lease has run out takes over.

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
    """A process that watches, of which all but the training is real; `life` tells it from the one that died before."""

    number: int
    life: int = 0
    arrival: Arrival | None = None

    @property
    def holder(self) -> str:
        return f"worker-{self.number}:{self.life}:1"


class Year:
    """The events that are still to come, by virtual time, and what has become of those that were."""

    def __init__(self, registry: Registry, given: argparse.Namespace) -> None:
        self.registry, self.given, self.random = registry, given, Random(given.seed)
        self.now, self.learned, self.deaths, self.resumed = 0.0, 0, 0, 0
        self.total = given.tasks + given.relearnings
        self.measured = Measured(lambda: self.learned / self.total)
        self.workers = [Worker(number) for number in range(given.workers)]
        self.idle = list(self.workers)
        self.submitted: dict[int, float] = {}
        self.lags: list[float] = []
        self.router = Router(self.measured)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for moment, task, version in _year(self.random, given.tasks, given.relearnings):
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
        """A worker that has nothing to do looks for what has arrived."""
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
        seconds = self.given.seconds * math.exp(SPREAD * self.random.gauss(0, 1))
        for share, what in ((0.3, self._beat), (0.5, self._keep), (0.8, self._beat)):
            self._of(worker, share * seconds, what)
        dies = self.random.random() < self.given.failures
        self._of(
            worker, self.random.uniform(0.2, 1) * seconds if dies else seconds, self._die if dies else self._finish
        )

    def _of(self, worker: Worker, seconds: float, what: Callable[[Worker, Arrival], None]) -> None:
        """What this life of a worker does with its arrival after so many seconds, if it comes to that."""
        life, arrival = worker.life, worker.arrival

        def happens() -> None:
            if arrival is not None and (worker.life, worker.arrival) == (life, arrival):
                what(worker, arrival)

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
        own = signature_of(self.random)
        digest = self.registry.blobs.put(own.to_bytes())
        values = self.registry.blobs.put(f"{arrival.number} {arrival.task}".encode())
        self.measured("finish", lambda: register(self.registry, arrival, values, digest, holder=worker.holder))
        self.lags.append(self.now - self.submitted[arrival.number])
        self.learned += 1
        self.router.take(arrival.task, own)
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
    """Moment, task and version of each arrival, in order: given their number, a Poisson process's are uniform."""
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
    """What is not as it must be: every arrival one delta, every task's versions without gaps."""
    rows = registry.arrivals()
    problems = [f"arrival {row['arrival']}: {row['state']}" for row in rows if row["state"] != "learned"]
    deltas = [(row["task"], row["version"]) for row in registry.deltas()]
    if not len(rows) == len(deltas) == len({row["delta"] for row in rows}) == total:
        problems.append(f"{total} were to arrive, {len(rows)} arrived, and {len(deltas)} deltas are there")
    by_task = defaultdict(list)
    for task, version in deltas:
        by_task[task].append(version)
    problems += [f"{task}: {own}" for task, own in by_task.items() if sorted(own) != list(range(1, len(own) + 1))]
    return problems + find_damage(registry)


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tasks", 10_000), ("relearnings", 50_000), ("workers", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, share in (("failures", 0.02), ("seconds", 1800.0)):
        parser.add_argument(f"--{name}", type=float, default=share)
    parser.add_argument("--database", default="sqlite")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as held:
        folder = held.enter_context(TemporaryDirectory())
        url = {"sqlite": f"sqlite:///{folder}/registry.db"}.get(given.database, given.database)
        url = held.enter_context(running()).url() if url == "postgresql" else url
        registry = held.enter_context(Registry.open(url, f"{folder}/blobs"))
        with registry.unit_of_work() as unit:
            unit.add_backbone(BACKBONE)
        year = Year(registry, given)
        began = perf_counter()
        year.run()
        seconds = perf_counter() - began
        operations = year.measured.document()
        router = {name: operations.pop(name) for name in [*operations] if name.startswith("router")}
        logs = math.log(year.total) / math.log(max(0.2 * year.total, 2))
        document = {
            "given": vars(given),
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
