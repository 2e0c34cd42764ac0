"""Latency of every registry query, and of registering a task, in registries of three sizes.

    python -m tests.benchmarks.registry [--sizes 1000 10000 100000] [--databases sqlite postgresql] [--seconds 2]

A registry of N deltas has 10 N scores, N / 2 tasks on three backbones, a lineage in which most deltas have a parent,
and streams of a hundred positions. Listings are asked a hundred rows at a time. Each question is asked for so many
seconds, at least five times, about something else each time; the process's start and the opening are not counted.
PostgreSQL is started on this machine, and vacuumed once it is filled, as it does by itself in time. p50 and p95 are
milliseconds by the clock; cpu is the mean of processor time, of this process and of the server's, which does not depend
on what else the machine does, so growth is judged by it. One JSON document is printed.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import psycopg
from sqlalchemy import text

from continual.reports.report import stream_report
from registry import Registry
from tests.benchmarks.synthetic_registry import BACKBONES, Filled, fill, register
from tests.helpers.postgres_server import running

LIMIT = 100
BAR = 50.0  # milliseconds, for one answer and for registering one task
NOISE = 1.0  # milliseconds by which an answer's time may differ for no reason
# Queries that return one row per champion, or per delta of a stream, cost as much as they return.
LINEAR = ("champions", "signatures")
Question = Callable[[], Any]


def questions(registry: Registry, filled: Filled, random: Random) -> dict[str, Question]:
    """Return every query of the registry, with other arguments at each call."""
    deltas, tasks, streams = filled.deltas, filled.tasks, filled.streams
    choose, of = random.choice, BACKBONES[0]

    def scores_after() -> Any:
        return registry.scores(limit=LIMIT, after=choose(registry.scores(delta=choose(deltas), limit=LIMIT)))

    return {
        "tasks, first page": lambda: registry.tasks(limit=LIMIT),
        "tasks, some page": lambda: registry.tasks(limit=LIMIT, after=choose(tasks)),
        "deltas, first page": lambda: registry.deltas(limit=LIMIT),
        "deltas, some page": lambda: registry.deltas(limit=LIMIT, after=choose(deltas)),
        "deltas of a task": lambda: registry.deltas(choose(tasks), limit=LIMIT),
        "delta": lambda: registry.delta(choose(deltas)),
        "task": lambda: registry.task(choose(tasks)),
        "backbone": lambda: registry.backbone(choose(BACKBONES)),
        "backbones": lambda: registry.backbones(),
        "champions": lambda: registry.champions(of),
        "signatures": lambda: registry.signatures(of),
        "signature": lambda: registry.signature(choose(deltas)),
        "lineage, ancestors": lambda: registry.lineage(choose(deltas)),
        "lineage, descendants": lambda: registry.lineage(choose(deltas), descendants=True),
        "lineage, descendants of the first, two steps": lambda: registry.lineage(deltas[0], descendants=True, depth=2),
        "siblings": lambda: registry.siblings(choose(tasks), limit=LIMIT),
        "dependents of a backbone": lambda: registry.dependents(backbone=of, limit=LIMIT, after=choose(deltas)),
        "dependents of a task": lambda: registry.dependents(task=choose(tasks), limit=LIMIT),
        "dependents of data": lambda: registry.dependents(data=choose(filled.fingerprints), limit=LIMIT),
        "best, first page": lambda: registry.best(limit=LIMIT),
        "best, some page": lambda: registry.best(limit=LIMIT, after=choose(filled.best)),
        "best of a task": lambda: registry.best(task=choose(tasks), limit=LIMIT),
        "history": lambda: registry.history(choose(tasks), limit=LIMIT),
        "changes, all": lambda: registry.changes(limit=LIMIT),
        "changes since a time": lambda: registry.changes(since=filled.moment(random.random()), limit=LIMIT),
        "changes, some page": lambda: registry.changes(limit=LIMIT, after=random.randint(1, filled.events)),
        "changes of a task": lambda: registry.changes(task=choose(tasks), since=filled.moment(0), limit=LIMIT),
        "cost, some page": lambda: registry.cost(limit=LIMIT, after=choose(streams)),
        "cost of a stream": lambda: registry.cost(choose(streams)),
        "stream": lambda: registry.stream(choose(streams)),
        "streams, ten": lambda: registry.streams(limit=10, after=choose(streams)),
        "last stream": lambda: registry.last_stream(),
        "learned in a stream": lambda: registry.learned(choose(streams)),
        "parents in a stream": lambda: registry.parents(choose(streams)),
        "report": lambda: stream_report(registry, choose(streams)),
        "scores, some page": scores_after,
        "scores of a delta": lambda: registry.scores(delta=choose(deltas), limit=LIMIT),
        "scores of a task": lambda: registry.scores(task=choose(tasks), limit=LIMIT),
        "scores in a stream": lambda: registry.scores(stream=choose(streams), limit=LIMIT),
        "scores in a step": lambda: registry.scores(stream=choose(streams), mode="routed", step=50, limit=LIMIT),
        "scores of deltas of a stream": lambda: registry.scores(learned_in=choose(streams), split="test", limit=LIMIT),
    }


def measured(ask: Question, *, seconds: float, processor: Question, least: int = 5) -> dict[str, float]:
    """Return a query's wall-clock milliseconds, its mean CPU time, and the rows of the last answer."""
    answer = ask()  # fills the caches that later calls use
    milliseconds: list[float] = []
    used, end = processor(), perf_counter() + seconds
    while len(milliseconds) < least or perf_counter() < end:
        start = perf_counter()
        answer = ask()
        milliseconds.append(1000 * (perf_counter() - start))
    times = {"cpu": 1000 * (processor() - used) / len(milliseconds), "times": len(milliseconds)}
    rows = len(answer) if isinstance(answer, list | tuple) else 1
    return {"p50": median(milliseconds), "p95": quantiles(milliseconds, n=20)[-1], "rows": rows} | times


