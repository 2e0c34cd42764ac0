"""Faults while controllers learn a stream, and the invariants that must hold after each."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import func, select

from continual.callbacks import RunCallbacks
from continual.settings import resolve_locations
from registry import Registry, find_damage
from registry.reads.blob_references import referenced_blobs
from registry.schema.tables import Checkpoint
from tests.helpers.controller_processes import (
    TASKS,
    Known,
    RegistryLocation,
    StreamFixture,
    controller,
    final_violations,
    invariant_violations,
    registry_contents,
    wait_exit_code,
)
from tests.helpers.postgres_server import Server

LONG_TIMEOUT = 300.0  # seconds that nothing here takes
LEASE = 4.0  # seconds, so that a dead host need not be waited for in minutes
Counts = dict[str, Any]


@dataclass
class FaultScenario:
    """The stream, database server and reference result that all fault scenarios share.

    Attributes:
        world: The stream and the backbone.
        server: A PostgreSQL server.
        draw: Source of the random moments.
        expected: Contents of the registry after an undisturbed run.
        seconds: Duration of an undisturbed run.
        wrong: One line per violation.
    """

    world: StreamFixture
    server: Server
    draw: random.Random
    expected: Known
    seconds: float  # of an undisturbed run
    wrong: list[str] = field(default_factory=list)

    def home(self, database: str = "sqlite", folder: Path | None = None) -> RegistryLocation:
        """Return the location of an empty registry."""
        name = f"home_{uuid4().hex}"
        folder = folder or self.world.folder / name
        if database == "sqlite":
            return RegistryLocation(f"sqlite:///{folder}/registry.db", folder / "blobs")
        with psycopg.connect(self.server.url().replace("+psycopg", ""), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return RegistryLocation(self.server.url(name), folder / "blobs")

    def check(self, scenario: str, problems: list[str]) -> None:
        self.wrong += [f"{scenario}: {line}" for line in problems]

    def finish(self, scenario: str, home: RegistryLocation, *, same: bool = True) -> None:
        """Let a controller learn the rest, and record every violation."""
        code = wait_exit_code(controller(self.world, home), within=LONG_TIMEOUT)
        self.check(scenario, [] if code == 0 else [f"the last controller ended with {code}"])
        self.check(scenario, final_violations(self.world, home, expected=self.expected if same else None))


def kills(scenario: FaultScenario, database: str, count: int) -> Counts:
    """Kill the controller at random moments until the stream is learned; repeat with the next stream."""
    killed = streams = 0
    while killed < count:
        home, streams, code = scenario.home(database), streams + 1, None
        start = time.monotonic()
        while code is None and killed < count:
            pid = controller(scenario.world, home)
            code = wait_exit_code(pid, within=scenario.draw.uniform(0, scenario.seconds))
            if code is None:
                os.kill(pid, signal.SIGKILL)
                wait_exit_code(pid, within=LONG_TIMEOUT)
                killed += 1
                scenario.check(f"kill {killed}", invariant_violations(home))
            else:
                scenario.seconds = min(
                    scenario.seconds, time.monotonic() - start
                )  # the machine may be less busy by now
        scenario.finish(f"stream {streams}", home)
    return {"kills": killed, "streams": streams}


def concurrent_controllers(scenario: FaultScenario, database: str, count: int, *, killed: int = 0) -> Counts:
    """Start several controllers on one stream at the same moment, and kill some of them."""
    home = scenario.home(database)
    with home.registry():
        pass  # the schema is there
    pids = [controller(scenario.world, home) for _ in range(count)]
    for pid in pids[:killed]:
        if wait_exit_code(pid, within=scenario.draw.uniform(0, scenario.seconds)) is None:
            os.kill(pid, signal.SIGKILL)
            wait_exit_code(pid, within=LONG_TIMEOUT)
    codes = [wait_exit_code(pid, within=LONG_TIMEOUT) for pid in pids[killed:]]
    scenario.check(f"{count} controllers", [f"one ended with {code}" for code in codes if code != 0])
    scenario.check(f"{count} controllers", final_violations(scenario.world, home))
    return {"controllers": count, "killed": killed}


def disk_full(scenario: FaultScenario, sizes: list[int]) -> Counts:
    """Learn on a disk of so many KiB that fills up and is enlarged later."""
    learned = []
    for size in sizes:
        with disk(scenario.world.folder / f"disk{size}", f"{size}k") as folder:
            home = scenario.home(folder=folder)
            code = wait_exit_code(controller(scenario.world, home), within=LONG_TIMEOUT)
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            scenario.check(f"disk of {size} KiB", invariant_violations(home))
            if code:
                learned.append(len(registry_contents(home)[0]))
            scenario.finish(f"disk of {size} KiB", home, same=False)  # failed tasks are learned after the others
    return {"disks": len(sizes), "learned_when_full": learned}


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def database_restarts(scenario: FaultScenario, count: int) -> Counts:
    """Kill the database at random moments and restart it; the controller must survive."""
    done = streams = 0
    while done < count:
        home, streams = scenario.home("postgresql"), streams + 1
        with home.registry():
            pass
        pid, code = controller(scenario.world, home), None
        while not _begun(
            home
        ):  # before its first answer an unreachable database counts as a wrong URL, which is not retried
            time.sleep(0.05)
        while code is None and done < count:
            code = wait_exit_code(pid, within=scenario.draw.uniform(0, scenario.seconds / 2))
            if code is None:
                scenario.server.kill()
                time.sleep(scenario.draw.uniform(0, 1))
                scenario.server.start()
                done += 1
        code = wait_exit_code(pid, within=LONG_TIMEOUT) if code is None else code
        scenario.check("restarts", [] if code == 0 else [f"the controller ended with {code}"])
        scenario.check("restarts", final_violations(scenario.world, home, expected=scenario.expected))
    return {"restarts": done, "streams": streams}


def _begun(home: RegistryLocation) -> bool:
    with home.registry() as opened:
        return bool(opened.streams())


def corrupt_blobs(scenario: FaultScenario) -> Counts:
    """Truncate, flip a bit of, and remove every blob of a learned stream and a checkpoint; restore each."""
    home, named = scenario.home(), 0
    pid = controller(scenario.world, home)
    while not _checkpoints(home):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    wait_exit_code(pid, within=LONG_TIMEOUT)
    named += _damaged_all(scenario, home, only="checkpoint")
    with home.registry() as opened, opened.read_session() as session:
        (digest,) = session.scalars(select(Checkpoint.digest))
        Path(opened.blobs.path(digest)).write_bytes(b"nothing to go on from")
    scenario.finish("a checkpoint that is damaged", home)
    named += _damaged_all(scenario, home)
    scenario.finish("blobs put back", home)
    return {"damaged": named}


def _damaged_all(scenario: FaultScenario, home: RegistryLocation, only: str = "") -> int:
    changes: list[Callable[[bytes], bytes | None]] = [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: None,
    ]
    count = 0
    with home.registry() as opened:
        with opened.read_session() as session:
            owners = [
                (owner, opened.blobs.path(digest)) for owner, digest in referenced_blobs(session) if only in owner
            ]
        for owner, place in owners:
            whole = Path(place).read_bytes()
            for change in changes:
                damaged, count = change(whole), count + 1
                Path(place).unlink() if damaged is None else Path(place).write_bytes(damaged)
                scenario.check("damage", _unnamed(opened, owner, place, owners))
                Path(place).write_bytes(whole)
    return count


def _unnamed(registry: Registry, owner: str, place: str, owners: list[tuple[str, str]]) -> list[str]:
    """Return the errors of `verify`'s report on one damaged blob: it must name its owners and nothing else."""
    problems, sharing = find_damage(registry), {name for name, digest in owners if digest == place}
    unexpected = [line for line in problems if not any(line.startswith(name) for name in sharing)]
    named = any(line.startswith(owner) for line in problems)
    return [*(() if named else (f"{owner} is not named",)), *(f"without damage: {line}" for line in unexpected)]


