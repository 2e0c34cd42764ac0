"""Parts of the simulated year: timed operations, a learned task, and a growing router."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch

from continual.features.signature import Signature, compute_signature
from continual.routing.moments import AccumulatedMoments
from registry import (
    ARRIVAL_STREAM,
    Arrival,
    BackboneRecord,
    DataRecord,
    DeltaRecord,
    Registry,
    Score,
    SignatureRecord,
    TaskRecord,
    UnitOfWork,
)

SIZE, CLASSES, ROWS = 32, 4, 40  # of a signature: hidden size, labels, rows
BACKBONE = BackboneRecord(
    fingerprint="f00d", name="tiny", family="bert", hidden_size=SIZE, parameters=100, pooling="mean"
)
T = TypeVar("T")


@dataclass
class Measured:
    """Milliseconds of each operation, with the tenth of the year in which it ran."""

    done: Callable[[], float]
    times: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        start = perf_counter()
        result = work()
        tenth = min(int(10 * self.done()), 9)
        self.times[name].append((tenth, 1000 * (perf_counter() - start)))
        return result

    def document(self) -> dict[str, Any]:
        """Return each operation's count, p50 and p99 by tenth, and the last tenth's p50 over the second's."""
        document = {}
        for name, times in self.times.items():
            tenths = [[ms for part, ms in times if part == tenth] for tenth in range(10)]
            p50, p99 = ([percentile(part, share) for part in tenths] for share in (50, 99))
            growth = p50[9] / p50[1] if p50[9] and p50[1] else None
            document[name] = {"count": len(times), "p50_ms": p50, "p99_ms": p99, "growth": growth}
        return document


class Router:
    """The sums over each task's newest version that a router is built from."""

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.parts: dict[str, Signature] = {}
        self.totals = AccumulatedMoments()

    def take(self, task: str, signature: Signature) -> None:
        before = self.parts.get(task)
        self.parts[task] = signature
        if before is not None:
            self.measured("router, remove", lambda: self.totals.remove(task, before))
        self.measured("router, add", lambda: self.totals.add(task, signature))

    def bytes_per_task(self) -> float | None:
        """Bytes of class means."""
        if not self.parts:
            return None
        return sum(task.means.nbytes + task.shares.nbytes for task in self.totals.tasks.values()) / len(self.parts)


def signature_of(random: Random) -> Signature:
    draw = torch.Generator().manual_seed(random.getrandbits(32))
    labels = torch.arange(ROWS) % CLASSES
    rows = torch.randn(CLASSES, SIZE, generator=draw)[labels] + 0.5 * torch.randn(ROWS, SIZE, generator=draw)
    return compute_signature(rows, labels, count=CLASSES)


def register(registry: Registry, arrival: Arrival, values: str, signature: str, *, holder: str) -> None:
    labels, rows = (
        tuple(f"label {number}" for number in range(CLASSES)),
        dict.fromkeys(("train", "validation", "test"), 40),
    )
    prints = {split: f"{arrival.task}-{arrival.number}-{split}" for split in rows}
    spec = arrival.spec["tasks"][0]
    task = TaskRecord(
        name=arrival.task,
        kind="classification",
        metric="accuracy",
        labels=labels,
        spec=spec,
        fingerprints=prints,
        rows=rows,
    )
    delta = DeltaRecord(
        task=arrival.task,
        backbone=BACKBONE.fingerprint,
        method="lora",
        settings={"rank": 8},
        budget={"epochs": 3, "max_length": 128},
        digest=values,
        bytes=100,
        parameters=25,
        share=0.01,
        seed=0,
        labels=labels,
        versions={"torch": "2"},
        warm_start="scratch",
        seconds=30.0,
        examples_per_second=400.0,
        data=DataRecord(spec=spec, folder="/data", seed=0, fingerprints=prints, rows=rows),
    )
    scores = [Score(split=split, metric="accuracy", value=0.5, rows=40) for split in ("validation", "test")]

    def work(unit: UnitOfWork) -> None:
        unit.add_task(task)
        name = unit.add_delta(
            delta, scores=scores, signature=SignatureRecord(digest=signature, rows=ROWS, pooling="mean")
        )
        unit.mark_learned(ARRIVAL_STREAM, arrival.number, delta=name, holder=holder)

    registry.write_with_retry(work)


def percentile(values: list[float], share: int) -> float | None:
    return round(float(np.percentile(values, share)), 3) if values else None
