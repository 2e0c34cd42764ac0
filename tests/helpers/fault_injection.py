"""What can break while controllers learn a stream, and what must hold after it."""

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
    """What all scenarios share; wrong: one line for each thing that should not be."""

    world: StreamFixture
    server: Server
    draw: random.Random
    expected: Known
    seconds: float  # of an undisturbed run
    wrong: list[str] = field(default_factory=list)

    def home(self, database: str = "sqlite", folder: Path | None = None) -> RegistryLocation:
        """A place for an empty registry."""
        name = f"home_{uuid4().hex}"
        folder = folder or self.world.folder / name
        if database == "sqlite":
            return RegistryLocation(f"sqlite:///{folder}/registry.db", folder / "blobs")
        with psycopg.connect(self.server.url().replace("+psycopg", ""), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return RegistryLocation(self.server.url(name), folder / "blobs")

    def check(self, where: str, found: list[str]) -> None:
        self.wrong += [f"{where}: {line}" for line in found]

    def finish(self, where: str, home: RegistryLocation, *, same: bool = True) -> None:
        """Let a controller do what is left, and look at what came of it all."""
        code = wait_exit_code(controller(self.world, home), within=LONG_TIMEOUT)
        self.check(where, [] if code == 0 else [f"the last controller ended with {code}"])
        self.check(where, final_violations(self.world, home, expected=self.expected if same else None))


def kills(bench: FaultScenario, database: str, count: int) -> Counts:
    """SIGKILL at random moments of a stream, again and again until it is learned; then the next stream."""
    killed = streams = 0
    while killed < count:
        home, streams, code = bench.home(database), streams + 1, None
        began = time.monotonic()
        while code is None and killed < count:
            pid = controller(bench.world, home)
            code = wait_exit_code(pid, within=bench.draw.uniform(0, bench.seconds))
            if code is None:
                os.kill(pid, signal.SIGKILL)
                wait_exit_code(pid, within=LONG_TIMEOUT)
                killed += 1
                bench.check(f"kill {killed}", invariant_violations(home))
            else:
                bench.seconds = min(bench.seconds, time.monotonic() - began)  # the machine may be less busy by now
        bench.finish(f"stream {streams}", home)
    return {"kills": killed, "streams": streams}


def concurrent_controllers(bench: FaultScenario, database: str, count: int, *, killed: int = 0) -> Counts:
    """Several controllers on one stream from the same moment; some of them are killed on the way."""
    home = bench.home(database)
    with home.registry():
        pass  # the schema is there
    pids = [controller(bench.world, home) for _ in range(count)]
    for pid in pids[:killed]:
        if wait_exit_code(pid, within=bench.draw.uniform(0, bench.seconds)) is None:
            os.kill(pid, signal.SIGKILL)
            wait_exit_code(pid, within=LONG_TIMEOUT)
    codes = [wait_exit_code(pid, within=LONG_TIMEOUT) for pid in pids[killed:]]
    bench.check(f"{count} controllers", [f"one ended with {code}" for code in codes if code != 0])
    bench.check(f"{count} controllers", final_violations(bench.world, home))
    return {"controllers": count, "killed": killed}


def disk_full(bench: FaultScenario, sizes: list[int]) -> Counts:
    """A disk of so many KiB that fills up, and then has room again."""
    learned = []
    for size in sizes:
        with disk(bench.world.folder / f"disk{size}", f"{size}k") as folder:
            home = bench.home(folder=folder)
            code = wait_exit_code(controller(bench.world, home), within=LONG_TIMEOUT)
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            bench.check(f"disk of {size} KiB", invariant_violations(home))
            if code:
                learned.append(len(registry_contents(home)[0]))
            bench.finish(f"disk of {size} KiB", home, same=False)  # what failed came after the others
    return {"disks": len(sizes), "learned_when_full": learned}


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def database_restarts(bench: FaultScenario, count: int) -> Counts:
    """The database is killed at random moments of a stream, and comes back a moment later; the controller lives on."""
    done = streams = 0
    while done < count:
        home, streams = bench.home("postgresql"), streams + 1
        with home.registry():
            pass
        pid, code = controller(bench.world, home), None
        while not _begun(home):  # a database that never answered is a wrong URL, and is said to be one at once
            time.sleep(0.05)
        while code is None and done < count:
            code = wait_exit_code(pid, within=bench.draw.uniform(0, bench.seconds / 2))
            if code is None:
                bench.server.kill()
                time.sleep(bench.draw.uniform(0, 1))
                bench.server.start()
                done += 1
        code = wait_exit_code(pid, within=LONG_TIMEOUT) if code is None else code
        bench.check("restarts", [] if code == 0 else [f"the controller ended with {code}"])
        bench.check("restarts", final_violations(bench.world, home, expected=bench.expected))
    return {"restarts": done, "streams": streams}


def _begun(home: RegistryLocation) -> bool:
    with home.registry() as opened:
        return bool(opened.streams())


def corrupt_blobs(bench: FaultScenario) -> Counts:
    """Every blob of a learned stream, and a checkpoint: cut short, one bit flipped, removed; then put back."""
    home, named = bench.home(), 0
    pid = controller(bench.world, home)
    while not _checkpoints(home):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    wait_exit_code(pid, within=LONG_TIMEOUT)
    named += _damaged_all(bench, home, only="checkpoint")
    with home.registry() as opened, opened.read_session() as session:
        (digest,) = session.scalars(select(Checkpoint.digest))
        Path(opened.blobs.path(digest)).write_bytes(b"nothing to go on from")
    bench.finish("a checkpoint that is damaged", home)
    named += _damaged_all(bench, home)
    bench.finish("blobs put back", home)
    return {"damaged": named}


def _damaged_all(bench: FaultScenario, home: RegistryLocation, only: str = "") -> int:
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
                left, count = change(whole), count + 1
                Path(place).unlink() if left is None else Path(place).write_bytes(left)
                bench.check("damage", _unnamed(opened, owner, place, owners))
                Path(place).write_bytes(whole)
    return count


def _unnamed(registry: Registry, owner: str, place: str, owners: list[tuple[str, str]]) -> list[str]:
    """What is wrong with what `verify` says of one damaged blob: it names its owners, and nobody else."""
    said, sharing = find_damage(registry), {name for name, its in owners if its == place}
    others = [line for line in said if not any(line.startswith(name) for name in sharing)]
    named = any(line.startswith(owner) for line in said)
    return [*(() if named else (f"{owner} is not named",)), *(f"without damage: {line}" for line in others)]


def _checkpoints(home: RegistryLocation) -> int:
    with home.registry() as opened, opened.read_session() as session:
        return session.scalar(select(func.count()).select_from(Checkpoint)) or 0


def clock_skew(bench: FaultScenario) -> Counts:
    """Hosts whose clocks are an hour behind and ahead share a stream; one that falls silent is succeeded in time."""
    home = bench.home("postgresql")
    with home.registry():
        pass
    pids = [controller(bench.world, home, host=f"host{hours}", hours=hours, lease=LEASE) for hours in (-1, 1)]
    codes = [wait_exit_code(pid, within=LONG_TIMEOUT) for pid in pids]
    bench.check("clocks", [f"one ended with {code}" for code in codes if code != 0])
    bench.check("clocks", final_violations(bench.world, home))
    waited = [_succeeded(bench, hours) for hours in (-1, 1)]
    bench.check(
        "clocks", [f"succeeded after {w:.1f} s" for w in waited if not LEASE / 2 < w < LEASE + 10 + 9 * bench.seconds]
    )
    return {"hosts": len(pids) + 2 * len(waited), "seconds_until_succeeded": [round(w, 1) for w in waited]}


def _succeeded(bench: FaultScenario, hours: int) -> float:
    """Stop a controller in the middle as if its host hung; seconds until another has learned what it held.

    It then goes on, and finds its task learned: nothing is doubled, nothing reported as failed.
    """
    home = bench.home("postgresql")
    with home.registry():
        pass
    hung = controller(bench.world, home, host="hung", hours=hours, lease=LEASE)
    while not _checkpoints(home):
        time.sleep(0.01)
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    code = wait_exit_code(controller(bench.world, home, host="other", hours=-hours, lease=LEASE), within=LONG_TIMEOUT)
    waited = time.monotonic() - began
    os.kill(hung, signal.SIGCONT)
    codes = [code, wait_exit_code(hung, within=LONG_TIMEOUT)]
    bench.check("hung", [f"one ended with {code}" for code in codes if code != 0])
    bench.check("hung", final_violations(bench.world, home))
    return waited


def mlflow_outage(bench: FaultScenario, *, middle: bool) -> Counts:
    """MLflow cannot be reached from the start or, `middle`, breaks after two tasks; later it is there again."""
    folder = bench.world.folder / f"mlflow{uuid4().hex}"
    home, store = bench.home(folder=folder), folder / "mlflow.db"
    places = resolve_locations(folder, {})

    def shut(task: str, delta: str) -> None:
        if task == TASKS[1]:
            while not store.is_file():  # it is told in the background
                time.sleep(0.05)
            store.rename(store.with_suffix(".away"))
            store.mkdir()

    folder.mkdir()
    if not middle:
        store.mkdir()  # a folder is no database
    watcher = RunCallbacks(on_learned=shut) if middle else None
    code = wait_exit_code(controller(bench.world, home, places=places, watcher=watcher), within=LONG_TIMEOUT)
    bench.check("MLflow away", [] if code == 0 else [f"the controller ended with {code}"])
    bench.check("MLflow away", final_violations(bench.world, home, expected=bench.expected))
    store.rmdir()
    if middle:
        store.with_suffix(".away").rename(store)
    code = wait_exit_code(controller(bench.world, home, places=places), within=LONG_TIMEOUT)
    with home.registry() as opened:
        runs = [opened.delta(f"{task}@1").mlflow_run for task in TASKS]
    bench.check("MLflow back", [] if len({*runs} - {None}) == len(TASKS) else [f"not all was sent: {runs}"])
    return {"runs": len({*runs} - {None})}


def reference_run(world: StreamFixture) -> tuple[Known, float]:
    """What one controller comes to in peace, and the seconds it takes."""
    home = RegistryLocation(f"sqlite:///{world.folder}/peace/registry.db", world.folder / "peace" / "blobs")
    began = time.monotonic()
    if code := wait_exit_code(controller(world, home), within=LONG_TIMEOUT):
        raise SystemExit(f"the undisturbed run ended with {code}: {(world.folder / 'log').read_text()}")
    return registry_contents(home), time.monotonic() - began