def _checkpoints(home: RegistryLocation) -> int:
    with home.registry() as opened, opened.read_session() as session:
        return session.scalar(select(func.count()).select_from(Checkpoint)) or 0


def clock_skew(scenario: FaultScenario) -> Counts:
    """Share a stream among hosts whose clocks are an hour behind and ahead; a silent one is succeeded in time."""
    home = scenario.home("postgresql")
    with home.registry():
        pass
    pids = [controller(scenario.world, home, host=f"host{hours}", hours=hours, lease=LEASE) for hours in (-1, 1)]
    codes = [wait_exit_code(pid, within=LONG_TIMEOUT) for pid in pids]
    scenario.check("clocks", [f"one ended with {code}" for code in codes if code != 0])
    scenario.check("clocks", final_violations(scenario.world, home))
    waited = [_succeeded(scenario, hours) for hours in (-1, 1)]
    scenario.check(
        "clocks",
        [f"succeeded after {w:.1f} s" for w in waited if not LEASE / 2 < w < LEASE + 10 + 9 * scenario.seconds],
    )
    return {"hosts": len(pids) + 2 * len(waited), "seconds_until_succeeded": [round(w, 1) for w in waited]}


def _succeeded(scenario: FaultScenario, hours: int) -> float:
    """Stop a controller as if its host hung; the seconds until another has learned the task that it held.

    The first one then continues and must notice that its task is learned: no duplicate, no failure.
    """
    home = scenario.home("postgresql")
    with home.registry():
        pass
    hung = controller(scenario.world, home, host="hung", hours=hours, lease=LEASE)
    while not _checkpoints(home):
        time.sleep(0.01)
    os.kill(hung, signal.SIGSTOP)
    start = time.monotonic()
    code = wait_exit_code(
        controller(scenario.world, home, host="other", hours=-hours, lease=LEASE), within=LONG_TIMEOUT
    )
    waited = time.monotonic() - start
    os.kill(hung, signal.SIGCONT)
    codes = [code, wait_exit_code(hung, within=LONG_TIMEOUT)]
    scenario.check("hung", [f"one ended with {code}" for code in codes if code != 0])
    scenario.check("hung", final_violations(scenario.world, home))
    return waited


