"""Controllers in forked processes, and the invariants that must hold after them.

The process that forks trains nothing itself and opens no registry that it keeps: a fork shares neither threads nor
connections.
"""

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml

import continual.learning.checkpoint
import continual.streams.worker_loop
import registry.holders
import registry.operations.claims
import registry.schema.base
from continual import Learner, read_stream
from continual.backbones.backbone import Backbone, load_backbone
from continual.callbacks import RunCallbacks
from continual.settings import Locations
from continual.streams.routed_scores import evaluate_stored, routed_scores
from registry import Registry, find_damage
from tasks import Stream, load_stream
from tests.helpers.tiny_tasks import save_backbone, tiny_backbone, write_task

TASKS = ("animals", "mood", "place", "food")  # of the smoke stream's shape: four small tasks, warm starts, three epochs
BUDGET = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "max_length": 32}
METHOD = {"name": "lora", "rank": 8}
RESUME_LOG_MESSAGE = "resumed"  # the file in which controllers note that they went on from a checkpoint


@dataclass(frozen=True)
class StreamFixture:
    """A stream of tiny tasks and a tiny backbone, shared by all controllers."""

    folder: Path
    backbone: Backbone
    stream: Stream


@dataclass(frozen=True)
class RegistryLocation:
    """The URL and the blob folder of a registry."""

    url: str
    blobs: Path

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with Registry.open(self.url, str(self.blobs)) as opened:
            yield opened


def make_world(folder: Path) -> StreamFixture:
    """Write the stream's files and load the backbone, as a user's run would."""
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    datasets.disable_progress_bars()
    entries = [write_task(folder, task) for task in TASKS]
    content = {"name": "core", "seed": 0, "method": METHOD, "warm_start": "auto", "budget": BUDGET, "tasks": entries}
    (folder / "stream.yaml").write_text(yaml.safe_dump(content))
    saved = save_backbone(tiny_backbone("bert"), folder / "backbone")
    backbone = load_backbone(str(saved), device="cpu", dtype="float32")
    stream = read_stream(folder / "stream.yaml")
    load_stream(stream)
    return StreamFixture(folder, backbone, stream)


def fork(work: Callable[[], int], log: Path) -> int:
    """Fork a process that runs `work` and exits with the code it returns.

    Returns:
        The process's id.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        with log.open("a") as lines:
            os.dup2(lines.fileno(), 2)
            os.dup2(lines.fileno(), 1)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        os._exit(code)


def controller(
    world: StreamFixture,
    home: RegistryLocation,
    *,
    host: str | None = None,
    hours: int = 0,
    lease: float | None = None,
    places: Locations | None = None,
    watcher: RunCallbacks | None = None,
) -> int:
    """Start a controller that writes a checkpoint after every epoch.

    Args:
        world: The stream and the backbone.
        home: The registry.
        host: Pretend to run on a host of this name.
        hours: Error of that host's clock, in hours.
        lease: Seconds of a lease, instead of the default.
        places: Locations with an MLflow store; without one nothing is tracked.
        watcher: Callbacks of the run.

    Returns:
        The process's id; it exits with 0 when every task is learned.
    """

    def work() -> int:
        continual.learning.checkpoint.MIN_INTERVAL_SECONDS, continual.learning.checkpoint.MAX_OVERHEAD = 0.0, 1e9
        continual.streams.worker_loop.POLL_SECONDS = 0.1
        if host:
            _move(host, hours)
        if lease:
            registry.operations.claims.LEASE = timedelta(seconds=lease)
            unwrapped: Any = registry.operations.claims.hold_claim
            unwrapped.__wrapped__.__kwdefaults__["interval"] = lease / 6
        noting = watcher or RunCallbacks(on_note=note)
        with home.registry() as opened:
            return 1 if Learner(world.backbone, opened, places).run(world.stream, callbacks=noting) else 0

    def note(task: str, text: str) -> None:
        if text.startswith("goes on"):
            with (world.folder / RESUME_LOG_MESSAGE).open("a") as lines:
                lines.write(f"{task}: {text}\n")

    return fork(work, world.folder / "log")


def _move(host: str, hours: int) -> None:
    real = time.time

    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=hours)  # type: ignore[arg-type]

    registry.schema.base.datetime = WrongClock  # type: ignore[attr-defined]
    time.time = lambda: real() + 3600 * hours
    socket.gethostname = lambda: host


def wait_exit_code(pid: int, *, within: float) -> int | None:
    """Return a process's exit code, negative for a signal; None if it still runs after `within` seconds."""
    end = time.monotonic() + within
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


Scores = dict[tuple[object, ...], float]
Known = tuple[dict[str, str | None], Scores]  # digests by delta, and scores


def registry_contents(home: RegistryLocation) -> Known:
    """Return the digest of every delta, and every score."""
    with home.registry() as opened:
        digests = {row["delta"]: opened.delta(row["delta"]).digest for row in opened.deltas()}
        scores: Scores = {(s.delta, s.split, s.metric, s.mode, s.step): s.value for s in opened.scores()}
    return digests, scores


def invariant_violations(home: RegistryLocation) -> list[str]:
    """Return the violations of what must hold at any time: no damage, and one version of each task."""
    with home.registry() as opened:
        doubles = [row["delta"] for row in opened.deltas() if row["version"] != 1]
        return [*find_damage(opened), *(f"{delta}: learned twice" for delta in doubles)]


def final_violations(world: StreamFixture, home: RegistryLocation, *, expected: Known | None = None) -> list[str]:
    """Return the violations of what must hold once the stream is learned.

    Each task has one delta, and the routed scores are those of the stored deltas.

    Args:
        world: The stream and the backbone.
        home: The registry.
        expected: Contents after an undisturbed run, to compare with bit for bit.
    """
    violations = invariant_violations(home)
    digests, scores = registry_contents(home)
    with home.registry() as opened:
        stream, names = opened.stream("core"), [f"{task}@1" for task in TASKS]
        if [position.delta for position in stream.positions] != names:
            violations.append(f"not all is learned: {[(p.task, p.state, p.error) for p in stream.positions]}")
            return violations
        if sorted(row["delta"] for row in opened.deltas()) != sorted(names):
            violations.append("deltas besides the stream's")
        loaded = load_stream(world.stream)
        evaluated = {n: evaluate_stored(world.backbone, opened, n, data) for n, data in zip(names, loaded, strict=True)}
    for step in range(len(names)):
        evaluated_so_far = {name: evaluated[name] for name in names[: step + 1]}
        measured, _ = routed_scores(evaluated_so_far, stream="core", step=step, abstaining=step == len(names) - 1)
        for delta, delta_scores in measured.items():
            violations += [
                f"{delta}: {score.metric} after step {step} is {scores.get(key)}, not {score.value}"
                for score in delta_scores
                if scores.get(key := (delta, "test", score.metric, "routed", step)) != score.value
            ]
    if expected and (digests, scores) != expected:
        lost = expected[1].keys() - scores.keys()
        different = [key for key in scores.keys() & expected[1].keys() if scores[key] != expected[1][key]]
        violations.append(
            f"not what an undisturbed run comes to: lost are {sorted(lost)}, others are {sorted(different)}"
        )
    return violations
