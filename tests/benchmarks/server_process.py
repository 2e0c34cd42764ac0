"""Homes with random deltas, and `continual serve` on one of them in another process."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.error import URLError

import psutil  # type: ignore[import-untyped]

from continual.backbones.backbone import Backbone
from continual.deltas import Delta
from continual.learning.record import backbone_record, delta_record
from continual.settings import resolve_locations
from registry import Registry, TaskRecord
from tasks import Budget
from tests.benchmarks.mixed import learned, random_bert
from tests.helpers.tiny_models import words

STARTED = 120.0  # seconds that a server may take until it answers
COMMAND = "from continual.cli import main; main()"
LONGEST = 32  # tokens that a task's rows are cut at
HOME_ALONE: Mapping[str, str] = {}  # environment variables of a home with SQLite and a folder of blobs


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: Its address.
        process: Its resource usage.
        log: The file of its output.
    """

    url: str
    process: psutil.Process
    log: Path

    @property
    def cpu(self) -> float:
        """CPU seconds used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def random_folder(folder: Path, *, width: int, layers: int) -> str:
    """Save a random BERT with a small vocabulary."""
    backbone = random_bert(width, layers)
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return str(folder)


def opened(home: Path, places: Mapping[str, str] = HOME_ALONE) -> Registry:
    """Open the registry of a home, or where the environment variables `places` put it."""
    locations = resolve_locations(home, places)
    return Registry.open(locations.registry, locations.blobs)


def fill(
    home: Path,
    backbone: Backbone,
    tasks: Sequence[str],
    *,
    method: str = "lora",
    versions: int = 1,
    places: Mapping[str, str] = HOME_ALONE,
) -> None:
    """Register tasks of two labels, with so many versions of a random delta each."""
    with opened(home, places) as registry:
        for number, task in enumerate(tasks):
            for version in range(versions):
                register(registry, backbone, task, learned(backbone, method, number * versions + version))


def register(registry: Registry, backbone: Backbone, task: str, delta: Delta, *, kind: str = "classification") -> str:
    """Register a task and a delta as if learned; the delta's name."""
    record = TaskRecord(
        name=task,
        kind=kind,
        metric="accuracy" if delta.head else "exact_match",
        labels=delta.head.labels if delta.head else (),
        spec={},
        fingerprints={"train": task},
        rows={"train": 4},
    )
    budget = Budget(epochs=1, batch_size=16, learning_rate=1e-3, max_length=LONGEST)
    registry.claim_store()
    stored_delta = delta_record(registry.blobs, backbone, delta, task=record, budget=budget, warm_start="scratch")
    with registry.unit_of_work() as unit:
        unit.add_backbone(backbone_record(backbone))
        unit.add_task(record)
        return unit.add_delta(stored_delta)


def sentence(draw: Random, length: int = 12) -> str:
    """Draw a text of words that every tokenizer of the tests has."""
    return " ".join(draw.choices(words(), k=length))


@contextmanager
def serving(
    home: Path,
    backbone: str,
    *,
    core: int | None = None,
    options: Sequence[str] = (),
    places: Mapping[str, str] = HOME_ALONE,
) -> Iterator[Served]:
    """Serve on a free port, on CPU `core`, while the block runs; the server must end by itself when terminated."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    command = [sys.executable, "-c", COMMAND, "serve", "--home", str(home), "--backbone", backbone, "--port", "0"]
    log = home / f"serve-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*pinned, *command, *options], stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1", **places}
        )
    try:
        yield Served(_answering(process, log), psutil.Process(process.pid), log)
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    finally:
        process.kill()
        process.wait()


def _answering(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + STARTED
    while time.monotonic() < until and process.poll() is None:
        _, marker, url = log.read_text().partition("serving on ")
        if marker and url.endswith("\n"):
            url = url.split()[0]
            try:
                with urllib.request.urlopen(f"{url}/readyz"):
                    return url
            except URLError:  # not listening to requests yet
                pass
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
