"""Overhead of distributing a stream's tasks among workers of a cluster.

    python -m tests.benchmarks.engines [--workers 8] [--rounds 3] [--seconds 10] [--database sqlite] > engines.json

Tiny tasks on a tiny backbone, `rounds` per worker, each worker on a logical core of Ray's. Sleeping extends the
learning of a task to `seconds`, about what a task of 400 rows takes with minilm on one core, so that fewer cores
suffice. Measured is the time between the end of one task's training and the start of the next in the same worker:
registering the delta, releasing the claim, notifying the driver and claiming the next task, while the driver evaluates
the stream. One JSON document is printed; `overhead` is the mean of that time as a share of `seconds`.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}

import ray
import torch
import yaml

import continual.streams.position_learner
import continual.streams.ray.worker_pool
from continual import Learner, read_stream
from continual.callbacks import RunCallbacks
from continual.streams.ray.engine import RayEngine
from continual.streams.ray.worker import Worker, WorkerConfig
from continual.training.joint import train_jointly
from registry import Registry, current_process_id
from tests.helpers.postgres_server import running
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone, write_task

TASKS = ("animals", "mood", "place", "food")
BUDGET = {"epochs": 1, "batch_size": 16, "max_length": 32}
BAR = 0.05


def paced(seconds: float) -> type[Worker]:
    """Return a worker whose training of a task lasts so many seconds and is logged with its start and end."""

    class Paced(Worker):
        def initialize(self, config: WorkerConfig) -> str:
            def train(runs: Mapping[str, Any], *, seed: int) -> Iterator[tuple[str, Any]]:
                start = time.perf_counter()
                results = list(train_jointly(runs, seed=seed))
                time.sleep(max(0.0, start + seconds - time.perf_counter()))
                self._put_event("on_note", current_process_id(), json.dumps((start, time.perf_counter())))
                yield from results

            continual.streams.position_learner.train_jointly = train  # type: ignore[attr-defined]
            return super().initialize(config)

    return Paced


def write_stream(folder: Path, count: int) -> Path:
    entries = [write_task(folder, TASKS[n % len(TASKS)]) | {"name": f"task{n}"} for n in range(count)]
    stream = {"name": "many", "warm_start": "scratch", "budget": BUDGET, "method": "lora", "tasks": entries}
    (folder / "stream.yaml").write_text(yaml.safe_dump(stream))
    return folder / "stream.yaml"


def gaps(spans: Mapping[str, list[tuple[float, float]]]) -> list[float]:
    """Return the seconds between consecutive tasks of each worker."""
    return [after[0] - before[1] for span in spans.values() for before, after in pairwise(span)]


def measured(folder: Path, url: str, *, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    stream = read_stream(write_stream(folder, workers * rounds))
    backbone = save_backbone(tiny_backbone("bert"), folder / "backbone")
    spans: dict[str, list[tuple[float, float]]] = {}

    def noted(holder: str, note: str) -> None:
        if note.startswith("["):
            start, ended = json.loads(note)
            spans.setdefault(holder, []).append((start, ended))

    continual.streams.ray.worker_pool.Worker = paced(seconds)  # type: ignore[attr-defined]
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with Learner.open(
        str(backbone), Registry.open(url, str(folder / "blobs")), device="cpu", dtype="float32"
    ) as learner:
        start = time.perf_counter()
        failed = learner.run(
            stream, callbacks=RunCallbacks(on_note=noted), engine=RayEngine(workers=workers, worker_memory=0.1)
        )
        wall = time.perf_counter() - start
    ray.shutdown()
    assert not failed, failed
    between, learning = gaps(spans), [ended - start for span in spans.values() for start, ended in span]
    return {
        "workers": len(spans),
        "tasks": len(learning),
        "cores": os.cpu_count(),
        "learning_seconds": mean(learning),
        "between_seconds": {"mean": mean(between), "median": median(between), "max": max(between)},
        "overhead": mean(between) / mean(learning),
        "bar": BAR,
        "wall_seconds": wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = arguments.database == "postgresql"
        url = stack.enter_context(running()).url() if server else f"sqlite:///{folder}/registry.db"
        result = measured(folder, url, workers=arguments.workers, rounds=arguments.rounds, seconds=arguments.seconds)
    print(json.dumps({"database": arguments.database} | result, indent=2))


if __name__ == "__main__":
    main()