def mlflow_outage(scenario: FaultScenario, *, middle: bool) -> Counts:
    """Learn while MLflow is unavailable from the start or, with `middle`, after two tasks; then sync."""
    folder = scenario.world.folder / f"mlflow{uuid4().hex}"
    home, store = scenario.home(folder=folder), folder / "mlflow.db"
    places = resolve_locations(folder, {})

    def shut(task: str, delta: str) -> None:
        if task == TASKS[1]:
            while not store.is_file():  # synced in the background
                time.sleep(0.05)
            store.rename(store.with_suffix(".away"))
            store.mkdir()

    folder.mkdir()
    if not middle:
        store.mkdir()  # a folder is no database
    watcher = RunCallbacks(on_learned=shut) if middle else None
    code = wait_exit_code(controller(scenario.world, home, places=places, watcher=watcher), within=LONG_TIMEOUT)
    scenario.check("MLflow away", [] if code == 0 else [f"the controller ended with {code}"])
    scenario.check("MLflow away", final_violations(scenario.world, home, expected=scenario.expected))
    store.rmdir()
    if middle:
        store.with_suffix(".away").rename(store)
    code = wait_exit_code(controller(scenario.world, home, places=places), within=LONG_TIMEOUT)
    with home.registry() as opened:
        runs = [opened.delta(f"{task}@1").mlflow_run for task in TASKS]
    scenario.check("MLflow back", [] if len({*runs} - {None}) == len(TASKS) else [f"not all was sent: {runs}"])
    return {"runs": len({*runs} - {None})}


def reference_run(world: StreamFixture) -> tuple[Known, float]:
    """Learn the stream undisturbed; the registry's contents, and the seconds it took."""
    home = RegistryLocation(f"sqlite:///{world.folder}/peace/registry.db", world.folder / "peace" / "blobs")
    start = time.monotonic()
    if code := wait_exit_code(controller(world, home), within=LONG_TIMEOUT):
        raise SystemExit(f"the undisturbed run ended with {code}: {(world.folder / 'log').read_text()}")
    return registry_contents(home), time.monotonic() - start