def processor_time(registry: Registry) -> Question:
    """Return a function that reads the CPU seconds of this process and of the server's process for it."""
    if registry.engine.dialect.name == "sqlite":
        return process_time
    with registry.read_session() as session:
        stat = Path(f"/proc/{session.scalar(text('SELECT pg_backend_pid()'))}/stat")

    def both() -> float:
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return process_time() + (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    return both


@contextmanager
def databases(names: list[str], folder: Path) -> Iterator[Callable[[str, int], str]]:
    """Yield a function that returns the URL of an empty database by kind and size."""

    def sqlite(size: int) -> str:
        return f"sqlite:///{folder}/{size}.db"

    if "postgresql" not in names:
        yield lambda name, size: sqlite(size)
        return
    with running() as server:

        def url(name: str, size: int) -> str:
            if name == "sqlite":
                return sqlite(size)
            with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE size_{size}")
            return server.url(f"size_{size}")

        yield url


def of_size(url: str, blobs: str, size: int, *, seconds: float) -> dict[str, dict[str, float]]:
    """Return the costs of every query and of registering in a registry of so many deltas."""
    random = Random(size)
    with Registry.open(url, blobs) as registry:
        start = perf_counter()
        filled = fill(registry, size, random)
        print(
            f"{registry.engine.dialect.name}, {size}: filled in {perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
        queries = questions(registry, filled, random)
        options: dict[str, Any] = {"seconds": seconds, "processor": processor_time(registry)}
        timings = {name: measured(ask, least=2 if name in LINEAR else 5, **options) for name, ask in queries.items()}
        timings["register a task"] = measured(register(registry, filled, random), **options)
    return timings


def summary(sizes: list[int], results: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return each query's curves over the sizes, and the growth of its CPU time beside that of log N."""
    curves: dict[str, dict[str, Any]] = {
        name: {key: [round(of[name][key], 2) for of in results] for key in ("p50", "p95", "cpu", "rows", "times")}
        for name in results[0]
    }
    allowed = math.log(sizes[-1]) / math.log(sizes[0])
    for name, curve in curves.items():
        curve["grew"] = round(curve["cpu"][-1] / curve["cpu"][0], 2)
        curve["linear by nature"] = name in LINEAR
    sublinear = [name for name in curves if name not in LINEAR]
    return {
        "log N grew": round(allowed, 2),
        "over the bar": [name for name in sublinear if max(curves[name]["p50"]) > BAR],
        "over the bar in processor time": [name for name in sublinear if max(curves[name]["cpu"]) > BAR],
        "faster than log N": [
            name
            for name in sublinear
            if curves[name]["grew"] > allowed and curves[name]["cpu"][-1] - curves[name]["cpu"][0] > NOISE
        ],
        "milliseconds": curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder, databases(chosen.databases, Path(folder)) as url:
        results = {
            name: summary(
                chosen.sizes,
                [
                    of_size(url(name, size), f"{folder}/blobs-{name}-{size}", size, seconds=chosen.seconds)
                    for size in chosen.sizes
                ],
            )
            for name in chosen.databases
        }
    json.dump({"sizes": chosen.sizes, "databases": results}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
